//! Tests that boot Linux under Umbra and look at what the hypervisor and the guest counted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::console;
use super::stats::Stats;
use crate::report::{Report, last_lines};
use crate::setup::{Everything, GuestPackage, Setup};
use crate::{paths, process, run};

/// After so many seconds a machine is ended as failed.
const TIMEOUT_SECONDS: u32 = 600;

/// The guest itself must have counted so many page faults, or a run without injected faults says
/// nothing.
const LEAST_GUEST_FAULTS: u64 = 2000;

/// How much of a failed boot's output is shown.
const SHOWN_LINES: usize = 40;

/// Debian's packages of 32-bit kernels: with PAE, and without.
const PACKAGE_PAE: &str = "linux-image-686-pae";
const PACKAGE_686: &str = "linux-image-686";

/// One boot with the quick exercise.
struct Boot {
    name: &'static str,
    /// The kernel's package, if it is not the usual kernel.
    package: Option<&'static str>,
    machine: &'static str,
    guest_faults: &'static str,
    audit: bool,
    /// The size of the shadow pool, if not the default: so small that pages are reclaimed.
    shadow_frames: Option<u32>,
    /// Guest memory, if not the default. The guest then touches memory above 4 GiB.
    memory: Option<&'static str>,
}

const PENRYN_BYPASS: Boot = Boot {
    name: "penryn-bypass",
    package: None,
    machine: "penryn",
    guest_faults: "bypass",
    audit: false,
    shadow_frames: None,
    memory: None,
};
const PENRYN_TRAP: Boot = Boot { name: "penryn-trap", guest_faults: "trap", ..PENRYN_BYPASS };
const PENRYN_AUDIT: Boot = Boot { name: "penryn-audit", audit: true, ..PENRYN_BYPASS };
const PENRYN_64_FRAMES: Boot =
    Boot { name: "penryn-64-frames", shadow_frames: Some(64), ..PENRYN_BYPASS };
const PENRYN_PRESENT: Boot =
    Boot { name: "penryn-present", guest_faults: "present", ..PENRYN_BYPASS };
const RYZEN_TRAP: Boot = Boot { name: "ryzen-trap", machine: "ryzen", ..PENRYN_TRAP };
const QEMU_SVM_TRAP: Boot = Boot { name: "qemu-svm-trap", machine: "qemu-svm", ..PENRYN_TRAP };
const QEMU_SVM_AUDIT: Boot = Boot { name: "qemu-svm-audit", audit: true, ..QEMU_SVM_TRAP };
const SKYLAKE_BYPASS: Boot = Boot { name: "skylake-bypass", machine: "skylake", ..PENRYN_BYPASS };
const SKYLAKE_5_GIB: Boot = Boot { name: "skylake-5-gib", memory: Some("5G"), ..SKYLAKE_BYPASS };
const PAE_PRESENT: Boot = Boot {
    name: "pae-penryn-present",
    package: Some(PACKAGE_PAE),
    guest_faults: "present",
    ..PENRYN_BYPASS
};
const I686_QEMU_SVM: Boot =
    Boot { name: "686-qemu-svm-trap", package: Some(PACKAGE_686), ..QEMU_SVM_TRAP };

/// The longest first.
const BOOTS: &[Boot] = &[
    PENRYN_AUDIT,
    SKYLAKE_5_GIB,
    PENRYN_64_FRAMES,
    PENRYN_TRAP,
    RYZEN_TRAP,
    PAE_PRESENT,
    QEMU_SVM_AUDIT,
    I686_QEMU_SVM,
    PENRYN_BYPASS,
    PENRYN_PRESENT,
    SKYLAKE_BYPASS,
    QEMU_SVM_TRAP,
];

/// Phases in which every operation is one access to a page that is missing, and no process runs but
/// the one that makes them: the bypass saves one exit per operation.
const FAULTING_PHASES: [&str; 2] = ["demand", "zero_read"];

