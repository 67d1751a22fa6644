//! `umbra report`: results and a trace as one HTML file that needs nothing else.

mod bins;
mod chart;
mod groups;
mod history;
mod page;
mod panels;
mod regions;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::error::Error;
use crate::report;
use crate::signals;

/// What is written, for the user.
const WHAT: &str = "the report";

/// Make one self-contained HTML file: exits per operation by cause, through the boot, and by region.
///
/// The first result is the one in question; others, such as the peer's, stand beside it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Results of `umbra run --stats`, eight at most; `-` is standard input
    #[arg(value_name = "RESULT", required = true, num_args = 1..=8)]
    results: Vec<PathBuf>,

    /// A trace of `umbra run --trace`, for the exits through the boot and the host faults by region
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Where the page goes; it appears when it is whole
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

/// Makes the page.
///
/// # Errors
/// One of the inputs is not what it should be, or the page cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let output = &arguments.output;
    let inputs = arguments.results.iter().chain(&arguments.trace).map(PathBuf::as_path);
    report::check_inputs(inputs.clone())?;
    report::check_outputs(&[(WHAT, Some(output))], inputs)?;
    signals::end_at_the_first()?;
    let results = arguments.results.iter().map(|path| report::read(path)).collect::<Result<Vec<_>, _>>()?;
    let history = arguments.trace.as_deref().map(history::read).transpose()?;
    let page = page::page(&results, history.as_ref());
    report::write_output(WHAT, output, Ok(page.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}
