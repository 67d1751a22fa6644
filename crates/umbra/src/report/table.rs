//! The table of exits.

use umbra_telemetry::ExitCause;

use super::{Exits, Phase, Range, Statistics};
use crate::console::Table;

/// A column of the table of phases.
pub(crate) struct Group {
    pub(crate) head: &'static str,
    /// Which causes it counts.
    belongs: fn(ExitCause) -> bool,
    /// Which of KVM's counters are that; none if KVM has no counter for it.
    kvm: &'static [&'static str],
}

pub(crate) const GROUPS: &[Group] = &[
    Group {
        head: "injected",
        belongs: |cause| cause.name().starts_with("guest_fault_"),
        kvm: &["pf_guest"],
    },
    Group {
        head: "fixed",
        belongs: |cause| {
            use ExitCause::{HostFaultAccessed, HostFaultDirty, HostFaultInstall, HostFaultLink};
            matches!(cause, HostFaultLink | HostFaultInstall | HostFaultDirty | HostFaultAccessed)
        },
        kvm: &["pf_fixed"],
    },
    Group {
        head: "table-wr",
        belongs: |cause| cause == ExitCause::HostFaultTableWrite,
        kvm: &["pf_emulate"],
    },
    Group {
        head: "cr3",
        belongs: |cause| matches!(cause, ExitCause::Cr3Read | ExitCause::Cr3Write),
        kvm: &[],
    },
    Group { head: "invlpg", belongs: |cause| cause == ExitCause::Invlpg, kvm: &["invlpg"] },
];

impl Group {
    /// The phase's exits of this group, if they are known.
    pub(crate) fn count(&self, phase: &Phase) -> Option<u64> {
        match &phase.kvm {
            Some(_) if self.kvm.is_empty() => None,
            Some(kvm) => Some(kvm.sum(self.kvm)),
            None => phase.exits.as_ref()?.group(self.belongs),
        }
    }
}

/// The exits of a run by cause, and of its phases per operation, at most 100 columns wide. Empty
/// without a report.
pub fn table(statistics: &Statistics) -> String {
    let mut text = String::new();
    if let Some(exits) = &statistics.exits {
        by_cause(&mut text, exits);
    }
    if let Some(mmu) = &statistics.mmu {
        text += &format!(
            "\nshadow pages built {}, zapped {} (reclaimed {}); splits {}, flushes {}\n",
            mmu.built, mmu.zapped, mmu.reclaimed, mmu.splits, mmu.flushes
        );
        if let (Some(detached), Some(attached), Some(moved), Some(switches)) =
            (mmu.detached, mmu.attached, mmu.roots_moved, mmu.filter_switches)
        {
            text += &format!(
                "tables detached {detached}, attached {attached}; roots moved {moved}, filter switches {switches}\n"
            );
        }
        if let (Some(pages), Some(bytes)) = (mmu.live_pages, mmu.metadata_bytes) {
            text += &format!("at the end {pages} shadow pages, {} KiB of metadata\n", bytes >> 10);
        }
    }
    if !statistics.phases.is_empty() {
        by_phase(&mut text, &statistics.phases);
    }
    text
}

fn by_cause(text: &mut String, exits: &Exits) {
    let total = exits.total();
    let mut table = Table::new(1, ["cause", "exits", "%"]).indent(CAUSES);
    let mut row = |name: &str, count: u64| {
        let percent = if total == 0 { 0.0 } else { count as f64 * 100.0 / total as f64 };
        table.row([name.into(), count.to_string(), format!("{percent:.1}")]);
    };
    let mut rest = total;
    for (cause, count) in exits.iter().filter(|(_, count)| *count > 0) {
        row(cause.name(), count);
        rest = rest.saturating_sub(count);
    }
    if rest > 0 {
        row("(not attributed)", rest);
    }
    row("total", total);
    *text += &table.to_string();
}

/// As wide as the longest name of a cause.
const CAUSES: u16 = 32;

fn by_phase(text: &mut String, phases: &[Phase]) {
    let groups = GROUPS.iter().map(|group| group.head);
    let heads =
        ["per operation", "ops", "exits"].into_iter().chain(groups).chain(["other", "ticks"]);
    let mut table = Table::new(1, heads);
    // Phases that count no operations show their sums.
    for phase in phases {
        let per = |count: Option<u64>| match (count, phase.ops) {
            (None, _) => String::from("-"),
            (Some(count), 0) => count.to_string(),
            (Some(count), ops) => per_operation(count as f64 / ops as f64),
        };
        let ops = if phase.ops == 0 { String::from("(sums)") } else { phase.ops.to_string() };
        let total = phase.exits.as_ref().map(Exits::total);
        let groups: Vec<Option<u64>> = GROUPS.iter().map(|group| group.count(phase)).collect();
        let rest = total.map(|total| {
            groups.iter().flatten().fold(total, |rest, &count| rest.saturating_sub(count))
        });
        let ticks = short(phase.tsc as f64 / phase.ops.max(1) as f64);
        let start = [phase.name.to_string(), ops, per(total)];
        table.row(start.into_iter().chain(groups.into_iter().map(per)).chain([per(rest), ticks]));
    }
    *text += &format!("\n{table}");
}

