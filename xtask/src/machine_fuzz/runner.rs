//! Runs programs.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::candidate::Candidate;
use crate::report::last_lines;
use crate::umbra_run::{self, Machine, Policy};

/// Memory of the guest, in MiB.
const MEMORY: &str = "32";
/// Seconds that one start takes at most, on a host with ten times more work than CPUs: it is there
/// for programs that never end.
const TIMEOUT: &str = "1800";

/// Bytes of the module that programs are in.
const MODULE: usize = 4 << 20;

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The hash of it.
    pub hash: u32,
    /// On the bare machine: vectors of its events, and the steps in which they came.
    pub events: Vec<(u32, usize)>,
}

impl Outcome {
    /// The last step that an event came in; none if the program did not get to its first one.
    pub fn last_step(&self) -> Option<usize> {
        self.events.iter().map(|&(_, step)| step).filter(|&step| step != NO_STEP).max()
    }
}

/// What the kernel says of an event outside of the program.
const NO_STEP: usize = 0xff;

/// Starts the kernel.
pub struct Runner<'a> {
    pub umbra: &'a Path,
    pub kernel: &'a Path,
    pub folder: &'a Path,
    /// How often a machine is started at most for the same programs.
    pub starts: usize,
    /// What names the files of one machine and treatment.
    pub machine: Machine,
}

impl Runner<'_> {
    /// Runs programs, bare or under a treatment of page faults. One that ends the guest has no
    /// outcome; the machine starts again behind it.
    ///
    /// # Errors
    /// The kernel did not start.
    pub fn run(
        &self,
        programs: &[&Candidate],
        policy: Option<Policy>,
    ) -> Result<Vec<Option<Outcome>>> {
        let mut found = Vec::new();
        for _ in 0..self.starts {
            let rest = &programs[found.len()..];
            if rest.is_empty() {
                break;
            }
            // Each byte costs Umbra's guest an exit.
            let append = if policy.is_none() { "events" } else { "" };
            let (stdout, reason) = self.start(rest, policy, append)?;
            let outcomes = outcomes(&stdout);
            ensure!(outcomes.len() <= rest.len(), "the kernel ran more programs than it was given");
            found.extend(outcomes.into_iter().map(Some));
            if found.len() < programs.len() {
                let name = umbra_run::name(self.machine, policy);
                println!("{name}: ended, {reason}, by {}", programs[found.len()].words());
                found.push(None);
            }
        }
        found.resize(programs.len(), None);
        Ok(found)
    }

    /// What the kernel says of each program in words.
    ///
    /// # Errors
    /// The kernel did not start.
    pub fn words(
        &self,
        programs: &[&Candidate],
        policy: Option<Policy>,
    ) -> Result<Vec<Vec<String>>> {
        let stdout = self.start(programs, policy, "show")?.0;
        let mut words: Vec<Vec<String>> = Vec::new();
        for line in stdout.lines() {
            if line.starts_with("program ") {
                words.push(Vec::new());
            } else if let (Some(line), Some(last)) = (line.strip_prefix("  "), words.last_mut()) {
                last.push(line.to_owned());
            }
        }
        words.resize(programs.len(), Vec::new());
        Ok(words)
    }

    /// Starts the machine; returns the kernel's output, and the sentence about its end.
    fn start(
        &self,
        programs: &[&Candidate],
        policy: Option<Policy>,
        append: &str,
    ) -> Result<(String, String)> {
        let name = umbra_run::name(self.machine, policy).replace(' ', "-");
        let file = self.folder.join(format!("{name}.programs"));
        let mut bytes = Vec::new();
        for program in programs {
            let (words, count) = program.program().to_words();
            bytes.extend(words[..count].iter().flat_map(|word| word.to_le_bytes()));
        }
        // The kernel's own memory begins behind the module: always at the same address.
        ensure!(bytes.len() < MODULE, "so many programs do not fit: choose a smaller --chunk");
        bytes.resize(MODULE, 0);
        fs::write(&file, bytes).with_context(|| file.display().to_string())?;
        let mut command = umbra_run::command(self.umbra, self.kernel, self.machine, policy);
        command.arg("--module").arg(&file);
        command.args(["--append", append, "--memory", MEMORY, "--timeout", TIMEOUT]);
        let output = command.stdin(Stdio::null()).output().context("starting umbra")?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let log = self.folder.join(format!("{name}.log"));
        fs::write(&log, &output.stdout).with_context(|| log.display().to_string())?;
        ensure!(
            stdout.contains("machine: "),
            "{name}: the kernel did not start\n{}\n{}",
            last_lines(&stdout, 8),
            last_lines(&stderr, 8)
        );
        Ok((stdout, umbra_run::end(&stderr).into()))
    }
}

/// The outcomes in the kernel's output. A last one that is cut off is left out.
fn outcomes(output: &str) -> Vec<Outcome> {
    let lines = output.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.filter_map(|line| outcome(line.trim_end())).collect()
}

fn outcome(line: &str) -> Option<Outcome> {
    let mut words = line.strip_prefix('@')?.split(' ');
    let hash = u32::from_str_radix(words.next()?, 16).ok()?;
    let events = words.map(|word| {
        let (vector, step) = word.split_once('.')?;
        Some((u32::from_str_radix(vector, 16).ok()?, usize::from_str_radix(step, 16).ok()?))
    });
    Some(Outcome { hash, events: events.collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_to_where_the_guest_was_ended() {
        let output = "machine: Legacy\n@0000000a e.1 80.2\n@00000001 1.";
        let outcome = Outcome { hash: 10, events: vec![(14, 1), (0x80, 2)] };
        assert_eq!(outcomes(output), [outcome]);
        assert_eq!(outcomes("@0000000b\n@0000"), [Outcome { hash: 11, events: Vec::new() }]);
    }
}
