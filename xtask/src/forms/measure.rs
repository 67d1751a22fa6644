//! Runs the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use umbra_forms::Case;
use umbra_forms::generate::Entry;

use super::fuzz::Program;
use super::{output, records, words, write};
use crate::umbra_run::{self, Machine, Policy, word};

/// Memory of the guest, in MiB.
const MEMORY: &str = "32";
/// Seconds that all cases take at most.
const TIMEOUT: &str = "900";

/// An option of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum With {
    /// Alignment checks in ring 3
    Align,
    /// RFLAGS.TF: each case ends with a debug exception
    Step,
}

/// Which cases are left out when one has ended the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Alike {
    /// Those of the same instruction
    Instruction,
    /// Those of the same extension, such as SSE2; beyond extensions those of the same instruction
    Extension,
}

/// On which machine, and under what.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    pub machine: Machine,
    /// Under Umbra with this policy, or bare.
    pub policy: Option<Policy>,
    /// More options.
    pub options: &'a [String],
    /// What is special.
    pub with: Option<With>,
}

impl How<'_> {
    /// Machine and policy.
    pub fn name(&self) -> String {
        format!("{} {}", umbra_run::name(self.machine, self.policy), self.with_name())
            .trim_end()
            .into()
    }

    /// The kernel's option.
    pub fn with_name(&self) -> String {
        self.with.as_ref().map(word).unwrap_or_default()
    }
}

/// What a case did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The hash of it.
    Hash(u32),
    /// It ended the guest; why.
    Ended(String),
}

/// Outcomes of the cases that were run.
pub type Measurements = BTreeMap<Case, Outcome>;

/// All that is needed to run cases.
pub struct Runner<'a> {
    /// The tool, for the bare machine.
    pub bare: &'a Path,
    /// The tool with the Umbra that is to be judged.
    pub umbra: &'a Path,
    pub kernel: &'a Path,
    pub folder: &'a Path,
    pub table: &'a [Entry],
    /// How often a machine is started at most.
    pub starts: u32,
    /// What is left out when a case has ended the guest.
    pub alike: Alike,
}

impl Runner<'_> {
    /// Runs the cases. When one ends the guest, those alike are left out, and the guest starts
    /// again with the rest.
    ///
    /// # Errors
    /// The kernel did not start, or says nothing.
    pub fn measure(&self, cases: &[Case], how: &How<'_>) -> Result<Measurements> {
        let mut found = Measurements::new();
        let mut rest = cases.to_vec();
        let mut ended = BTreeSet::new();
        let start = Instant::now();
        let mut starts = 0;
        while !rest.is_empty() && starts < self.starts {
            starts += 1;
            let (stdout, reason) = self.start(&rest, how, "")?;
            let hashes = output::hashes(&stdout);
            ensure!(hashes.len() <= rest.len(), "the kernel ran more cases than it was given");
            found
                .extend(rest.iter().zip(&hashes).map(|(&case, &hash)| (case, Outcome::Hash(hash))));
            if hashes.len() == rest.len() {
                rest.clear();
                break;
            }
            ensure!(
                stdout.contains("forms: "),
                "{}: the kernel did not start: {reason}\n{stdout}",
                how.name()
            );
            let last = rest[hashes.len()];
            println!(
                "{}: ended by {}: {reason}",
                how.name(),
                super::select::describe(self.table, last)
            );
            found.insert(last, Outcome::Ended(reason));
            ended.insert(self.likeness(last));
            rest.drain(..=hashes.len());
            rest.retain(|&case| !ended.contains(&self.likeness(case)));
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{}: {} of {} cases in {seconds:.0} s and {starts} starts",
            how.name(),
            found.len(),
            cases.len()
        );
        Ok(found)
    }

    /// What cases have in common that end the guest for the same reason, most likely.
    fn likeness(&self, case: Case) -> (u32, bool) {
        let entry = &self.table[case.form()];
        let likeness = match self.alike {
            Alike::Instruction => entry.mnemonic() as u32,
            Alike::Extension if entry.is_extension() => u32::MAX - entry.features()[0] as u32,
            Alike::Extension => entry.mnemonic() as u32,
        };
        (likeness, case.kind().exits())
    }

    /// Runs single cases, for words about them.
    ///
    /// # Errors
    /// The kernel did not start.
    pub fn words(&self, cases: &[Case], how: &How<'_>) -> Result<BTreeMap<Case, Vec<String>>> {
        Ok(output::words(&self.start(cases, how, "show")?.0))
    }

    /// Runs programs, and starts again behind each that ends the guest.
    ///
    /// # Errors
    /// The kernel did not start, or says nothing.
    pub fn programs(&self, programs: &[Program], how: &How<'_>) -> Result<Vec<Option<Outcome>>> {
        let mut found = Vec::new();
        let mut starts = 0;
        while found.len() < programs.len() && starts < self.starts {
            starts += 1;
            let rest = &programs[found.len()..];
            let words: Vec<_> = rest.iter().flat_map(Program::words).collect();
            let (stdout, reason) = self.start(&words, how, "chain")?;
            let hashes = output::hashes(&stdout);
            ensure!(hashes.len() <= rest.len(), "the kernel ran more programs than it was given");
            ensure!(
                stdout.contains("forms: "),
                "{}: the kernel did not start: {reason}\n{stdout}",
                how.name()
            );
            found.extend(hashes.iter().map(|&hash| Some(Outcome::Hash(hash))));
            if hashes.len() < rest.len() {
                println!(
                    "{}: ended by program {:#x}: {reason}",
                    how.name(),
                    rest[hashes.len()].seed
                );
                found.push(Some(Outcome::Ended(reason)));
            }
        }
        found.resize(programs.len(), None);
        Ok(found)
    }

    /// Runs one program, for words about it.
    ///
    /// # Errors
    /// The kernel did not start.
    pub fn program_words(&self, program: &Program, how: &How<'_>) -> Result<Vec<String>> {
        let words: Vec<_> = program.words().collect();
        let cases = output::words(&self.start(&words, how, "chain show")?.0);
        Ok(cases.into_values().next().unwrap_or_default())
    }

    /// Starts the machine; returns the kernel's output, and the sentence about its end.
    fn start(&self, cases: &[Case], how: &How<'_>, append: &str) -> Result<(String, String)> {
        let path = |what: &str| self.folder.join(what);
        write(&path("table"), &records(self.table))?;
        write(&path("cases"), &words(cases))?;
        let umbra = if how.policy.is_some() { self.umbra } else { self.bare };
        let mut command = umbra_run::command(umbra, self.kernel, how.machine, how.policy);
        command.arg("--module").arg(path("table")).arg("--module").arg(path("cases"));
        let append = format!("{append} {}", how.with_name());
        command.args(["--append", append.trim(), "--memory", MEMORY, "--timeout", TIMEOUT]);
        if how.policy.is_some() {
            command.args(how.options);
        }
        let output = command.stdin(Stdio::null()).output().context("starting umbra")?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        write(&path(&format!("{}.log", how.name().replace(' ', "-"))), &output.stdout)?;
        Ok((stdout, umbra_run::end(&stderr).into()))
    }
}
