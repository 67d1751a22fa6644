//! `umbra bench`: the workload under fixed conditions.

mod arguments;
mod child;
mod median;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, iter};

use umbra_telemetry::GuestFaults;

pub use arguments::{Against, Arguments, Contestant};
use child::{Child, Ended};

use crate::compare::{self, Style};
use crate::console::{message, output};
use crate::error::Error;
use crate::guest;
use crate::report::{self, Named};
use crate::run;

/// What is written, for the user.
const WHAT: &str = "the result";

/// Finds out what would keep a measurement from starting, before all files are there
/// ([`guest::TO_BE_MADE`]) and the programs are installed.
///
/// # Errors
/// Wrong input.
pub fn check_ahead(arguments: &Arguments) -> Result<(), Error> {
    check(arguments, run::check_ahead).map(drop)
}

/// What is going to be measured: the guest's command line, and where results go.
struct Plan<'a> {
    command_line: String,
    contestants: Vec<(Contestant, Option<PathBuf>)>,
    _folder: Option<Folder<'a>>,
}

fn check(
    arguments: &Arguments,
    check_run: fn(&run::Arguments) -> Result<(), Error>,
) -> Result<Plan<'_>, Error> {
    arguments.check()?;
    let command_line = arguments.command_line()?;
    let contestants = arguments.contestants();
    let folder = arguments.ablation.as_deref().map(Folder::make).transpose()?;
    let whats = [WHAT, "the peer's result"].into_iter().chain(iter::repeat("another result"));
    let outputs: Vec<_> = whats.zip(contestants.iter().map(|(_, path)| path.as_deref())).collect();
    report::check_outputs(&outputs, arguments.inputs())?;
    for (contestant, _) in &contestants {
        child::check(arguments, contestant, &command_line, check_run)?;
    }
    Ok(Plan { command_line, contestants, _folder: folder })
}

/// Measures, prints, and writes what was asked for.
///
/// # Errors
/// Wrong input, or a failure on this host.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let Plan { command_line, contestants, _folder } = check(arguments, run::check)?;
    let child = Child::new()?;
    let mut results = Vec::new();
    for (contestant, path) in contestants {
        let mut repeats = Vec::new();
        for repeat in 1..=arguments.repeat {
            let name = name(&contestant, arguments);
            message(format_args!("umbra: {name}, run {repeat} of {}\n", arguments.repeat));
            match child.measure(arguments, &contestant, &command_line)? {
                Ended::Well(statistics) => repeats.push(*statistics),
                Ended::Badly(status) => return Ok(ExitCode::from(status)),
            }
        }
        let mut result = median::median(repeats);
        arguments.select(&mut result);
        // At once: what comes next may fail.
        path.as_ref().map_or(Ok(()), |path| report::write_statistics(WHAT, path, &result))?;
        output(format!("{}\n\n{}\n", name(&contestant, arguments), report::table(&result)))?;
        let spread = report::spread(&result);
        if !spread.is_empty() {
            output(format!("{spread}\n"))?;
        }
        results.push((name(&contestant, arguments), result));
    }
    if results.len() > 1 {
        let named: Vec<_> = results
            .into_iter()
            .map(|(name, statistics)| Named { name: name.into(), statistics })
            .collect();
        let style = if arguments.ablation.is_some() { Style::Short } else { Style::Plain };
        output(compare::table(&named, style))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The folder of an ablation's results. One that was made for them goes again if none came into it.
struct Folder<'a> {
    made: Option<&'a Path>,
}

impl<'a> Folder<'a> {
    fn make(path: &'a Path) -> Result<Folder<'a>, Error> {
        let is_made = report::make_folder(path)?;
        Ok(Folder { made: is_made.then_some(path) })
    }
}

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        // Fails if a result is in it.
        let _ = self.made.map(fs::remove_dir);
    }
}

/// A contestant for the user.
fn name(contestant: &Contestant, arguments: &Arguments) -> String {
    compare::describe(
        &contestant.hypervisor.name().into(),
        &GuestFaults::from(contestant.guest_faults).name().into(),
        &guest::names(&contestant.without),
        &arguments.machine.name().into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_result_goes_again() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("ablation");
        drop(Folder::make(&path).unwrap());
        assert!(!path.exists());
        let folder = Folder::make(&path).unwrap();
        fs::write(path.join("whole.json"), "").unwrap();
        drop(folder);
        assert!(path.exists());
        // One that was there stays, and none is made in a folder that was not.
        fs::remove_file(path.join("whole.json")).unwrap();
        drop(Folder::make(&path).unwrap());
        assert!(path.exists());
        assert!(
            Folder::make(&parent.path().join("a/b")).is_err() && !parent.path().join("a").exists()
        );
        assert!(Folder::make(Path::new("/dev/null")).is_err());
        assert!(Folder::make(Path::new("-")).is_err_and(|error| error.to_string().contains("./-")));
    }
}
