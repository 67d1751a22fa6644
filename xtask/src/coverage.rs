//! `cargo xtask coverage`: which lines of the MMU the tests on this machine execute.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::setup::install_packages;
use crate::tool::CargoTool;
use crate::{paths, process};

/// Show which lines of crates/paging and crates/mmu the tests execute (installs cargo-llvm-cov, and LLVM's tools).
///
/// Counted are the unit tests of both crates, and the differential and other tests of crates/reference. Prints a table by
/// file and the numbers of the lines that are not covered; docs/measurements.md explains those.
#[derive(clap::Args)]
pub struct Arguments {}

/// What is measured, and by whose tests.
const PACKAGES: &[&str] = &["umbra-paging", "umbra-mmu", "umbra-reference"];

/// Files beside those that are measured.
const IGNORED: &str = "crates/reference|/tests/|/rustc/";

/// Measures.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    let tools = llvm_tools()?;
    let program = CargoTool { name: "cargo-llvm-cov", version: "^0.9" }.install()?;
    let mut cargo = Command::new(program);
    cargo.current_dir(paths::workspace()).args(["llvm-cov", "--show-missing-lines"]);
    cargo
        .args(["--ignore-filename-regex", IGNORED])
        .args(PACKAGES.iter().flat_map(|name| ["--package", name]));
    cargo.env("LLVM_COV", tools.join("llvm-cov")).env("LLVM_PROFDATA", tools.join("llvm-profdata"));
    process::show(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}

/// The folder with llvm-cov and llvm-profdata of the LLVM that rustc has: the toolchain's own component, or Debian's.
fn llvm_tools() -> Result<PathBuf> {
    let sysroot = process::capture(Command::new("rustc").args(["--print", "sysroot"]))?;
    let verbose = process::capture(Command::new("rustc").arg("-vV"))?;
    let host = field(&verbose, "host: ").context("rustc names no host")?;
    let version = field(&verbose, "LLVM version: ").context("rustc names no LLVM version")?;
    let major = version.split('.').next().unwrap_or(version);
    let component = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin");
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}/bin"));
    let found =
        || [&component, &debian].into_iter().find(|folder| folder.join("llvm-cov").is_file()).cloned();
    if let Some(folder) = found() {
        return Ok(folder);
    }
    let package = format!("llvm-{major}");
    if let Err(error) = install_packages(&[&package]) {
        bail!("llvm-cov {major} is missing; run this first: rustup component add llvm-tools ({error:#})");
    }
    found().with_context(|| format!("the package {package} has no llvm-cov"))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_rustc() {
        let text = "rustc 1.95.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.2\n";
        assert_eq!(field(text, "LLVM version: "), Some("22.1.2"));
        assert_eq!(field(text, "release: "), None);
    }
}
