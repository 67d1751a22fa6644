//! `cargo xtask trial-mutants --hypervisor umbra`: Umbra with one rule of its MMU broken, on trial.
//!
//! The rules are those of `cargo xtask sabotage`, but the judge is the trial's: all that it knows
//! is what a guest observes. One build has all rules woven in. A number in the tool's file says
//! which one is broken, as bare metal has no environment.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use umbra_sabotage::{Mutation, Switch};
use umbra_trial::judge::Tally;
use umbra_trial::program::Program;

use super::booted::{self, Booted, Place};
use super::suspect::{Found, Outcome};
use super::{FOUND, finding};
use crate::setup::Setup;
use crate::umbra_run::{Policy, word};
use crate::{sabotage, woven};

/// Rules that nothing is expected of.
const UNSEEN: &str = include_str!("rules.toml");

/// The name of Umbra with no rule broken.
const CLEAN: &str = "clean";

/// The machine.
const MACHINE: booted::Machine = booted::Machine::Penryn;

/// The treatments of guest faults that a rule is tried under, and which part of the programs run
/// there. The other treatment shows what the first one keeps from Umbra.
const TREATMENTS: [(Policy, u64); 2] = [(Policy::Auto, 1), (Policy::Trap, 2)];

/// So many programs a rule may survive.
pub const PROGRAMS: u64 = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    unseen: Vec<Unseen>,
}

/// Rules that the trial does not see broken.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unseen {
    why: String,
    rules: Vec<String>,
}

/// Why no program is expected to show this rule, if none is.
fn reason(rule: &str) -> Option<String> {
    let file: File = toml::from_str(UNSEEN).expect("a test reads it");
    file.unseen
        .into_iter()
        .find(|unseen| unseen.rules.iter().any(|name| name == rule))
        .map(|unseen| unseen.why)
}

/// What came of a rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    rule: String,
    /// How it was broken and tried.
    key: String,
    programs: u64,
    steps: u64,
    seconds: f64,
    conviction: Option<Conviction>,
}

/// The first conviction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Conviction {
    symptom: String,
    detail: String,
    program: u64,
    step: Option<usize>,
    treatment: String,
}

impl Row {
    /// Whether the trial sees this rule broken if, and only if, it is expected to.
    fn is_well(&self) -> bool {
        let is_expected = self.rule != CLEAN && reason(&self.rule).is_none();
        self.conviction.is_some() == is_expected
    }

    fn text(&self) -> String {
        match &self.conviction {
            Some(Conviction { symptom, program, treatment, .. }) => {
                // Behind the second colon are the numbers of this run.
                let short: Vec<&str> = symptom.splitn(3, ": ").take(2).collect();
                format!(
                    "| {} | {} | {program}, {treatment} | {:.0} s |",
                    self.rule,
                    short.join(": "),
                    self.seconds
                )
            }
            None => {
                let why = reason(&self.rule).map_or_else(String::new, |why| format!(". {why}"));
                format!(
                    "| {} | nothing in {} programs, {} steps{why} | | |",
                    self.rule, self.programs, self.steps
                )
            }
        }
    }
}

/// The table, as Markdown.
fn table(rows: &[Row]) -> String {
    let broken = || rows.iter().filter(|row| row.rule != CLEAN);
    let convicted = broken().filter(|row| row.conviction.is_some()).count();
    let mut text = format!(
        "Umbra with one rule broken, on trial on {}: {convicted} of {} rules are convicted\n\n\
         | rule | convicted by | program | after |\n|---|---|---|---|\n",
        word(&MACHINE),
        broken().count()
    );
    for row in rows {
        let _ = writeln!(text, "{}", row.text());
    }
    text
}

