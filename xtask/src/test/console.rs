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

/// Compares two consoles, [lines that vary](VARYING) excepted, and returns how many lines agree.
///
/// `/init` must have said the same in the same order. Linux must have said the same lines, but
/// probes devices asynchronously: their order is not part of the comparison.
///
/// # Errors
/// Names the first line that one of them lacks.
pub fn compare(left: (&str, &str), right: (&str, &str)) -> Result<usize> {
    let [mut ours, mut theirs] = [left, right].map(|(name, console)| (name, Said::new(console)));
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
    fn new(console: &'a str) -> Said<'a> {
        let lines = console.lines().map(str::trim_end);
        let stable = lines.filter(|line| !VARYING.iter().any(|part| line.contains(part)));
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
        assert_eq!(compare(LEFT, right).unwrap(), 4);
    }

    #[test]
    fn everything_else_is_a_difference() {
        let error = |right| compare(LEFT, ("right", right)).unwrap_err().to_string();
        let order = error("Linux\nACPI\nphase pipe ops 50\nphase demand ops 102\n");
        assert!(order.contains("left: \"phase demand ops 102\""), "{order}");
        let missing = error("Linux\nphase demand ops 102\nphase pipe ops 50\n");
        assert!(missing.contains("left: \"ACPI\""), "{missing}");
        assert!(error("Linux\nACPI\n").contains("said nothing"));
        assert!(error("Linux\nACPI\nphase demand ops 102\n").contains("right: (ends)"));
    }
}
