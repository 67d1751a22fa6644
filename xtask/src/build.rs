//! `cargo xtask build`.

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::Setup;

/// Set everything up, and build all that a boot needs.
///
/// Installs Debian packages (it says which) and fetches the guest's kernel. Builds the guest's
/// initramfs and the umbra tool with the hypervisor in it, and prints where they are.
/// `target/guest` keeps the kernel; remove it to fetch the current one.
#[derive(clap::Args)]
pub struct Arguments {}

/// Builds.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    let built = Setup::new()?.everything()?;
    println!("umbra   {}", built.umbra.display());
    println!("kernel  {}", built.kernel.display());
    println!("initrd  {}", built.initrd.display());
    Ok(ExitCode::SUCCESS)
}
