//! Runs the kernel.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use umbra_msrs::{Cpu, Vendor};

use crate::report::last_lines;

/// Memory of the guest, in MiB.
const MEMORY: &str = "32";
/// Seconds that it takes at most.
const TIMEOUT: &str = "300";

/// `--machine` of `umbra run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    Penryn,
    Skylake,
}

/// `--guest-faults` of `umbra run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    Trap,
    Present,
    User,
    Auto,
}

fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().into()
}

impl Machine {
    /// Machine, and what is on it.
    pub fn name(self, policy: Option<Policy>) -> String {
        let policy = policy.as_ref().map_or_else(|| "bare".into(), word);
        format!("{} {policy}", word(&self))
    }

    /// The CPU that a guest sees on it, as its registers depend on it. Bochs's time-stamp counter has 1 GHz.
    pub fn cpu(self) -> Cpu {
        let model = match self {
            Machine::Penryn => 0x17,
            Machine::Skylake => 0x55,
        };
        Cpu { vendor: Vendor::Intel, family: 6, model, maxphyaddr: 40, ratio: 10 }
    }

    /// What the kernel prints on the bare machine, or under Umbra with a policy.
    ///
    /// # Errors
    /// It did not come to its end.
    pub fn observe(self, umbra: &Path, kernel: &Path, policy: Option<Policy>) -> Result<String> {
        let mut command = Command::new(umbra);
        command.arg("run").arg("--kernel").arg(kernel).args(["--memory", MEMORY, "--timeout", TIMEOUT]);
        command.args(["--machine", &word(&self)]);
        match &policy {
            Some(policy) => command.args(["--guest-faults", &word(policy)]),
            None => command.args(["--hypervisor", "none"]),
        };
        let output = command.stdin(Stdio::null()).output().context("starting umbra")?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            stdout.contains("exact END: "),
            "{}: the kernel did not come to its end\n{}\n{}",
            self.name(policy),
            last_lines(&stdout, 8),
            last_lines(&String::from_utf8_lossy(&output.stderr), 8)
        );
        Ok(stdout)
    }
}
