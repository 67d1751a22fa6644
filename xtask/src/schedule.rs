//! `cargo xtask schedule`: two CPUs in every order.

use std::process::ExitCode;

use anyhow::Result;

use crate::{process, reference_options};

/// Run programs for two CPUs in every order of preemptions.
///
/// Small programs go through the shadow MMU with up to two preemptions. It needs nothing but the
/// Rust toolchain.
///
/// The options are those of the example `schedule`; `cargo xtask schedule -- --help` explains them.
#[derive(clap::Args)]
pub struct Arguments {
    /// Options of the schedule.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds with optimization, but with the MMU's assertions on, and runs.
pub fn run(Arguments { options }: &Arguments) -> Result<ExitCode> {
    process::run_example::<reference_options::schedule::Arguments>("schedule", options)
}
