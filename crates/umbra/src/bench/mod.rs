//! `umbra bench`: the workload under fixed conditions.

mod arguments;
mod child;
mod median;

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

/// What is written, for the user.
const WHAT: &str = "the result";

/// Measures, prints, and writes what was asked for.
///
/// # Errors
/// Wrong input, or a failure on this host.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    arguments.check()?;
    let command_line = arguments.command_line()?;
    if let Some(folder) = &arguments.ablation {
        fs::create_dir_all(folder).map_err(|error| {
            Error::Input(format!("cannot make the folder {}: {error}; give another one", folder.display()))
        })?;
    }
    let contestants = arguments.contestants();
    let whats = [WHAT, "the peer's result"].into_iter().chain(iter::repeat("another result"));
    let outputs: Vec<_> = whats.zip(contestants.iter().map(|(_, path)| path.as_deref())).collect();
    report::check_outputs(&outputs, arguments.inputs())?;
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
        let result = median::median(repeats);
        // At once: what comes next may fail.
        path.as_ref().map_or(Ok(()), |path| report::write_statistics(WHAT, path, &result))?;
        output(format!("{}\n\n{}\n", name(&contestant, arguments), report::table(&result)))?;
        results.push((name(&contestant, arguments), result));
    }
    if results.len() > 1 {
        let named: Vec<_> =
            results.into_iter().map(|(name, statistics)| Named { name, statistics }).collect();
        let style = if arguments.ablation.is_some() { Style::Short } else { Style::Plain };
        output(compare::table(&named, style))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A contestant for the user.
fn name(contestant: &Contestant, arguments: &Arguments) -> String {
    compare::describe(
        contestant.hypervisor.name(),
        GuestFaults::from(contestant.guest_faults).name(),
        &guest::names(&contestant.without),
        &arguments.machine.name(),
    )
}
