//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::console::message;
use crate::{bench, compare, decode, doctor, html, image, run, trace};

/// Runs guests on the Umbra hypervisor and shows every exit and its cause.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Image(image::Arguments),
    Decode(decode::Arguments),
    Trace(trace::Arguments),
    Bench(bench::Arguments),
    Compare(compare::Arguments),
    Report(html::Arguments),
    Doctor(doctor::Arguments),
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Run(arguments) => run::run(&arguments),
            Command::Image(arguments) => image::run(&arguments),
            Command::Decode(arguments) => decode::run(&arguments),
            Command::Trace(arguments) => trace::run(&arguments),
            Command::Bench(arguments) => bench::run(&arguments),
            Command::Compare(arguments) => compare::run(&arguments),
            Command::Report(arguments) => html::run(&arguments),
            Command::Doctor(arguments) => doctor::run(&arguments),
        };
        outcome.unwrap_or_else(|error| {
            message(format_args!("umbra: {error}\n"));
            ExitCode::from(&error)
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
