//! Makes a failing program small.

use crate::hardware::Temper;
use crate::program::{Op, Program};
use crate::registers::Cpu;
use crate::run::AHEAD;
use crate::{Config, Divergence, run_program};

/// A program, what it runs on, and how it fails there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The program.
    pub program: Program,
    /// What it runs on.
    pub config: Config,
    /// How it fails.
    pub divergence: Divergence,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{:?}\n{}", self.divergence, self.config, self.program)
    }
}

/// Takes steps out of a failing program as long as it fails in some way, and chooses the plainest
/// configuration in which it does. `None` if the program does not fail.
///
/// `run` is [`run_program`], or something that breaks the machine first.
pub fn minimize(
    program: &Program,
    config: &Config,
    run: impl Fn(&Program, &Config) -> Result<(), Divergence>,
) -> Option<Failure> {
    let attempt = |mut program: Program, config: Config| {
        let divergence = run(&program, &config).err()?;
        // Other CPUs may have taken steps that stand behind the one that failed.
        let ahead = if config.races > 0 { AHEAD } else { 0 };
        program.ops.truncate(divergence.step + 1 + ahead);
        Some(Failure { program, config, divergence })
    };
    let mut best = attempt(program.clone(), *config)?;
    let plainer: [fn(&mut Config); 8] = [
        |config| config.races = 0,
        |config| config.full_audit = 1,
        |config| config.cpus = 1,
        |config| config.pcid = false,
        |config| config.temper = Temper::STICKY,
        |config| {
            config.model = Cpu { maxphyaddr: 40, gib_pages: true };
            config.shadow.iter_mut().for_each(|shadow| shadow.host_maxphyaddr = 40);
        },
        |config| config.shadow.iter_mut().for_each(|shadow| shadow.vpid = true),
        |config| config.shadow.iter_mut().for_each(|shadow| shadow.release = 0),
    ];
    loop {
        let before = best.clone();
        for change in plainer {
            let mut config = best.config;
            change(&mut config);
            if config == best.config {
                continue;
            }
            if let Some(smaller) = attempt(best.program.clone(), config) {
                best = smaller;
            }
        }
        let mut chunk = best.program.ops.len().div_ceil(2);
        while chunk > 0 {
            let mut from = 0;
            while from < best.program.ops.len() && best.program.ops.len() > 1 {
                let mut ops: Vec<Op> = best.program.ops.clone();
                ops.drain(from..(from + chunk).min(ops.len()));
                match attempt(Program { ops, ..best.program }, best.config) {
                    Some(smaller) => best = smaller,
                    None => from += chunk,
                }
            }
            chunk /= 2;
        }
        if best == before {
            return Some(best);
        }
    }
}

/// [`minimize`] with [`run_program`].
pub fn minimize_plain(program: &Program, config: &Config) -> Option<Failure> {
    minimize(program, config, |program, config| run_program(program, config).map(drop))
}
