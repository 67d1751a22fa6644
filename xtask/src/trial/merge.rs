//! `cargo xtask trial-merge`: the campaigns of several machines as one report.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::campaign::{Finding, State, save};
use super::finish;

/// Make one report of several campaigns on one suspect.
///
/// Findings of one symptom become one, with the shortest program. The exit status is 10 if there is
/// a finding.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask trial-merge --output merged target/trial/control-qemu/seed-*")]
pub struct Arguments {
    /// The folders of the campaigns, as `cargo xtask trial` names them: those with report.json
    #[arg(required = true, value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// Where the report goes
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

/// Reads, merges, writes.
///
/// # Errors
/// A folder has no report, or not of the same suspect, or two have the same programs.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut all: Option<State> = None;
    // Where the programs of each finding are.
    let mut places: Vec<(PathBuf, usize)> = Vec::new();
    for folder in &arguments.folders {
        let state = State::read(&folder.join("report.json"))?;
        let folders = (1..=state.findings.len()).map(|number| (folder.clone(), number));
        match &mut all {
            None => {
                places.extend(folders);
                all = Some(state);
            }
            Some(all) => {
                check(all, &state).with_context(|| folder.display().to_string())?;
                add(all, state, folders, &mut places);
            }
        }
    }
    let all = all.context("there is a folder")?;
    ensure!(
        !arguments.output.join("report.json").exists(),
        "{} has a report already: give --output a folder that has none",
        arguments.output.display()
    );
    fs::create_dir_all(&arguments.output)
        .with_context(|| arguments.output.display().to_string())?;
    for (number, (folder, old)) in (1..).zip(&places) {
        for extension in ["json", "txt"] {
            let name = |number: usize| format!("finding-{number}.{extension}");
            let from = folder.join(name(*old));
            fs::copy(&from, arguments.output.join(name(number)))
                .with_context(|| format!("copying {}", from.display()))?;
        }
    }
    save(&arguments.output, &all)?;
    println!("{}", all.line());
    println!("report: {}", arguments.output.join("report.html").display());
    finish(all.findings.len())
}

/// Whether a campaign can be added to others.
fn check(all: &State, more: &State) -> Result<()> {
    let same = (&all.suspect, &all.cpu) == (&more.suspect, &more.cpu);
    ensure!(
        same,
        "this is of {} on {}, not of {} on {}",
        more.suspect,
        more.cpu,
        all.suspect,
        all.cpu
    );
    let numbers = |state: &State| -> Vec<(u64, u64)> {
        state.ranges().map(|(seed, programs)| (seed, seed.saturating_add(programs))).collect()
    };
    for (from, to) in numbers(more) {
        let twice = numbers(all).into_iter().any(|(first, end)| from < end && first < to);
        ensure!(!twice, "the programs from {from} on are those of another folder, too");
    }
    Ok(())
}

/// Adds a campaign to others.
fn add(
    all: &mut State,
    more: State,
    folders: impl Iterator<Item = (PathBuf, usize)>,
    places: &mut Vec<(PathBuf, usize)>,
) {
    let ranges: BTreeSet<(u64, u64)> = all.ranges().chain(more.ranges()).collect();
    all.campaigns = ranges.into_iter().collect();
    all.seed = all.campaigns[0].0;
    all.programs += more.programs;
    all.tally.add(&more.tally);
    all.seconds += more.seconds;
    for (finding, place) in more.findings.into_iter().zip(folders) {
        let known = all.findings.iter().position(|known| known.symptom == finding.symptom);
        let Some(known) = known else {
            all.findings.push(finding);
            places.push(place);
            continue;
        };
        let times = all.findings[known].times + finding.times;
        if finding.length < all.findings[known].length {
            all.findings[known] = finding;
            places[known] = place;
        }
        all.findings[known] = Finding { times, ..all.findings[known].clone() };
    }
}

#[cfg(test)]
mod tests {
    use super::super::campaign::tests::state;
    use super::*;

    #[test]
    fn findings_of_one_symptom_become_the_shortest() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str, state: &State| {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            for number in 1..=state.findings.len() {
                for extension in ["json", "txt"] {
                    let file = folder.join(format!("finding-{number}.{extension}"));
                    fs::write(file, format!("{name} {number}")).unwrap();
                }
            }
            save(&folder, state).unwrap();
            folder
        };
        let first = state(1, 10, &[("a", 5), ("b", 9)]);
        let second = state(11, 10, &[("c", 3), ("a", 2)]);
        let folders = vec![folder("x", &first), folder("y", &second)];
        let output = root.path().join("merged");
        let arguments = Arguments { folders, output: output.clone() };
        run(&arguments).unwrap();
        let merged = State::read(&output.join("report.json")).unwrap();
        let found: Vec<(&str, usize, u64)> = merged
            .findings
            .iter()
            .map(|finding| (finding.symptom.as_str(), finding.length, finding.times))
            .collect();
        assert_eq!(found, [("a", 2, 2), ("b", 9, 1), ("c", 3, 1)]);
        let text =
            |number| fs::read_to_string(output.join(format!("finding-{number}.txt"))).unwrap();
        assert_eq!([1, 2, 3].map(text), ["y 2", "x 2", "y 1"]);
        assert_eq!((merged.programs, merged.campaigns), (20, vec![(1, 10), (11, 10)]));
        // A merged report is merged again, but nothing is counted twice.
        let third = folder("z", &state(15, 10, &[]));
        let arguments = Arguments { folders: vec![output, third], output: root.path().join("all") };
        let error = format!("{:#}", run(&arguments).unwrap_err());
        assert!(
            error.ends_with("the programs from 15 on are those of another folder, too"),
            "{error}"
        );
    }

    #[test]
    fn suspects_are_not_mixed() {
        let other = State { suspect: "linux-image-y".into(), ..state(50, 1, &[]) };
        let error = check(&state(1, 10, &[]), &other).unwrap_err().to_string();
        assert!(error.starts_with("this is of linux-image-y on "), "{error}");
    }
}
