//! Whatever is on trial.

use std::path::Path;

use anyhow::{Context, Result};
use umbra_trial::judge::{Conviction, Tally};
use umbra_trial::program::Program;

/// Runs programs, each on a guest of its own.
pub trait Suspect {
    /// Runs a program and judges it.
    ///
    /// # Errors
    /// The program could not be run: nothing is known about the suspect.
    fn run(&mut self, program: &Program) -> Result<Outcome>;

    /// How many programs it is best given at a time.
    fn batch(&self) -> usize {
        1
    }

    /// Runs programs one after the other, and judges each. Those behind a finding may be left to
    /// the next call.
    ///
    /// # Errors
    /// As [`Suspect::run`].
    fn run_all(&mut self, programs: &[Program]) -> Result<Vec<Outcome>> {
        programs.iter().map(|program| self.run(program)).collect()
    }

    /// How much of the suspect's code has run, in words, if that was asked for. It leaves what it
    /// has to say in more detail in this folder.
    ///
    /// # Errors
    /// A file cannot be written.
    fn coverage(&mut self, _folder: &Path) -> Result<Option<String>> {
        Ok(None)
    }
}

/// [`Suspect::run`] of what is best given several programs at a time.
///
/// # Errors
/// As [`Suspect::run`].
pub fn alone(suspect: &mut impl Suspect, program: &Program) -> Result<Outcome> {
    let mut outcomes = suspect.run_all(std::slice::from_ref(program))?;
    outcomes.pop().context("a program has an outcome")
}

/// How a program went.
pub enum Outcome {
    /// As on bare hardware.
    Clean(Tally),
    /// Not so.
    Found(Found),
}

impl From<Result<Tally, Box<Conviction>>> for Outcome {
    /// What the judge says of a program.
    fn from(verdict: Result<Tally, Box<Conviction>>) -> Outcome {
        match verdict {
            Ok(tally) => Outcome::Clean(tally),
            Err(conviction) => Outcome::Found(Found {
                symptom: format!("guest: {}", conviction.kind.name()),
                detail: format!("seen: {}\nexpected: {}", conviction.seen, conviction.expected),
                step: Some(conviction.step),
                log: String::new(),
            }),
        }
    }
}

/// Something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What tells this finding from others: the same in each run.
    pub symptom: String,
    /// What was seen, and what was expected.
    pub detail: String,
    /// The step, if it is known. No later one is needed.
    pub step: Option<usize>,
    /// What the kernel printed.
    pub log: String,
}
