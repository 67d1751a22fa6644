//! `umbra run`, as commands call it that compare the bare machine with Umbra: on which machine, and
//! under what.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use clap::ValueEnum;

/// `--machine` of `umbra run`: those of the exact emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    Penryn,
    Skylake,
    Ryzen,
}

impl Machine {
    /// The treatments of page faults that it can do.
    fn policies(self) -> &'static [Policy] {
        match self {
            Machine::Penryn | Machine::Skylake => Policy::value_variants(),
            // All page faults exit, or none.
            Machine::Ryzen => &[Policy::Trap],
        }
    }
}

/// What to compare with the bare machine: this machine or all, each under those of these treatments
/// that it can do.
///
/// # Errors
/// No machine can do any of them.
pub fn chosen(only: Option<Machine>, policies: &[Policy]) -> Result<Vec<(Machine, Vec<Policy>)>> {
    let machines = Machine::value_variants().iter().copied();
    let chosen: Vec<_> = machines
        .filter(|machine| only.is_none_or(|only| only == *machine))
        .map(|machine| {
            let can = machine.policies().iter().copied();
            (machine, can.filter(|policy| policies.contains(policy)).collect::<Vec<_>>())
        })
        .filter(|(_, policies)| !policies.is_empty())
        .collect();
    ensure!(
        !chosen.is_empty(),
        "all page faults exit on {}: give --guest-faults trap",
        only.as_ref().map_or_else(String::new, word)
    );
    Ok(chosen)
}

/// `--guest-faults` of `umbra run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    Trap,
    Present,
    User,
    #[value(alias = "bypass")]
    Auto,
}

/// A value as the command line has it.
pub fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().into()
}

/// The machine, and what is on it: Umbra with this policy, or nothing.
pub fn name(machine: Machine, policy: Option<Policy>) -> String {
    let policy = policy.as_ref().map_or_else(|| "bare".into(), word);
    format!("{} {policy}", word(&machine))
}

/// The tool's command that runs a kernel there.
pub fn command(umbra: &Path, kernel: &Path, machine: Machine, policy: Option<Policy>) -> Command {
    let mut command = Command::new(umbra);
    command.arg("run").arg("--kernel").arg(kernel).args(["--machine", &word(&machine)]);
    match &policy {
        Some(policy) => command.args(["--guest-faults", &word(policy)]),
        None => command.args(["--hypervisor", "none"]),
    };
    command
}

/// The tool's last sentence, by what it said on standard error: how the guest ended.
pub fn end(stderr: &str) -> &str {
    let mut sentences = stderr.lines().filter_map(|line| line.strip_prefix("umbra: "));
    sentences.rfind(|line| !line.starts_with("loading ")).unwrap_or("no reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_compared_under_what_it_can_do() {
        let all = Policy::value_variants();
        let counts = |only, policies| {
            chosen(only, policies)
                .map(|chosen| chosen.iter().map(|(_, policies)| policies.len()).collect::<Vec<_>>())
        };
        assert_eq!(counts(None, all).unwrap(), [4, 4, 1]);
        assert_eq!(counts(None, &[Policy::Auto]).unwrap(), [1, 1]);
        assert_eq!(counts(Some(Machine::Ryzen), &[Policy::Trap, Policy::Auto]).unwrap(), [1]);
        let refused = counts(Some(Machine::Ryzen), &[Policy::User]).unwrap_err();
        assert_eq!(refused.to_string(), "all page faults exit on ryzen: give --guest-faults trap");
    }
}
