//! `umbra report`: results and a trace as one HTML file that needs nothing else.

mod bins;
mod chart;
pub mod document;
mod groups;
mod history;
mod page;
mod panels;
mod regions;
mod svg;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::error::Error;
use crate::report;
use crate::signals;

/// What is written, for the user.
const WHAT: &str = "the report";

/// More bars beside each other would be too thin.
const MOST_RESULTS: usize = 8;

/// Draw results and a trace: one self-contained HTML file.
///
/// It shows exits per operation by cause, through the boot, and by region.
///
/// The first result is the one in question; others, such as the peer's, stand beside it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Results of `umbra run --stats`, eight at most; `-` is standard input
    #[arg(value_name = "RESULT", required = true)]
    results: Vec<PathBuf>,

    /// A trace of `umbra run --trace`, for the exits through the boot and the host faults by region
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Where the page goes; it appears when it is whole
    #[arg(long, short, value_name = "FILE", required_unless_present = "svg")]
    output: Option<PathBuf>,

    /// Write each drawing of the page as an SVG file into this folder
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
}

/// Makes the page.
///
/// # Errors
/// One of the inputs is not what it should be, or the page cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let (output, given) = (arguments.output.as_deref(), arguments.results.len());
    if given > MOST_RESULTS {
        return Err(Error::Input(format!(
            "{given} results do not fit beside each other; give {MOST_RESULTS} at most"
        )));
    }
    let inputs = arguments.results.iter().chain(&arguments.trace).map(PathBuf::as_path);
    report::check_inputs(inputs.clone())?;
    report::check_outputs(&[(WHAT, output)], inputs.clone())?;
    signals::end_at_the_first()?;
    let results =
        arguments.results.iter().map(|path| report::read(path)).collect::<Result<Vec<_>, _>>()?;
    let history = arguments.trace.as_deref().map(history::read).transpose()?;
    if let Some(folder) = &arguments.svg {
        write_drawings(folder, &svg::drawings(&results, history.as_ref()), inputs)?;
    }
    if let Some(output) = output {
        let page = page::page(&results, history.as_ref());
        report::write_output(WHAT, output, Ok(page.as_bytes()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes drawings into a folder, which is made if it is not there.
fn write_drawings<'a>(
    folder: &Path,
    drawings: &[svg::Drawing],
    inputs: impl Iterator<Item = &'a Path> + Clone,
) -> Result<(), Error> {
    report::make_folder(folder)?;
    let files: Vec<PathBuf> = drawings.iter().map(|drawing| folder.join(&drawing.name)).collect();
    for path in &files {
        report::check_outputs(&[(DRAWING, Some(path))], inputs.clone())?;
    }
    files.iter().zip(drawings).try_for_each(|(path, drawing)| {
        report::write_output(DRAWING, path, Ok(drawing.svg.as_bytes()))
    })
}

/// What is written, for the user.
const DRAWING: &str = "a drawing";
