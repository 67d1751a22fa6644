//! `cargo xtask book`: builds the book in `docs/book`.

pub mod links;

use std::env;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::tool::CargoTool;
use crate::{paths, process};

/// What makes the pages.
const MDBOOK: CargoTool = CargoTool { name: "mdbook", version: "^0.5" };
/// Without its web server and the watcher of files, which nobody starts here.
const NO_SERVER: &[&str] = &["--no-default-features", "--features", "search"];

/// Build the book into docs/book/build.
///
/// Installs mdbook through cargo if it is missing, into target/tools.
#[derive(clap::Args)]
pub struct Arguments {}

/// Builds it; a warning is a failure.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    let mut mdbook = Command::new(MDBOOK.install_with(NO_SERVER)?);
    // Mentions of files become links. The book's own settings do not have it: mdBook alone makes
    // the book, too.
    let this = env::current_exe().context("finding this program")?;
    mdbook.env("MDBOOK_PREPROCESSOR__SOURCES__COMMAND", format!("'{}' book-links", this.display()));
    mdbook.env("MDBOOK_PREPROCESSOR__SOURCES__AFTER", "[\"links\"]");
    mdbook.args(["build", "docs/book"]).current_dir(paths::workspace()).stdin(Stdio::null());
    let line = process::describe(&mdbook);
    let output = mdbook.output().with_context(|| format!("starting {line}"))?;
    let said = [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat();
    eprint!("{said}");
    ensure!(output.status.success(), "{line} failed with {}", output.status);
    ensure!(!said.contains("WARN"), "the book has warnings");
    println!("{}", paths::workspace().join("docs/book/build/index.html").display());
    Ok(ExitCode::SUCCESS)
}
