//! The `umbra` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    umbra::cli::Cli::from_arguments().run()
}