/// Tries the rules of these names, or all.
///
/// # Errors
/// The hypervisor cannot be built, or does not run with no rule broken.
pub fn run(names: &[String], seed: u64, programs: u64) -> Result<ExitCode> {
    let rules = sabotage::rules()?;
    let known = |name: &str| name == CLEAN || rules.iter().any(|rule| rule.name == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        bail!("there is no rule {name}; there are {CLEAN}, {}", all.join(", "));
    }
    // What the emulator needs.
    Setup::new()?;
    let copy = woven::Copy::fresh("sabotage-trial")?;
    copy.write_first(&umbra_sabotage::weave(&copy.src(), &rules, Switch::File)?)?;
    let trial = Trial { umbra: copy.umbra()?, folder: copy.folder, seed, programs };
    let report = trial.folder.join("report.json");
    let mut rows: Vec<Row> = finding::earlier_rows(&report)?;
    let order: Vec<&str> =
        [CLEAN].into_iter().chain(rules.iter().map(|rule| rule.name.as_str())).collect();
    rows.retain(|row| order.contains(&row.rule.as_str()));
    let numbered = [None].into_iter().chain(rules.iter().map(Some)).zip(0..);
    let mut numbered: Vec<(Option<&Mutation>, u32)> = numbered.collect();
    // Those of which something is expected come first.
    numbered.sort_by_key(|(rule, _)| rule.is_some_and(|rule| reason(&rule.name).is_some()));
    for (rule, number) in numbered {
        let name = rule.map_or(CLEAN, |rule| rule.name.as_str());
        let key = trial.key(rule);
        let is_known = rows.iter().any(|row| row.rule == name && row.key == key);
        // Without the unbroken build nothing is known of the others.
        let is_chosen = names.is_empty() || rule.is_none() || names.iter().any(|one| one == name);
        if is_known || !is_chosen {
            continue;
        }
        let row = trial.put_on_trial(name, key, number)?;
        eprintln!("xtask: {}", row.text());
        ensure!(
            rule.is_some() || row.conviction.is_none(),
            "Umbra is convicted with no rule broken: {:?}",
            row.conviction
        );
        rows.retain(|row| row.rule != name);
        rows.push(row);
        rows.sort_by_key(|row| order.iter().position(|name| *name == row.rule));
        finding::put(&report, &serde_json::to_string_pretty(&rows)?)?;
        finding::put(&report.with_extension("txt"), &table(&rows))?;
    }
    print!("{}", table(&rows));
    for row in rows.iter().filter(|row| !row.is_well()) {
        println!("not as xtask/src/trial/rules.toml has it: {}", row.rule);
    }
    println!("report: {}", report.with_extension("txt").display());
    let well = rows.iter().all(Row::is_well);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// The woven build, and how rules are tried.
struct Trial {
    umbra: PathBuf,
    folder: PathBuf,
    seed: u64,
    programs: u64,
}

impl Trial {
    /// What a row depends on.
    fn key(&self, rule: Option<&Mutation>) -> String {
        let edits = rule.map_or(&[][..], |rule| &rule.edits);
        let tried = format!("{} programs from {}", self.programs, self.seed);
        edits.iter().fold(tried, |key, edit| {
            format!("{key}\n{}\n{}\n{}", edit.file.display(), edit.keep, edit.broken)
        })
    }

    /// Tries the rule of this number until it is convicted, or has survived all programs.
    fn put_on_trial(&self, rule: &str, key: String, number: u32) -> Result<Row> {
        let umbra = self.folder.join("umbra");
        break_rule(&self.umbra, &umbra, number)?;
        let (start, mut programs, mut tally) = (Instant::now(), 0, Tally::default());
        let mut conviction = None;
        for (policy, part) in TREATMENTS {
            let place = Place { machine: MACHINE, umbra: Some(policy) };
            let booted = Booted::new(place, &self.folder, Some(umbra.clone()), false)?;
            let numbers = self.seed..self.seed + self.programs.div_ceil(part);
            let chosen: Vec<Program> = numbers.map(|seed| MACHINE.program(seed)).collect();
            let outcomes = booted.run_until_found(&chosen)?;
            for (program, outcome) in chosen.iter().zip(outcomes) {
                programs += 1;
                match outcome {
                    Outcome::Clean(one) => tally.add(&one),
                    Outcome::Found(Found { symptom, detail, step, .. }) => {
                        let (program, treatment) = (program.seed, word(&policy));
                        conviction = Some(Conviction { symptom, detail, program, step, treatment });
                    }
                }
            }
            if conviction.is_some() {
                break;
            }
        }
        let (steps, seconds) = (tally.steps, start.elapsed().as_secs_f64());
        Ok(Row { rule: rule.into(), key, programs, steps, seconds, conviction })
    }
}

/// Copies the tool with the rule of this number broken in the hypervisor that is in it.
fn break_rule(umbra: &Path, copy: &Path, number: u32) -> Result<()> {
    let mut program = fs::read(umbra).with_context(|| umbra.display().to_string())?;
    umbra_sabotage::set(&mut program, number).with_context(|| umbra.display().to_string())?;
    // A copy that still runs, as after an interrupted trial, cannot be written.
    let new = copy.with_extension("new");
    fs::write(&new, program)
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&new, copy))
        .with_context(|| copy.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_are_sentences_for_rules_that_there_are() {
        let rules = sabotage::rules().unwrap();
        let names: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let file: File = toml::from_str(UNSEEN).unwrap();
        let mut listed = BTreeSet::new();
        for Unseen { why, rules } in &file.unseen {
            assert!(why.ends_with('.') && !rules.is_empty(), "{why}");
            for rule in rules {
                assert!(names.contains(rule.as_str()), "there is no rule {rule}");
                assert!(listed.insert(rule), "{rule} has two reasons");
            }
        }
        assert!(listed.len() < names.len());
    }

    fn row(rule: &str, convicted: bool) -> Row {
        let conviction = convicted.then(|| Conviction {
            symptom: "guest: a page fault is missing".into(),
            detail: "seen: a\nexpected: b".into(),
            program: 7,
            step: Some(3),
            treatment: "auto".into(),
        });
        Row { rule: rule.into(), key: "k".into(), programs: 2, steps: 90, seconds: 1.6, conviction }
    }

    #[test]
    fn a_rule_is_convicted_or_has_a_reason() {
        let file: File = toml::from_str(UNSEEN).unwrap();
        let listed = &file.unseen[0].rules[0];
        assert!(row(CLEAN, false).is_well() && !row(CLEAN, true).is_well());
        assert!(row(listed, false).is_well() && !row(listed, true).is_well());
        assert!(row("KeepUser", true).is_well() && !row("KeepUser", false).is_well());
        let table = table(&[row(CLEAN, false), row("KeepUser", true), row(listed, false)]);
        assert!(table.contains("1 of 2 rules are convicted"), "{table}");
        let convicted = "| KeepUser | guest: a page fault is missing | 7, auto | 2 s |\n";
        assert!(table.contains(convicted), "{table}");
        let unseen = format!("nothing in 2 programs, 90 steps. {} | | |", file.unseen[0].why);
        assert!(table.contains(&unseen), "{table}");
    }
}
