//! One run of one kernel.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::verdict::Verdict;
use super::{Amount, Machine};
use crate::process;
use crate::report::last_lines;
use crate::umbra_run::{Policy, word};

/// How much of a failed run's output is shown.
const SHOWN_LINES: usize = 40;

/// The kernels, as `umbra_build::guest_kernels` builds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// All combinations of entry bits at two levels
    Exhaustive,
    /// What no sane guest does
    Hostile,
    /// What every kernel takes for granted
    Basics,
    /// 32-bit mode: segments, virtual-8086 mode, and both formats of 32-bit tables
    Legacy,
}

/// A test that a machine cannot pass, whatever runs on it.
struct Defect {
    machine: Machine,
    kernel: Kernel,
    test: &'static str,
    /// What the machine does.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is for whoever reads the list"))]
    fact: &'static str,
}

const fn defect(
    machine: Machine,
    kernel: Kernel,
    test: &'static str,
    fact: &'static str,
) -> Defect {
    Defect { machine, kernel, test, fact }
}

/// What is left out, and why. Bochs is 2.7, QEMU 7.2.
const DEFECTS: &[Defect] = &[
    defect(
        Machine::Ryzen,
        Kernel::Basics,
        "data-breakpoints",
        "an intercepted #DB leaves DR6 as it was",
    ),
    defect(
        Machine::Ryzen,
        Kernel::Basics,
        "vector-breakpoints",
        "an intercepted #DB leaves DR6 as it was",
    ),
    defect(
        Machine::Ryzen,
        Kernel::Basics,
        "string-breakpoints",
        "an intercepted #DB leaves DR6 as it was",
    ),
    defect(
        Machine::Ryzen,
        Kernel::Basics,
        "held-breakpoints",
        "an intercepted #DB leaves DR6 as it was",
    ),
    defect(
        Machine::Ryzen,
        Kernel::Basics,
        "instruction-breakpoints",
        "an intercepted #DB leaves DR6 as it was",
    ),
    defect(
        Machine::QemuSvm,
        Kernel::Basics,
        "tasks",
        "task switches are not intercepted, and load CR3",
    ),
    defect(Machine::QemuSvm, Kernel::Basics, "int1", "INT1 is an undefined instruction"),
    defect(
        Machine::QemuSvm,
        Kernel::Basics,
        "stack-fault",
        "a non-canonical address is #GP by way of SS, too",
    ),
    defect(
        Machine::QemuSvm,
        Kernel::Basics,
        "msr-addresses",
        "MSRs take addresses that are not canonical",
    ),
    defect(
        Machine::QemuSvm,
        Kernel::Basics,
        "step",
        "REP traps once more behind its last iteration",
    ),
    defect(
        Machine::QemuSvm,
        Kernel::Basics,
        "data-breakpoints",
        "of two breakpoints DR6 tells one, and keeps old ones",
    ),
    defect(Machine::QemuSvm, Kernel::Basics, "held-breakpoints", "MOV SS holds no trap back"),
    defect(
        Machine::Ryzen,
        Kernel::Legacy,
        "v86",
        "VMRUN of a guest in virtual-8086 mode stops the emulator (\"VM is set in long mode\")",
    ),
    defect(Machine::QemuSvm, Kernel::Legacy, "limits", "segment limits are not checked"),
    defect(Machine::QemuSvm, Kernel::Legacy, "formats-wide", "CMPXCHG8B faults as a read"),
    defect(Machine::QemuSvm, Kernel::Hostile, "stores", "RCL and RCR that page-fault lose CF"),
    defect(
        Machine::QemuSvm,
        Kernel::Hostile,
        "gdt-table",
        "IRET sets no accessed bits in descriptors",
    ),
];

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub kernel: Kernel,
    pub machine: Machine,
    pub guest_faults: Policy,
    amount: Amount,
    /// More options of `umbra run`, as one word.
    more: &'static str,
    /// Seconds after which it is ended as failed, if not the usual ones.
    patience: Option<u32>,
}

/// Seconds that a kernel gets whose hypervisor may be broken: several times what it takes.
const BROKEN_PATIENCE: u32 = 180;

