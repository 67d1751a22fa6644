//! `umbra run`, as commands call it that compare the bare machine with Umbra: on which machine, and
//! under what.

use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

/// `--machine` of `umbra run`: those that run VMX.
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
