//! `cargo xtask campaign`: the differential test for as long as one likes.

use std::process::ExitCode;

use anyhow::Result;

use crate::{process, reference_options};

/// Run random guest programs through the shadow MMU for a while.
///
/// It needs nothing but the Rust toolchain.
///
/// The options are those of the example `campaign`; `cargo xtask campaign -- --help` explains them.
#[derive(clap::Args)]
pub struct Arguments {
    /// Options of the campaign.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds with optimization, but with the MMU's assertions on, and runs.
pub fn run(Arguments { options }: &Arguments) -> Result<ExitCode> {
    process::run_example::<reference_options::campaign::Arguments>("campaign", options)
}