/// Boots them all, as many at a time as there are CPUs, and compares.
///
/// # Errors
/// The folder for results cannot be made, or the 32-bit guests' files cannot.
pub fn run(report: &mut Report, setup: &mut Setup, built: &Everything) -> Result<()> {
    let folder = paths::guest_dir()?.join("test");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut guests =
        vec![(None, Guest { kernel: built.kernel.clone(), initrd: built.initrd.clone() })];
    let packages: BTreeSet<&str> = BOOTS.iter().filter_map(|boot| boot.package).collect();
    for name in packages {
        let package = GuestPackage::named(name).with_context(|| format!("{name} is no package"))?;
        let (kernel, initrd) = (setup.packaged_kernel(&package)?, setup.initrd(package.arch())?);
        guests.push((Some(name), Guest { kernel, initrd }));
    }
    let guest =
        |boot: &Boot| guests.iter().find(|(name, _)| *name == boot.package).map(|(_, guest)| guest);
    println!("     boots: {}", BOOTS.iter().map(|boot| boot.name).collect::<Vec<_>>().join(", "));

    report.steps(
        BOOTS,
        |boot| format!("boot {}", boot.name),
        |boot| boot.run(&built.umbra, guest(boot).context("every boot's files are made")?, &folder),
    );
    let sees_the_same = |left: &Boot, right: &Boot, except| {
        let (ours, theirs) = (left.console(&folder)?, right.console(&folder)?);
        let lines = console::compare((left.name, &ours), (right.name, &theirs), except)?;
        Ok(format!("{lines} lines"))
    };
    report.step("the guest sees the same with bypass and trap", || {
        sees_the_same(&PENRYN_BYPASS, &PENRYN_TRAP, &[])
    });
    for boot in [RYZEN_TRAP, QEMU_SVM_TRAP] {
        report.step(&format!("the guest sees the same on penryn and {}", boot.machine), || {
            sees_the_same(&PENRYN_TRAP, &boot, console::VENDORS)
        });
    }
    report.step("the bypass saves exits", || {
        saved(
            &Stats::read(&PENRYN_BYPASS.file(&folder, "json"))?,
            &Stats::read(&PENRYN_TRAP.file(&folder, "json"))?,
        )
    });
    Ok(())
}

/// The bypass saves the exits that it is there for.
///
/// Only exits that memory work costs are compared, and only in [phases](FAULTING_PHASES) where all
/// else is the same in both runs: over a whole run, the time at which the timer interrupts and the
/// console is ready weighs as much as what is saved.
fn saved(bypass: &Stats, trap: &Stats) -> Result<String> {
    let mut remarks = Vec::new();
    for phase in FAULTING_PHASES {
        let ops = bypass.phase_ops(phase)?;
        let (with, without) = (bypass.phase_memory_exits(phase)?, trap.phase_memory_exits(phase)?);
        // Half of it is left to interrupts, each of which may cost some CR3 exits.
        ensure!(
            with + ops / 2 < without,
            "{phase}: {with} memory exits with the bypass, {without} without, in {ops} operations"
        );
        remarks.push(format!("{phase} {with} instead of {without}"));
    }
    let (with, without) = (bypass.memory_exits()?, trap.memory_exits()?);
    Ok(format!("memory exits: {}; whole run {with} and {without}", remarks.join(", ")))
}

