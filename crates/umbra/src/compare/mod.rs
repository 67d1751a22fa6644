//! `umbra compare`: results beside each other.

mod table;

use std::path::PathBuf;
use std::process::ExitCode;

pub use table::{Style, table};

use crate::console::output;
use crate::error::Error;
use crate::report::{self, Named};

/// Show results beside each other, with ratios to the first.
///
/// Per phase and operation: exits for memory, all exits, instructions.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Results of `umbra run --stats` or `umbra bench --stats`, the base first
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Only this phase; more than one may be given
    #[arg(long = "phase", value_name = "NAME")]
    pub phases: Vec<String>,

    /// One table in Markdown: exits for memory, and instructions
    #[arg(long)]
    pub markdown: bool,
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
    let mut results = arguments.files.iter().map(|path| report::read(path)).collect::<Result<Vec<_>, _>>()?;
    for wanted in &arguments.phases {
        let known = |result: &Named| result.statistics.phase(wanted).is_some();
        if !results.iter().any(known) {
            return Err(Error::Input(format!(
                "none of the results has a phase {wanted}; look into one for its names"
            )));
        }
    }
    if !arguments.phases.is_empty() {
        for result in &mut results {
            result.statistics.phases.retain(|phase| arguments.phases.contains(&phase.name));
        }
    }
    output(table(&results, if arguments.markdown { Style::Markdown } else { Style::Plain }))?;
    Ok(ExitCode::SUCCESS)
}

/// What was measured, in few words: `umbra bypass -cr3, penryn`.
pub fn describe(hypervisor: &str, guest_faults: &str, without: &[String], machine: &str) -> String {
    let without: String = without.iter().map(|name| format!(" -{name}")).collect();
    match hypervisor {
        "umbra" => format!("umbra {guest_faults}{without}, {machine}"),
        other => format!("{other}, {machine}"),
    }
}