impl Run {
    /// A kernel on a machine, every page fault trapped, by a hypervisor that may be broken.
    ///
    /// # Errors
    /// There is no such kernel, or no such machine.
    pub fn named(kernel: &str, machine: &str) -> Result<Run> {
        let kernel = Kernel::from_str(kernel, false).map_err(anyhow::Error::msg)?;
        let machine = Machine::from_str(machine, false).map_err(anyhow::Error::msg)?;
        let (guest_faults, amount) = (Policy::Trap, Amount::Quick);
        let patience = Some(BROKEN_PATIENCE);
        Ok(Run { kernel, machine, guest_faults, amount, more: "", patience })
    }

    /// Every kernel on every machine in every mode that it has, or in one mode. The hostile one is
    /// always whole with the bypass.
    pub fn all(amount: Amount, only: Option<Policy>) -> impl Iterator<Item = Run> {
        /// What a sample is run in: the two that differ most.
        const SAMPLE: &[Policy] = &[Policy::Auto, Policy::Trap];
        let modes = match amount {
            Amount::Quick if only.is_none() => SAMPLE,
            Amount::Quick | Amount::Full => Policy::value_variants(),
        };
        let modes = modes.iter().filter(move |mode| only.is_none_or(|only| only == **mode));
        let kernels = Kernel::value_variants().iter();
        let places = Machine::value_variants().iter().flat_map(move |&machine| {
            let fits =
                move |mode: &&Policy| machine.filters_page_faults() || **mode == Policy::Trap;
            modes.clone().filter(fits).map(move |mode| (machine, *mode))
        });
        kernels.flat_map(move |&kernel| {
            let run = move |(machine, guest_faults)| {
                // What only the last thousands of its steps find has been there.
                let whole = kernel == Kernel::Hostile && guest_faults == Policy::Auto;
                let amount = if whole { Amount::Full } else { amount };
                Run { kernel, machine, guest_faults, amount, more: "", patience: None }
            };
            places.clone().map(run)
        })
    }

    /// The hostile kernel where the shadow MMU has hardly any frames, and where it is audited, as
    /// is the 32-bit one; the basics where all flushes exit.
    pub fn special() -> impl Iterator<Item = Run> {
        [
            (Kernel::Hostile, Machine::Penryn, "--shadow-frames=64"),
            (Kernel::Hostile, Machine::Penryn, "--audit"),
            (Kernel::Legacy, Machine::Penryn, "--audit"),
            (Kernel::Hostile, Machine::Skylake, "--audit"),
            (Kernel::Basics, Machine::Skylake, "--without=invlpg"),
        ]
        .into_iter()
        .map(|(kernel, machine, more)| {
            let (guest_faults, amount) = (Policy::Auto, Amount::Quick);
            Run { kernel, machine, guest_faults, amount, more, patience: None }
        })
    }

    /// Kernel, machine, mode, and what else is special.
    pub fn name(&self) -> String {
        let words =
            [word(&self.kernel), word(&self.machine), word(&self.guest_faults), self.more.into()];
        words.join(" ").trim_end().into()
    }

    /// What it costs, roughly, as seconds.
    pub fn weight(&self) -> u32 {
        let kernel = match (self.kernel, self.amount) {
            (Kernel::Exhaustive, Amount::Full) => 3000,
            (Kernel::Exhaustive, Amount::Quick) => 20,
            (Kernel::Hostile, Amount::Full) => 60,
            (Kernel::Hostile, Amount::Quick) => 20,
            (Kernel::Basics, _) => 15,
            (Kernel::Legacy, Amount::Full) => 40,
            (Kernel::Legacy, Amount::Quick) => 10,
        };
        let audit = if self.more == "--audit" { 2 } else { 1 };
        let trap = u32::from(self.guest_faults == Policy::Trap);
        audit * kernel + trap
    }

