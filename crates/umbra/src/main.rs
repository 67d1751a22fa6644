//! The `umbra` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    umbra::cli::Cli::parse().run()
}
