//! `cargo xtask book`: builds the book in `docs/book`.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{paths, process};

/// The version that is installed if there is none.
const MDBOOK: &str = "0.5.4";

/// Build the book into docs/book/build (installs mdbook through cargo if it is missing, into target/tools).
#[derive(clap::Args)]
pub struct Arguments {}

/// Builds it; a warning is a failure.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    let mut mdbook = Command::new(find_or_install()?);
    mdbook.args(["build", "docs/book"]).current_dir(paths::workspace()).stdin(Stdio::null());
    let line = process::describe(&mdbook);
    let output = mdbook.output().with_context(|| format!("starting {line}"))?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    eprint!("{said}");
    ensure!(output.status.success(), "{line} failed with {}", output.status);
    ensure!(!said.contains("WARN"), "the book has warnings");
    println!("{}", paths::workspace().join("docs/book/build/index.html").display());
    Ok(ExitCode::SUCCESS)
}

fn find_or_install() -> Result<PathBuf> {
    let tools = paths::target_dir()?.join("tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([tools.join("bin")]);
    if let Some(found) = folders.map(|folder| folder.join("mdbook")).find(|program| program.is_file()) {
        return Ok(found);
    }
    let mut cargo = process::cargo();
    cargo.args(["install", "mdbook", "--locked", "--version", MDBOOK, "--root"]).arg(&tools);
    process::show(&mut cargo)?;
    Ok(tools.join("bin/mdbook"))
}
