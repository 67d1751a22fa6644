//! The command line.

use std::env;
use std::io::{self, Write};
use std::process::{self, ExitCode};

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::console::{message, output_failure};
use crate::error::Error;
use crate::temporary;
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
    /// Takes the options of this program, or ends it: with help where that was asked for, or with a sentence.
    pub fn from_arguments() -> Cli {
        Cli::try_parse().unwrap_or_else(|error| {
            // Without any argument clap shows the help, too, as an error.
            let help = matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
            if help || !error.use_stderr() {
                let shown = error.print().and_then(|()| io::stdout().flush());
                process::exit(match output_failure(shown) {
                    None => error.exit_code(),
                    Some(failure) => {
                        message(format_args!("umbra: {failure}\n"));
                        failure.status().into()
                    }
                });
            }
            let error = Error::Input(sentence(&error.to_string()));
            message(format_args!("umbra: {error}\n"));
            process::exit(error.status().into())
        })
    }

    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        // What a run has left that was killed.
        temporary::sweep(&env::temp_dir(), temporary::FOLDER);
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

/// What clap says in several paragraphs, less the usage.
fn sentence(text: &str) -> String {
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = text.split("\n\n").map(words).filter(|paragraph| {
        !paragraph.is_empty()
            && !paragraph.starts_with("Usage: ")
            && !paragraph.starts_with("For more information")
    });
    let said = said.collect::<Vec<_>>().join("; ");
    format!("{}; --help shows what there is", said.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn wrong_options_are_answered_with_one_sentence() {
        for (arguments, expected) in [
            (
                &["run", "--kernel", "k", "--guest-faults", "no"][..],
                "invalid value 'no' for '--guest-faults <GUEST_FAULTS>' [possible values: trap, present, user, auto]; \
                 --help shows what there is",
            ),
            (
                &["run"],
                "the following required arguments were not provided: --kernel <FILE>; --help shows what there is",
            ),
            (
                &["rum"],
                "unrecognized subcommand 'rum'; tip: a similar subcommand exists: 'run'; --help shows what there is",
            ),
        ] {
            let error = Cli::try_parse_from(std::iter::once(&"umbra").chain(arguments)).unwrap_err();
            assert_eq!(sentence(&error.to_string()), expected);
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
