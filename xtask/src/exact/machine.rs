//! Runs the kernel.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use umbra_msrs::{Cpu, Vendor};

use super::lines::Lines;
use super::rows::NOT_BARE;
use crate::report::last_lines;
use crate::umbra_run::{self, Machine, Policy, name};

/// Memory of the guest, in MiB.
const MEMORY: &str = "64";
/// Seconds that it takes at most.
const TIMEOUT: &str = "600";
/// How much of a difference is shown.
const SHOWN_LINES: usize = 30;

/// The CPU that a guest sees on a machine, as its registers depend on it. Bochs's time-stamp
/// counter has 1 GHz.
pub fn cpu(machine: Machine) -> Cpu {
    let (vendor, family, model) = match machine {
        Machine::Penryn => (Vendor::Intel, 6, 0x17),
        Machine::Skylake => (Vendor::Intel, 6, 0x55),
        Machine::Ryzen => (Vendor::Amd, 0x17, 0x1),
    };
    Cpu { vendor, family, model, maxphyaddr: 40, ratio: 10 }
}

/// What both kernels print.
pub struct Observed {
    /// The one without an opinion.
    pub exact: String,
    /// The one that knows what is right.
    pub basics: String,
}

/// The tool, and the folder with the kernels.
pub struct Kernels<'a> {
    pub umbra: &'a Path,
    pub folder: &'a Path,
}

impl Kernels<'_> {
    /// What the kernels print on the bare machine, or under Umbra with a policy.
    ///
    /// # Errors
    /// One did not come to its end.
    pub fn observe(&self, machine: Machine, policy: Option<Policy>) -> Result<Observed> {
        let except = format!("except={NOT_BARE}");
        let basics = if policy.is_none() { &except } else { "fw_cfg" };
        Ok(Observed {
            exact: self.start("exact", machine, policy, "")?,
            basics: self.start("basics", machine, policy, basics)?,
        })
    }

    /// The lines of the kernel `exact`.
    ///
    /// # Errors
    /// It did not come to its end.
    pub fn lines(&self, machine: Machine, policy: Option<Policy>) -> Result<Lines> {
        Lines::read(&self.start("exact", machine, policy, "")?)
    }

    /// What a line of event delivery did differently, in words.
    ///
    /// # Errors
    /// The kernel did not come to its end.
    pub fn difference(&self, machine: Machine, policy: Policy, line: &str) -> Result<String> {
        let append = format!("only=events show={}", line.replace(' ', "_"));
        let bare = self.start("exact", machine, None, &append)?;
        let found = self.start("exact", machine, Some(policy), &append)?;
        let mut words = format!("{}, {line}\n", name(machine, Some(policy)));
        let mut case = "";
        for (right, other) in bare.lines().zip(found.lines()) {
            if right.starts_with("case ") {
                case = right;
            }
            if right != other {
                words += &format!("{case}\n  bare  {right}\n  umbra {other}\n");
                if words.lines().count() > SHOWN_LINES {
                    break;
                }
            }
        }
        Ok(words)
    }

    /// Runs a kernel.
    fn start(
        &self,
        kernel: &str,
        machine: Machine,
        policy: Option<Policy>,
        append: &str,
    ) -> Result<String> {
        let path = self.folder.join(kernel).with_extension("elf");
        let mut command = umbra_run::command(self.umbra, &path, machine, policy);
        command.args(["--memory", MEMORY, "--timeout", TIMEOUT, "--append", append]);
        let output = command.stdin(Stdio::null()).output().context("starting umbra")?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let ended = ["END: ", "PASSED: ", "FAILED: "];
        ensure!(
            ended.iter().any(|word| stdout.contains(&format!("{kernel} {word}"))),
            "{}: the kernel {kernel} did not come to its end\n{}\n{}",
            name(machine, policy),
            last_lines(&stdout, 8),
            last_lines(&String::from_utf8_lossy(&output.stderr), 8)
        );
        Ok(stdout)
    }
}
