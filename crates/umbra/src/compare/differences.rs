//! What makes results unequal, so that figures beside each other do not say what they seem to.

use std::collections::BTreeMap;

use crate::report::{Named, Statistics};
use crate::trace::Head;
use crate::untrusted::Untrusted;

/// What a guest is told only where it must count itself: `umbra run --hypervisor none` adds it.
const OF_BARE_MACHINE: &[&str] = &["umbra.bare", "reboot=triple", "clearcpuid=mwaitx"];

/// Phases with other operations that are named one by one.
const NAMED: usize = 4;

/// How results differ from the first in what should be equal, one sentence each. What runs the
/// guest, on which machine, and with which switches, is not among it: that is what results are
/// compared for, and stands in their labels.
///
/// `name` is what a result is called in the sentences.
pub fn differences(results: &[Named], name: impl Fn(usize) -> String) -> Vec<String> {
    let Some((first, others)) = results.split_first() else { return Vec::new() };
    let base = &first.statistics;
    let mut sentences = Vec::new();
    for (index, other) in (1..).zip(others) {
        let other = &other.statistics;
        let mut say = |what: &str, own: String, of_base: String| {
            sentences.push(format!(
                "{}: {what} is {own}, and {of_base} in {}",
                name(index),
                name(0)
            ));
        };
        if other.kernel != base.kernel {
            say("the kernel", other.kernel.to_string(), base.kernel.to_string());
        }
        if words(other) != words(base) {
            say("the command line", quoted(&other.cmdline), quoted(&base.cmdline));
        }
        if other.memory != base.memory {
            say("guest memory", format!("{} MiB", other.memory), format!("{} MiB", base.memory));
        }
        if other.version != base.version {
            say("the version of Umbra", other.version.to_string(), base.version.to_string());
        }
        if other.audits.is_some() != base.audits.is_some() {
            let audits = |result: &Statistics| {
                String::from(if result.audits.is_some() { "on" } else { "off" })
            };
            say("the auditor", audits(other), audits(base));
        }
        sentences.extend(
            operations(base, other).map(|what| format!("{}: {what} in {}", name(index), name(0))),
        );
    }
    for (index, result) in results.iter().enumerate() {
        let end = &result.statistics.guest_exit;
        if !is_well(end.as_str()) {
            sentences.push(format!("{}: the guest did not end well: {end}", name(index)));
        }
    }
    sentences
}

/// How the run of a trace differs from that of a result which stands beside it, one sentence each.
pub fn differences_of_trace(trace: &Head, result: &Statistics, name: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut say = |what: &str, own: String, of_result: String| {
        if own != of_result {
            sentences.push(format!("the trace: {what} is {own}, and {of_result} in {name}"));
        }
    };
    let joined = |names: &[Untrusted]| match names {
        [] => String::from("nothing"),
        names => names.iter().map(Untrusted::to_string).collect::<Vec<_>>().join(", "),
    };
    say("the machine", trace.machine.to_string(), result.machine.to_string());
    say("the kernel", trace.kernel.to_string(), result.kernel.to_string());
    say("the command line", quoted(&trace.cmdline), quoted(&result.cmdline));
    say("guest memory", format!("{} MiB", trace.memory), format!("{} MiB", result.memory));
    say("what is switched off", joined(&trace.without), joined(&result.without));
    sentences
}

/// Phases of both that are other work in one than in the other. (A result of fewer phases has
/// another command line, and is told by that.)
fn operations(base: &Statistics, other: &Statistics) -> impl Iterator<Item = String> {
    let ops = |result: &Statistics| -> BTreeMap<u32, (String, u64)> {
        result.phases.iter().map(|phase| (phase.id, (phase.name.to_string(), phase.ops))).collect()
    };
    let (base, other) = (ops(base), ops(other));
    let mut unequal: Vec<String> = Vec::new();
    for (id, (name, ops)) in &other {
        match base.get(id) {
            Some((_, of_base)) if of_base != ops => {
                unequal.push(format!("{name} is {ops} operations, and {of_base}"))
            }
            _ => (),
        }
    }
    let more = unequal.len().saturating_sub(NAMED);
    unequal.truncate(NAMED);
    if more > 0 {
        unequal.push(format!("{more} more phases have other operations than"));
    }
    unequal.into_iter()
}

/// The command line without what only the bare machine is told.
fn words(result: &Statistics) -> Vec<&str> {
    let of_bare = |word: &&str| result.hypervisor == "none" && OF_BARE_MACHINE.contains(word);
    result.cmdline.as_str().split_whitespace().filter(|word| !of_bare(word)).collect()
}

