//! Umbra's automation: `cargo xtask COMMAND`.
//!
//! One file or folder per command; [`setup`] is what they share: it makes a fresh machine able to
//! build and run.
#![forbid(unsafe_code)]

mod bench;
mod book;
mod build;
mod campaign;
mod coverage;
mod crates;
mod exact;
mod exhaustive;
mod forms;
mod fuzz;
mod guests;
mod machine_fuzz;
mod mutants;
mod paths;
mod process;
#[path = "../../crates/reference/examples/arguments/mod.rs"]
mod reference_options;
mod report;
mod run;
mod sabotage;
mod schedule;
mod setup;
mod test;
mod tool;
mod tree;
mod trial;
mod umbra_run;
mod unsafe_count;
mod woven;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Umbra's automation.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Arguments),
    Bench(bench::Arguments),
    Test(test::Arguments),
    Build(build::Arguments),
    Book(book::Arguments),
    #[command(hide = true)]
    BookLinks(book::links::Arguments),
    Campaign(campaign::Arguments),
    Exhaustive(exhaustive::Arguments),
    Schedule(schedule::Arguments),
    Sabotage(sabotage::Arguments),
    Mutants(mutants::Arguments),
    Fuzz(fuzz::Arguments),
    Coverage(coverage::Arguments),
    Crates(crates::Arguments),
    UnsafeCount(unsafe_count::Arguments),
    Guests(guests::Arguments),
    Forms(forms::Arguments),
    Exact(exact::Arguments),
    MachineFuzz(machine_fuzz::Arguments),
    Trial(trial::Arguments),
    TrialMerge(trial::merge::Arguments),
    TrialMutants(trial::mutants::Arguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return show(&error),
    };
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Book(arguments) => book::run(&arguments),
        Command::BookLinks(arguments) => book::links::run(&arguments),
        Command::Campaign(arguments) => campaign::run(&arguments),
        Command::Exhaustive(arguments) => exhaustive::run(&arguments),
        Command::Schedule(arguments) => schedule::run(&arguments),
        Command::Sabotage(arguments) => sabotage::run(&arguments),
        Command::Mutants(arguments) => mutants::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Coverage(arguments) => coverage::run(&arguments),
        Command::Crates(arguments) => crates::run(&arguments),
        Command::UnsafeCount(arguments) => unsafe_count::run(&arguments),
        Command::Guests(arguments) => guests::run(&arguments),
        Command::Forms(arguments) => forms::run(&arguments),
        Command::Exact(arguments) => exact::run(&arguments),
        Command::MachineFuzz(arguments) => machine_fuzz::run(&arguments),
        Command::Trial(arguments) => trial::run(&arguments),
        Command::TrialMerge(arguments) => trial::merge::run(&arguments),
        Command::TrialMutants(arguments) => trial::mutants::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// Shows help, or what is wrong, in one sentence. Help that cannot be written is a failure, but for
/// a reader that has had enough of it.
fn show(error: &clap::Error) -> ExitCode {
    let status = u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
    if let Some(sentence) = umbra::cli::refusal(error) {
        eprintln!("xtask: {sentence}");
        return status;
    }
    match error.print().and_then(|()| io::stdout().flush()) {
        Err(failure) if failure.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("xtask: cannot write to standard output: {failure}");
            ExitCode::FAILURE
        }
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn help_has_one_line_for_each_command() {
        let mut program = Arguments::command().term_width(80);
        let help = program.render_help().to_string();
        let listed = program.get_subcommands().filter(|one| !one.is_hide_set()).count();
        // With the name, the usage, `help` and the one option.
        assert!(help.lines().count() <= listed + 9, "{help}");
    }
}
