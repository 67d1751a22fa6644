//! Tools of the Rust toolchain that are not part of it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{paths, process};

/// A cargo subcommand from the registry.
pub struct CargoTool {
    /// Its package and program.
    pub name: &'static str,
    /// The versions that are known to do, as a requirement.
    pub version: &'static str,
}

impl CargoTool {
    /// The program, installed into the target folder if it is nowhere.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn install(&self) -> Result<PathBuf> {
        self.install_with(&[])
    }

    /// The same, with options of `cargo install` that make less of it.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn install_with(&self, options: &[&str]) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let root = paths::target_dir()?.join("tools");
        let folders = std::env::split_paths(&path).chain([root.join("bin")]);
        if let Some(found) =
            folders.map(|folder| folder.join(self.name)).find(|program| program.is_file())
        {
            return Ok(found);
        }
        eprintln!(
            "xtask: installing {} {} into {}, which takes minutes once",
            self.name,
            self.version,
            root.display()
        );
        let mut cargo = process::cargo();
        // Optimizing it takes minutes and gains seconds. What was compiled is kept: an installation
        // that was ended goes on where it was, and another version compiles what has changed.
        cargo.args(["install", "--debug", "--locked", "--version", self.version, self.name]);
        cargo.args(options);
        cargo.arg("--root").arg(&root).arg("--target-dir").arg(root.join("build"));
        process::show(&mut cargo)?;
        Ok(root.join("bin").join(self.name))
    }
}

/// The name of an installed nightly toolchain.
///
/// # Errors
/// There is none.
pub fn nightly() -> Result<String> {
    let installed = process::capture(Command::new("rustup").args(["toolchain", "list"]))?;
    match installed.lines().find(|line| line.starts_with("nightly")) {
        Some(line) => Ok(String::from(line.split(' ').next().unwrap_or(line))),
        None => {
            bail!(
                "libFuzzer needs a nightly toolchain; run this first: rustup toolchain install nightly"
            )
        }
    }
}
