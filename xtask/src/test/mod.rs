//! `cargo xtask test`.

mod boots;
mod console;
mod host;
mod report;
mod stats;

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::Setup;
use report::Report;

/// Install what is missing and run all tests, boots of Linux included.
///
/// Formatting, lints, unit and differential tests, documentation; then Linux with the quick exercise on the
/// emulated machines, with the bypass and without, and audited. Ends with the line `N passed, N failed`. What
/// boots leave (console, exit table) is kept in `target/guest/test`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs all tests.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    let built = Setup::new()?.everything()?;
    let mut report = Report::new();
    host::run(&mut report);
    boots::run(&mut report, &built)?;
    Ok(report.finish())
}