/// What a guest boots from.
struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Boot {
    /// Boots, checks, and returns a remark.
    fn run(&self, umbra: &Path, guest: &Guest, folder: &Path) -> Result<String> {
        let stats = self.file(folder, "json");
        // Old files must not pass for this boot's.
        for old in [&stats, &self.file(folder, "stdout")] {
            let _ = fs::remove_file(old);
        }
        let mut command = Command::new("timeout");
        // A guard in case that the tool itself hangs; its own time-out ends the machine properly.
        command
            .args(["--kill-after=10", &(TIMEOUT_SECONDS + 60).to_string()])
            .arg(umbra)
            .arg("run");
        command.arg("--kernel").arg(&guest.kernel).arg("--initrd").arg(&guest.initrd);
        let high = if self.memory.is_some() { " umbra.high" } else { "" };
        command.arg("--append").arg(format!("{} umbra.quick{high}", run::APPEND));
        command.args(["--machine", self.machine, "--guest-faults", self.guest_faults]);
        command.args(["--timeout", &TIMEOUT_SECONDS.to_string()]).arg("--stats").arg(&stats);
        if self.audit {
            command.arg("--audit");
        }
        if let Some(memory) = self.memory {
            command.args(["--memory", memory]);
        }
        if let Some(frames) = self.shadow_frames {
            command.args(["--shadow-frames", &frames.to_string()]);
        }
        let output = command.stdin(Stdio::null()).output().context("starting umbra")?;
        fs::write(self.file(folder, "stdout"), &output.stdout)?;
        fs::write(self.file(folder, "stderr"), &output.stderr)?;
        let check = || {
            ensure!(output.status.success(), "{}", output.status);
            self.check(&self.console(folder)?, &Stats::read(&stats)?)
        };
        check().with_context(|| {
            let tail = |text: &[u8]| last_lines(&String::from_utf8_lossy(text), SHOWN_LINES);
            let (stdout, stderr) = (tail(&output.stdout), tail(&output.stderr));
            format!(
                "{}\n--- stdout ends\n{stdout}\n--- stderr ends\n{stderr}\n---",
                process::describe(&command)
            )
        })
    }

    /// What must hold after every boot.
    fn check(&self, console: &str, stats: &Stats) -> Result<String> {
        ensure!(console.contains("umbra-init: all phases passed"), "the exercise did not pass");
        console::check(console)?;
        ensure!(
            self.memory.is_none() || console.contains("umbra-init: fresh pages above 4 GiB"),
            "the guest did not touch memory above 4 GiB"
        );
        stats.check_partition()?;
        stats.expect("machine", self.machine)?;
        stats.expect("guest_faults", self.guest_faults)?;
        for line in console.lines().filter_map(|line| line.strip_prefix("phase ")) {
            let (name, ops) =
                line.trim_end().split_once(" ops ").with_context(|| format!("phase {line}"))?;
            let counted = stats.phase_ops(name)?;
            ensure!(
                ops == counted.to_string(),
                "phase {name}: {ops} operations done, {counted} in the statistics"
            );
        }

        let guests = guest_faults(console)?;
        ensure!(guests >= LEAST_GUEST_FAULTS, "the guest counted only {guests} page faults");
        let user = stats.exits("guest_fault_not_present_user")?;
        let injected = user + stats.exits("guest_fault_not_present_kernel")?;
        let links = stats.exits("host_fault_link")?;
        match self.guest_faults {
            "present" => {
                ensure!(injected == 0, "{injected} not-present guest faults reached the hypervisor")
            }
            // While the filter `user` is chosen, the kernel's own not-present faults exit: there
            // must be few.
            "bypass" => ensure!(
                user == 0 && injected * 20 < guests,
                "{user} not-present faults of user mode and {injected} in all reached the hypervisor"
            ),
            _ => ensure!(
                injected >= LEAST_GUEST_FAULTS,
                "only {injected} not-present guest faults were injected"
            ),
        }
        ensure!(links > 0, "no shadow table was ever linked");
        let reclaimed = stats.mmu("reclaimed")?;
        ensure!(self.shadow_frames.is_none() || reclaimed > 0, "no shadow page was ever reclaimed");
        Ok(format!(
            "{injected} not-present faults injected, {links} links, {reclaimed} pages reclaimed; the guest counted \
             {guests} faults"
        ))
    }

    /// What the guest said, from Linux's first line to its last.
    fn console(&self, folder: &Path) -> Result<String> {
        let path = self.file(folder, "stdout");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let start = text.find("Linux version").context("Linux said nothing")?;
        let Some(length) = text[start..].find("reboot: Power down") else {
            bail!("Linux did not power off")
        };
        Ok(String::from(&text[start..start + length]))
    }

    fn file(&self, folder: &Path, extension: &str) -> PathBuf {
        folder.join(self.name).with_extension(extension)
    }
}

/// The page faults that the guest itself counted.
fn guest_faults(console: &str) -> Result<u64> {
    let count = console.lines().find_map(|line| line.strip_prefix("vmstat: pgfault "));
    count
        .and_then(|count| count.trim_end().parse().ok())
        .context("the guest did not print its counters")
}
