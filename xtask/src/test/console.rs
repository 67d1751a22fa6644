//! Compares what two guests said.

use anyhow::{Result, ensure};

/// Parts of lines that depend on how fast the machine is, or on what a timer interrupted.
const VARYING: &[&str] = &[
    // Calibration against the PIT and the TSC.
    "tsc: ",
    "BogoMIPS",
    "clocksource: ",
    "sched_clock: ",
    "APIC calibration",
    "lpj=",
    // The wall clock, and randomness gathered from timing.
    "setting system clock",
    "audit: type=",
    "random: crng init done",
    // The guest's own counters: a child may or may not touch a page before its parent does.
    "vmstat: ",
];

/// Parts of lines by which Linux complains: of itself, or of the machine.
const COMPLAINTS: &[&str] = &[
    "WARNING: CPU",
    "BUG:",
    "Oops",
    "Call Trace:",
    "unchecked MSR access",
    "[Firmware Bug]",
    "unexpected",
];

/// Parts of lines by which Linux tells AMD's CPUs from Intel's, each with the reason.
pub const VENDORS: &[(&str, &str)] = &[
    ("page tables isolation", "AMD's CPUs are not open to Meltdown"),
    ("x86/mm: Check", "with isolation the tables of user mode are checked as well"),
    ("Last level iTLB entries", "AMD's leaf 0x80000005 tells other sizes than Intel's leaf 2"),
    ("Last level dTLB entries", "as for iTLB"),
    ("MDS: ", "a fault of Intel's CPUs"),
    ("MMIO Stale Data: ", "a fault of Intel's CPUs"),
    ("AMD Zen1 ", "faults of AMD's family 0x17"),
    ("RETBleed: ", "a fault of AMD's family 0x17"),
    ("active return thunk: ", "how RETBleed and SRSO are mitigated"),
    ("Speculative Return Stack Overflow: ", "a fault of AMD's family 0x17"),
    ("x86/fpu: ", "these CPUs have AVX, and penryn has not"),
    ("signal: max sigframe size", "it holds the state of AVX"),
    ("smpboot: CPU0: ", "the model's name"),
    ("Performance Events: ", "each model has its counters; none is shown"),
    ("intel_pstate: ", "a driver for Intel's CPUs"),
    ("Using GB pages", "these CPUs have pages of 1 GiB, and penryn has not"),
    ("HugeTLB: ", "as for pages of 1 GiB"),
    ("for extended access", "AMD's CPUs reach all of PCI's configuration by its ports"),
];

/// How lines begin that `/init` writes.
const INIT: &[&str] = &["phase ", "umbra-init: ", "FAIL "];

/// Looks for complaints of Linux.
///
/// # Errors
/// Names the first one.
pub fn check(console: &str) -> Result<()> {
    let complaint = console.lines().find(|line| COMPLAINTS.iter().any(|part| line.contains(part)));
    ensure!(complaint.is_none(), "Linux complains: {:?}", complaint.unwrap_or_default());
    Ok(())
}

/// Compares two consoles, [lines that vary](VARYING) and those of `except` left out, and returns how
/// many lines agree.
///
/// `/init` must have said the same in the same order. Linux must have said the same lines, but
/// probes devices asynchronously: their order is not part of the comparison.
///
/// # Errors
/// Names the first line that one of them lacks, or a part in `except` that neither has.
pub fn compare(left: (&str, &str), right: (&str, &str), except: &[(&str, &str)]) -> Result<usize> {
    for (part, reason) in except {
        let used = left.1.contains(part) || right.1.contains(part);
        ensure!(used, "neither console has {part:?}, which is left out because: {reason}");
    }
    let [mut ours, mut theirs] =
        [left, right].map(|(name, console)| (name, Said::new(console, except)));
    for (name, said) in [&ours, &theirs] {
        ensure!(!said.init.is_empty(), "{name}: /init said nothing");
    }
    ours.1.linux.sort_unstable();
    theirs.1.linux.sort_unstable();
    Ok(equal((ours.0, &ours.1.init), (theirs.0, &theirs.1.init))?
        + equal((ours.0, &ours.1.linux), (theirs.0, &theirs.1.linux))?)
}

