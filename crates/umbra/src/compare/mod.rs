//! `umbra compare`: results beside each other.

mod differences;
mod rows;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

pub use differences::{differences, differences_of_trace};
pub use table::{Style, table};

use crate::console::output;
use crate::error::Error;
use crate::report::{self, Named};
use crate::untrusted::{Untrusted, shown};

/// Show results beside each other, with ratios to the first.
///
/// Per phase and operation: exits for memory, all exits, instructions. Whatever makes the results
/// unequal stands before the figures: another kernel, command line, memory or amount of work.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Results of `umbra run --stats` or `umbra bench --stats`, the base first; `-` is standard
    /// input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Only this phase; more than one may be given
    #[arg(long = "phase", value_name = "NAME")]
    pub phases: Vec<String>,

    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// for a terminal
    Table,
    /// one table in Markdown: exits for memory, and instructions
    Markdown,
    /// a line for each figure of each phase of each result; `crates/umbra/SCHEMA.md` has the
    /// columns
    Csv,
    /// the same figures, what the results are, and how they differ
    Json,
}

/// Compares.
///
/// # Errors
/// A file that cannot be read or is no result, a phase that none has, or less than two files.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    if arguments.files.len() < 2 {
        return Err(Error::Input(
            "there is nothing to compare; give two results or more, the base first".into(),
        ));
    }
    report::check_inputs(arguments.files.iter().map(PathBuf::as_path))?;
    let mut results =
        arguments.files.iter().map(|path| report::read(path)).collect::<Result<Vec<_>, _>>()?;
    for wanted in &arguments.phases {
        let known = |result: &Named| result.statistics.phase(wanted).is_some();
        if !results.iter().any(known) {
            return Err(Error::Input(format!(
                "none of the results has a phase {}; they have {}",
                shown(wanted),
                phases_of(&results)
            )));
        }
    }
    if !arguments.phases.is_empty() {
        for result in &mut results {
            result
                .statistics
                .phases
                .retain(|phase| arguments.phases.iter().any(|name| phase.name == name.as_str()));
        }
    }
    output(match arguments.format {
        Format::Table => table(&results, Style::Plain),
        Format::Markdown => table(&results, Style::Markdown),
        Format::Csv => rows::csv(&results),
        Format::Json => rows::json(&results),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The names of all phases that results have.
fn phases_of(results: &[Named]) -> String {
    let names: Vec<String> = table::names(results).into_iter().map(shown).collect();
    if names.is_empty() { "no phases at all".into() } else { names.join(", ") }
}

/// What was measured, in few words: `umbra bypass -cr3, penryn`.
pub fn describe(
    hypervisor: &Untrusted,
    guest_faults: &Untrusted,
    without: &[Untrusted],
    machine: &Untrusted,
) -> String {
    let without: String = without.iter().map(|name| format!(" -{name}")).collect();
    match hypervisor.as_str() {
        "umbra" => format!("umbra {guest_faults}{without}, {machine}"),
        _ => format!("{hypervisor}, {machine}"),
    }
}
