//! The kinds of behaviour that a guest must find as on bare hardware, and what shows each.

use std::collections::BTreeMap;

/// What shows that a row is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Every model-specific register, compared with the table and the bare machine.
    Registers,
    /// Every case of event delivery, compared with the bare machine, and tests of the kernel
    /// `basics`.
    Events(&'static [&'static str]),
    /// Tests of the kernel `basics`, which know what is right.
    Basics(&'static [&'static str]),
    /// Nothing that a guest could observe: another test.
    Elsewhere(&'static str),
}

/// A row of the table.
pub struct Row {
    /// What it is about.
    pub name: &'static str,
    /// What shows it.
    pub shown: &'static [Shown],
}

const fn row(name: &'static str, shown: &'static [Shown]) -> Row {
    Row { name, shown }
}

/// All rows.
pub const ROWS: &[Row] = &[
    row("state that VM entry refuses", &[Shown::Basics(&["cr0", "cr3", "cr4", "efer", "unpaged"])]),
    row(
        "events",
        &[Shown::Events(&[
            "exceptions",
            "int1",
            "step",
            "step-halt",
            "data-breakpoints",
            "vector-breakpoints",
            "held-breakpoints",
            "instruction-breakpoints",
            "ipi",
            "nmi",
            "nmi-frame",
        ])],
    ),
    row(
        "INS and OUTS",
        &[Shown::Basics(&["step-ports", "port-breakpoints", "string-breakpoints"])],
    ),
    row(
        "segments",
        &[Shown::Basics(&["segments", "alignment", "compatibility", "compatibility-user"])],
    ),
    row(
        "implicit supervisor accesses",
        &[Shown::Basics(&[
            "delivery-stack",
            "delivery-idt",
            "delivery-user-stack",
            "ist",
            "double-fault",
        ])],
    ),
    row(
        "instructions that are not emulated",
        &[
            Shown::Basics(&[
                "vector-operands",
                "vector-table",
                "vector-write-protected",
                "vector-faults",
                "vector-steps",
                "vector-beside-code",
                "hole-code",
                "tasks",
            ]),
            Shown::Elsewhere("`cargo xtask forms`"),
        ],
    ),
    row("RIP behind an instruction", &[Shown::Basics(&["last-instruction"])]),
    row(
        "guests with interrupts off",
        &[Shown::Basics(&["nmi-halt"]), Shown::Elsewhere("`crates/umbra/tests/endings.rs`")],
    ),
    row("output", &[Shown::Elsewhere("`crates/umbra/tests/visible.rs`")]),
    row(
        "MSRs and CPUID",
        &[
            Shown::Registers,
            Shown::Basics(&["msr-addresses", "msr-values", "msr-missing", "fpu-error", "rtc"]),
        ],
    ),
    row("PCI", &[Shown::Basics(&["pci"])]),
    row("VGA", &[Shown::Basics(&["vga"])]),
    row(
        "loading",
        &[Shown::Basics(&["modules"]), Shown::Elsewhere("`crates/umbra/tests/small_kernel`")],
    ),
    row(
        "memory",
        &[
            Shown::Basics(&["page-0", "fw-cfg"]),
            Shown::Elsewhere("the boots of `cargo xtask test`"),
        ],
    ),
    row("packages", &[Shown::Elsewhere("`xtask/src/setup`")]),
];

/// Tests that Bochs itself fails, and why.
pub const BOCHS_FAILS: &[(&str, &str)] = &[
    ("step-halt", "a single step does not end HLT in Bochs (SDM, \"HLT\")"),
    ("held-breakpoints", "a trap that MOV SS held back does not end HLT in Bochs (SDM, \"HLT\")"),
];

/// Tests that are not run on the bare machine: what they do to its APIC cannot be undone in Bochs.
pub const NOT_BARE: &str = "apic-base,apic-moved";

/// What the kernel `basics` says of its tests: how many checks, how many failed.
pub fn verdicts(output: &str) -> BTreeMap<&str, (u64, u64)> {
    let mut verdicts = BTreeMap::new();
    for line in output.lines() {
        let Some((head, sums)) = line.split_once(": ") else { continue };
        let Some(name) = head.strip_suffix(" ok").or_else(|| head.strip_suffix(" FAILED")) else {
            continue;
        };
        let mut numbers = sums.split(", ").filter_map(|part| part.split(' ').next()?.parse().ok());
        if let (Some(checks), Some(failures)) = (numbers.next(), numbers.next()) {
            verdicts.insert(name, (checks, failures));
        }
    }
    verdicts
}

/// The sum of some tests, in words; false if one failed, or is missing.
pub fn sum(verdicts: &BTreeMap<&str, (u64, u64)>, tests: &[&str], bare: bool) -> (String, bool) {
    let excused = |test: &str| bare && BOCHS_FAILS.iter().any(|(name, _)| *name == test);
    let (mut checks, mut wrong, mut known) = (0, Vec::new(), 0);
    for &test in tests {
        match verdicts.get(test) {
            Some((count, 0)) => checks += count,
            Some(_) if excused(test) => known += 1,
            _ => wrong.push(test),
        }
    }
    let mut words = format!("{checks} checks");
    if known > 0 {
        words += &format!(", {known} not by Bochs");
    }
    if !wrong.is_empty() {
        words = format!("**wrong**: {}", wrong.join(", "));
    }
    (words, wrong.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "step ...\nstep ok: 14 checks, 0 failures, 239515 ticks\n\
        step-halt FAILED: 1 checks, 1 failures, 20005628 ticks\npci FAILED: 4 checks, 2 failures, 9 ticks\n\
        basics FAILED: 19 checks, 3 failures\n";

    #[test]
    fn verdicts_are_read_and_summed() {
        let verdicts = verdicts(OUTPUT);
        assert_eq!(verdicts["step"], (14, 0));
        assert_eq!(verdicts["pci"], (4, 2));
        assert_eq!(
            sum(&verdicts, &["step", "step-halt"], true),
            ("14 checks, 1 not by Bochs".into(), true)
        );
        assert_eq!(
            sum(&verdicts, &["step", "step-halt"], false),
            ("**wrong**: step-halt".into(), false)
        );
        assert!(!sum(&verdicts, &["pci"], true).1);
        assert!(!sum(&verdicts, &["vga"], true).1, "a test that did not run");
    }
}
