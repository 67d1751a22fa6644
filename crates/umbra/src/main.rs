//! The `umbra` command.
#![forbid(unsafe_code)]

use std::env;
use std::process::ExitCode;

use umbra::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse(env::args_os()) {
        Ok(cli) => cli.run(),
        Err(status) => status,
    }
}
