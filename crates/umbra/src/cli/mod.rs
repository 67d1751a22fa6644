//! The command line.

mod completions;
mod config;
mod man;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use config::Expanded;

use crate::console::{message, output, output_failure};
use crate::error::Error;
pub use crate::guest::TO_BE_MADE;
use crate::temporary;
use crate::{bench, compare, decode, doctor, html, image, run, schema, trace};
pub use config::ConfigOptions;

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
    Schema(schema::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

impl Cli {
    /// Takes the options of this program. If it is not to run with them, the user has been told
    /// why, or shown the help or the options that were asked for.
    ///
    /// # Errors
    /// The exit status that it is to end with.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
        let (cli, printed) = Cli::read(arguments.into_iter().collect())?;
        match printed {
            None => Ok(cli),
            Some(text) => {
                let shown = output(text).map(|()| ExitCode::SUCCESS);
                Err(shown.unwrap_or_else(|error| told(&error)))
            }
        }
    }

    /// Takes options; also all of them as a file, if the user asks for that.
    fn read(arguments: Vec<OsString>) -> Result<(Cli, Option<String>), ExitCode> {
        let program = Cli::command();
        let Expanded { arguments, file } =
            config::expand(&program, arguments).map_err(|error| told(&error))?;
        let parsed = program.clone().try_get_matches_from(arguments);
        let read = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
        let (cli, matches) = read.map_err(|error| {
            let Some(sentence) = refusal(&error) else {
                let shown = error.print().and_then(|()| io::stdout().flush());
                return match output_failure(shown) {
                    None => {
                        u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
                    }
                    Some(failure) => told(&failure),
                };
            };
            let with = file.map_or(String::new(), |file| format!(" (with the options of {file})"));
            told(&Error::Input(sentence + &with))
        })?;
        let printed = config::printed(&program, &matches).map_err(|error| told(&error))?;
        Ok((cli, printed))
    }

    /// Puts the options that a file has ([`ConfigOptions`]) into a command line.
    ///
    /// # Errors
    /// The file is wrong: the exit status. The user has been told.
    pub fn expand(arguments: Vec<OsString>) -> Result<Vec<OsString>, ExitCode> {
        let expanded = config::expand(&Cli::command(), arguments);
        expanded.map(|expanded| expanded.arguments).map_err(|error| told(&error))
    }

    /// Finds out what is wrong with the command line of `run` or `bench` before all of its files
    /// are there: those that are to be made have the name [`TO_BE_MADE`]. If something is, the user
    /// has been told.
    ///
    /// # Errors
    /// The exit status of that command line.
    pub fn check(arguments: impl IntoIterator<Item = OsString>) -> Result<(), ExitCode> {
        let (cli, _) = Cli::read(arguments.into_iter().collect())?;
        let checked = match &cli.command {
            Command::Run(arguments) => run::check_ahead(arguments),
            Command::Bench(arguments) => bench::check_ahead(arguments),
            _ => Ok(()),
        };
        checked.map_err(|error| told(&error))
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
            Command::Schema(arguments) => schema::run(&arguments),
            Command::Completions(arguments) => completions::run(&arguments),
            Command::Man(arguments) => man::run(&arguments),
        };
        outcome.unwrap_or_else(|error| told(&error))
    }
}

/// Tells the user why there is no result.
fn told(error: &Error) -> ExitCode {
    message(format_args!("umbra: {error}\n"));
    ExitCode::from(error)
}

/// What is wrong with a command line, in one sentence; none if clap shows help.
pub fn refusal(error: &clap::Error) -> Option<String> {
    // Without any argument it shows the help, too, as an error.
    let help = matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    (error.use_stderr() && !help).then(|| sentence(&error.to_string()))
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
    use super::*;

    #[test]
    fn wrong_options_are_answered_with_one_sentence() {
        for (arguments, expected) in [
            (
                &["run", "--kernel", "k", "--guest-faults", "no"][..],
                "invalid value 'no' for '--guest-faults <WHICH>' [possible values: trap, present, user, auto]; \
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
            let error =
                Cli::try_parse_from(std::iter::once(&"umbra").chain(arguments)).unwrap_err();
            assert_eq!(sentence(&error.to_string()), expected);
        }
    }

    /// On a terminal of 80 columns and 24 lines, with a line for the prompt.
    #[test]
    fn short_help_fits_on_a_screen() {
        let mut program = Cli::command().term_width(80);
        program.build();
        let names: Vec<String> =
            program.get_subcommands().map(|one| one.get_name().into()).collect();
        let of_commands = names.iter().filter(|name| *name != "help").map(|name| {
            let command = program.find_subcommand(name).expect("it was listed");
            (name.clone(), command.clone().term_width(80).render_help().to_string())
        });
        let mut too_long = Vec::new();
        for (name, help) in
            of_commands.chain([("umbra".into(), program.clone().render_help().to_string())])
        {
            let wide = help.lines().any(|line| line.chars().count() > 80);
            if help.lines().count() > 23 || wide {
                too_long.push(format!("{name}: {} lines\n{help}", help.lines().count()));
            }
        }
        assert!(too_long.is_empty(), "{}", too_long.join("\n"));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
