//! `cargo xtask exhaustive`: all combinations of entry bits, control bits and accesses, on this
//! machine.

use std::process::ExitCode;

use anyhow::Result;

use crate::{process, reference_options};

/// Run every combination of entry bits through the shadow MMU.
///
/// It needs nothing but the Rust toolchain. The reference machine judges.
///
/// The options are those of the example `exhaustive`; `cargo xtask exhaustive -- --help` explains
/// them.
#[derive(clap::Args)]
pub struct Arguments {
    /// Options of the exhaustive set.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds with optimization, but with the MMU's assertions on, and runs.
pub fn run(Arguments { options }: &Arguments) -> Result<ExitCode> {
    process::run_example::<reference_options::exhaustive::Arguments>("exhaustive", options)
}