/// How far apart the repeats of each phase were; empty if there were none.
pub fn spread(statistics: &Statistics) -> String {
    let heads = [
        "of all repeats",
        "runs",
        "exits: min",
        "median",
        "max",
        "instructions: min",
        "median",
        "max",
    ];
    let mut table = Table::new(1, heads);
    let mut any = false;
    for (phase, spread) in
        statistics.phases.iter().filter_map(|phase| Some((phase, phase.spread.as_ref()?)))
    {
        any = true;
        let three = |range: Option<Range>| match range {
            Some(Range { min, median, max, .. }) => {
                [min, median, max].map(|count| count.to_string())
            }
            None => [(); 3].map(|()| String::from("-")),
        };
        let start = [phase.name.to_string(), spread.runs.to_string()];
        table.row(start.into_iter().chain(three(spread.exits)).chain(three(spread.instructions)));
    }
    if any { table.to_string() } else { String::new() }
}

/// Two digits behind the point where they say something.
pub fn per_operation(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// A large number in few columns.
pub fn short(value: f64) -> String {
    match value {
        v if v >= 10e9 => format!("{:.1} G", v / 1e9),
        v if v >= 10e6 => format!("{:.1} M", v / 1e6),
        v if v >= 10e3 => format!("{:.1} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_telemetry::ExitCounts;

    use crate::report::Spread;
    use crate::report::schema::tests::statistics;

    #[test]
    fn it_is_narrow_and_leaves_out_what_did_not_happen() {
        let mut statistics = statistics();
        let exits: ExitCounts = [(ExitCause::Io, 300), (ExitCause::Hlt, 100)].into_iter().collect();
        statistics.exits = Some(Exits::from(&exits));
        let text = table(&statistics);
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(!text.contains("cpuid"), "{text}");
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["cause", "exits", "%"]);
        assert_eq!(rows[1], ["io", "300", "75.0"]);
        assert_eq!(rows[2], ["hlt", "100", "25.0"]);
        assert_eq!(rows[3], ["total", "400", "100.0"]);
    }

    #[test]
    fn phases_are_per_operation_and_their_columns_add_up() {
        let text = table(&statistics());
        let row: Vec<&str> = text
            .lines()
            .find(|line| line.starts_with("demand"))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(row[1], "1024");
        let numbers: Vec<f64> = row[2..9].iter().map(|number| number.parse().unwrap()).collect();
        let parts: f64 = numbers[1..].iter().sum();
        assert!((numbers[0] - parts).abs() < 0.05, "{text}");
        assert_eq!(row[9], "4883");
    }

    #[test]
    fn repeats_are_shown_by_their_ends_and_their_middle() {
        let mut statistics = statistics();
        assert_eq!(spread(&statistics), "");
        let range = Range { min: 1, lower_quartile: 2, median: 3, upper_quartile: 4, max: 5 };
        statistics.phases[0].spread = Some(Spread {
            runs: 7,
            exits: Some(range),
            memory_exits: None,
            instructions: None,
            tsc: range,
        });
        let text = spread(&statistics);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["demand", "7", "1", "3", "5", "-", "-", "-"]);
        assert!(text.lines().count() == 2 && text.lines().all(|line| line.len() <= 100), "{text}");
    }

    #[test]
    fn absurd_counts_are_shown() {
        let mut statistics = statistics();
        let counts: ExitCounts = ExitCause::ALL.iter().map(|&cause| (cause, u64::MAX)).collect();
        statistics.exits = Some(Exits::from(&counts));
        statistics.phases[0].exits = Some(Exits::from(&counts));
        assert!(table(&statistics).contains(&u64::MAX.to_string()));
    }

    #[test]
    fn no_exits_are_no_division_by_zero() {
        let mut statistics = statistics();
        statistics.exits = Some(Exits::from(&ExitCounts::default()));
        assert!(table(&statistics).contains(" 0.0\n"));
        (statistics.exits, statistics.mmu, statistics.phases) = (None, None, Vec::new());
        assert_eq!(table(&statistics), "");
    }
}