/// A console's lines.
struct Said<'a> {
    init: Vec<&'a str>,
    linux: Vec<&'a str>,
}

impl<'a> Said<'a> {
    fn new(console: &'a str, except: &[(&str, &str)]) -> Said<'a> {
        let lines = console.lines().map(str::trim_end);
        let left_out = || VARYING.iter().chain(except.iter().map(|(part, _)| part));
        let stable = lines.filter(|line| !left_out().any(|part| line.contains(part)));
        let (init, linux) =
            stable.partition(|line| INIT.iter().any(|start| line.starts_with(start)));
        Said { init, linux }
    }
}

fn equal(left: (&str, &[&str]), right: (&str, &[&str])) -> Result<usize> {
    for index in 0..left.1.len().max(right.1.len()) {
        let line = |side: &[&str]| {
            side.get(index).map_or(String::from("(ends)"), |line| format!("{line:?}"))
        };
        let lines = (line(left.1), line(right.1));
        ensure!(
            lines.0 == lines.1,
            "the consoles differ:\n{}: {}\n{}: {}",
            left.0,
            lines.0,
            right.0,
            lines.1
        );
    }
    Ok(left.1.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: (&str, &str) =
        ("left", "Linux\r\nACPI\r\ntsc: 1000 MHz\r\nphase demand ops 102\r\nphase pipe ops 50\r\n");

    #[test]
    fn complaints_are_found_and_advice_is_none() {
        check(
            "Speculative Return Stack Overflow: WARNING: See https://kernel.org\nif needed, report a bug\n",
        )
        .unwrap();
        for line in [
            "WARNING: CPU: 0 PID: 0 at x.c",
            "[Firmware Bug]: TSC",
            "unchecked MSR access error: RDMSR",
        ] {
            assert!(check(&format!("Linux\n{line}\n")).unwrap_err().to_string().contains(line));
        }
    }

    #[test]
    fn calibration_and_the_order_of_linuxs_lines_may_differ() {
        let right =
            ("right", "ACPI\nLinux\nphase demand ops 102\ntsc: 998 MHz\nphase pipe ops 50\n");
        assert_eq!(compare(LEFT, right, &[]).unwrap(), 4);
    }

    #[test]
    fn everything_else_is_a_difference() {
        let error = |right| compare(LEFT, ("right", right), &[]).unwrap_err().to_string();
        let order = error("Linux\nACPI\nphase pipe ops 50\nphase demand ops 102\n");
        assert!(order.contains("left: \"phase demand ops 102\""), "{order}");
        let missing = error("Linux\nphase demand ops 102\nphase pipe ops 50\n");
        assert!(missing.contains("left: \"ACPI\""), "{missing}");
        assert!(error("Linux\nACPI\n").contains("said nothing"));
        assert!(error("Linux\nACPI\nphase demand ops 102\n").contains("right: (ends)"));
    }

    #[test]
    fn lines_may_be_left_out_that_one_of_them_has() {
        let right = ("right", "Linux\nphase demand ops 102\nphase pipe ops 50\n");
        assert_eq!(compare(LEFT, right, &[("ACPI", "a reason")]).unwrap(), 3);
        let error = compare(LEFT, right, &[("ACPI", ""), ("MDS", "Intel")]).unwrap_err();
        assert!(error.to_string().contains("neither console has \"MDS\""), "{error}");
    }

    #[test]
    fn what_tells_the_vendors_apart_stays_a_short_list_with_reasons() {
        assert!(VENDORS.len() <= 25);
        assert!(VENDORS.iter().all(|(_, reason)| !reason.is_empty()));
    }
}