fn quoted(text: &Untrusted) -> String {
    format!("`{text}`")
}

/// Whether a guest's end is one that `umbra run` takes for success (SCHEMA.md, "How the guest
/// ended").
fn is_well(end: &str) -> bool {
    matches!(end, "acpi_off" | "shutdown") || (end.starts_with("exit_port:") && end.ends_with("=0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::statistics;

    fn said(change: impl FnOnce(&mut Statistics)) -> Vec<String> {
        let mut other = statistics();
        change(&mut other);
        let named = |name: &str, statistics| Named { name: name.into(), statistics };
        differences(&[named("a", statistics()), named("b", other)], |index| {
            ["base", "[1]"][index].into()
        })
    }

    #[test]
    fn what_results_are_compared_for_is_no_difference() {
        assert_eq!(said(|_| ()), [] as [&str; 0]);
        let peer = said(|other| {
            (other.hypervisor, other.machine) = ("kvm".into(), "skylake".into());
            (other.guest_faults, other.filter) = ("trap".into(), None);
            other.without.clear();
            (other.exits, other.mmu, other.tsc) = (None, None, Some(1));
        });
        assert_eq!(peer, [] as [&str; 0]);
        // What the bare machine's guest is told in addition is not the user's doing.
        let bare = |line: &str| {
            said(|other| (other.hypervisor, other.cmdline) = ("none".into(), line.into()))
        };
        assert_eq!(
            bare("console=ttyS0 \"quoted\" umbra.bare reboot=triple clearcpuid=mwaitx"),
            [] as [&str; 0]
        );
        assert_eq!(bare("console=ttyS0 umbra.bare reboot=triple").len(), 1);
    }

    #[test]
    fn each_difference_is_a_sentence() {
        for (sentences, expected) in [
            (
                said(|other| other.kernel = "6.2".into()),
                "[1]: the kernel is 6.2, and 6.1.0 in base",
            ),
            (
                said(|other| other.cmdline = "quiet\x1b".into()),
                "[1]: the command line is `quiet\\u{1b}`, and `console=ttyS0 \"quoted\"` in base",
            ),
            (said(|other| other.memory = 64), "[1]: guest memory is 64 MiB, and 192 MiB in base"),
            (
                said(|other| other.version = "9".into()),
                "[1]: the version of Umbra is 9, and 0.1.0 in base",
            ),
            (said(|other| other.audits = None), "[1]: the auditor is off, and on in base"),
            (
                said(|other| other.phases[0].ops = 102),
                "[1]: demand is 102 operations, and 1024 in base",
            ),
            (
                said(|other| other.guest_exit = "timeout".into()),
                "[1]: the guest did not end well: timeout",
            ),
        ] {
            assert_eq!(sentences, [expected]);
        }
    }

    #[test]
    fn a_trace_of_another_run_is_named() {
        let result = statistics();
        let head = Head {
            machine: "penryn".into(),
            kernel: "6.1.0".into(),
            cmdline: result.cmdline.clone(),
            memory: 192,
            without: vec!["cr3".into()],
            ..Head::default()
        };
        assert_eq!(differences_of_trace(&head, &result, "A"), [] as [&str; 0]);
        let other = Head { memory: 64, without: Vec::new(), ..head };
        assert_eq!(
            differences_of_trace(&other, &result, "A"),
            [
                "the trace: guest memory is 64 MiB, and 192 MiB in A",
                "the trace: what is switched off is nothing, and cr3 in A",
            ]
        );
    }

    #[test]
    fn many_phases_are_not_named_one_by_one() {
        let ops = |ops| {
            let mut result = statistics();
            result.phases = (1..20)
                .map(|id| {
                    let mut phase = result.phases[0].clone();
                    (phase.id, phase.name, phase.ops) =
                        (id, umbra_telemetry::phase_name(id).into(), ops);
                    phase
                })
                .collect();
            result
        };
        let unequal: Vec<_> = operations(&ops(100), &ops(10)).collect();
        assert_eq!(unequal.len(), NAMED + 1);
        assert_eq!(unequal[NAMED], "15 more phases have other operations than");
    }

    #[test]
    fn a_guest_ends_well_by_its_own_will() {
        assert!(is_well("acpi_off") && is_well("exit_port:0xf4=0"));
        assert!(!is_well("exit_port:0xf4=10") && !is_well("cut_off"));
    }
}
