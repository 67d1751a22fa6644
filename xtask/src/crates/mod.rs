//! `cargo xtask crates`: what a registry and the users of the published crates will look at.

mod compiler;
mod published;

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::setup::Setup;
use crate::tool::CargoTool;
use crate::{paths, process};
pub use compiler::check_oldest_compiler;
pub use published::Published;

/// Check the published crates as a registry would.
///
/// Runs `cargo publish --dry-run` of all of them in one call, then `cargo check` with the oldest
/// compiler that they promise (Debian's, unpacked into target/). Last comes `cargo deny check
/// licenses bans sources` (installs cargo-deny). Nothing is published.
#[derive(clap::Args)]
pub struct Arguments {}

/// Checks them.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    let mut setup = Setup::new()?;
    let published = Published::find()?;
    println!("published: {}", published.names().collect::<Vec<_>>().join(" "));
    process::show(&mut dry_run(&published))?;
    println!("{}", check_oldest_compiler(&mut setup, &published)?);
    deny()?;
    Ok(ExitCode::SUCCESS)
}

/// They depend on each other's new versions, so a registry must see them together. What is tried
/// out need not be committed.
fn dry_run(published: &Published) -> Command {
    let mut cargo = process::cargo();
    cargo.current_dir(paths::workspace()).args([
        "publish",
        "--dry-run",
        "--locked",
        "--allow-dirty",
    ]);
    cargo.args(published.names().flat_map(|name| ["--package", name]));
    cargo
}

/// Licences, duplicates and origins of all dependencies, by deny.toml. (Advisories need a database
/// that is not part of the registry.)
fn deny() -> Result<()> {
    let program = CargoTool { name: "cargo-deny", version: "^0.18" }.install()?;
    let mut deny = Command::new(program);
    deny.current_dir(paths::workspace()).args(["--workspace", "--locked", "check"]);
    process::show(deny.args(["licenses", "bans", "sources"]))
}