    /// What the kernel is told.
    fn options(&self) -> String {
        let options = match (self.kernel, self.amount) {
            // A prime number of cases apart, so that all kinds of access and bits take their turn.
            (Kernel::Exhaustive, Amount::Quick) => "strict stride=397",
            (Kernel::Exhaustive, Amount::Full) => "strict",
            (Kernel::Hostile | Kernel::Legacy, Amount::Quick) => "quick",
            (Kernel::Hostile | Kernel::Legacy, Amount::Full) => "",
            (Kernel::Basics, _) => "fw_cfg",
        };
        let here =
            |defect: &&Defect| defect.kernel == self.kernel && defect.machine == self.machine;
        let left_out: Vec<&str> = DEFECTS.iter().filter(here).map(|defect| defect.test).collect();
        if left_out.is_empty() {
            options.into()
        } else {
            format!("{options} except={}", left_out.join(",")).trim_start().into()
        }
    }

    /// Seconds after which it is ended as failed.
    fn timeout(&self) -> u32 {
        self.patience.unwrap_or(match (self.kernel, self.amount) {
            (Kernel::Exhaustive, Amount::Full) => 6 * 3600,
            _ => 900,
        })
    }

    /// Runs it and says what it checked, and how fast.
    ///
    /// # Errors
    /// It did not pass: what it said last is part of the error.
    pub fn run(&self, umbra: &Path, kernels: &Path, folder: &Path) -> Result<String> {
        let mut command = Command::new("timeout");
        // A guard in case that the tool itself hangs; its own time-out ends the machine properly.
        command.args(["--kill-after=10", &(self.timeout() + 60).to_string()]).arg(umbra).arg("run");
        command.arg("--kernel").arg(kernels.join(word(&self.kernel)).with_extension("elf"));
        command.args(["--append", &self.options(), "--timeout", &self.timeout().to_string()]);
        command.args([
            "--machine",
            &word(&self.machine),
            "--guest-faults",
            &word(&self.guest_faults),
        ]);
        command.args(self.more.split_whitespace()).stdin(Stdio::null());
        let start = Instant::now();
        let output = command.output().context("starting umbra")?;
        let seconds = start.elapsed().as_secs_f64();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let log = folder.join(format!("{}.log", self.name().replace(' ', "-")));
        fs::write(&log, format!("{stdout}{stderr}")).with_context(|| log.display().to_string())?;
        let check = || {
            ensure!(output.status.success(), "{}", output.status);
            let verdict = Verdict::read(&stdout, &word(&self.kernel))?;
            Ok(format!("{verdict}, {:.0} per second", verdict.checks as f64 / seconds))
        };
        check().with_context(|| {
            let (stdout, stderr) =
                (last_lines(&stdout, SHOWN_LINES), last_lines(&stderr, SHOWN_LINES));
            let line = process::describe(&command);
            format!(
                "{line}\nall of it: {}\n{stdout}\n--- standard error\n{stderr}\n---",
                log.display()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_left_out_is_left_out_where_it_fails_and_has_a_reason() {
        assert!(DEFECTS.iter().all(|defect| defect.fact.contains(' ')));
        let options = |machine| {
            let run = Run::all(Amount::Quick, None)
                .find(|run| (run.kernel, run.machine) == (Kernel::Basics, machine));
            run.expect("every machine runs the basics").options()
        };
        assert_eq!(options(Machine::Penryn), "fw_cfg");
        assert!(options(Machine::QemuSvm).starts_with("fw_cfg except=tasks,int1,"));
        assert!(!options(Machine::Ryzen).contains("tasks"));
    }

    #[test]
    fn the_whole_is_run_in_every_mode() {
        let names: BTreeSet<String> = Run::all(Amount::Full, None).map(|run| run.name()).collect();
        assert_eq!(names.len(), 4 * (2 * 4 + 2));
        assert!(Run::all(Amount::Full, None).all(|run| run.amount == Amount::Full));
        let one: Vec<_> = Run::all(Amount::Quick, Some(Policy::User)).collect();
        assert_eq!(one.len(), 4 * 2);
        assert!(one.iter().all(|run| run.guest_faults == Policy::User));
    }

    #[test]
    fn every_run_has_a_name_of_its_own() {
        let names: BTreeSet<String> =
            Run::all(Amount::Quick, None).chain(Run::special()).map(|run| run.name()).collect();
        assert_eq!(names.len(), 4 * (2 * 2 + 2) + 5);
        assert!(names.contains("exhaustive skylake trap"));
        assert!(names.contains("hostile penryn auto --audit"));
        assert!(names.contains("basics skylake auto --without=invlpg"));
    }
}
