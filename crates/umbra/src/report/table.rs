//! The table of exits.

use std::fmt::Write;

use umbra_telemetry::{ExitCause, ExitCounts};

use super::{Phase, Statistics};

/// A column of the table of phases: its head, and which causes it counts.
type Group = (&'static str, fn(ExitCause) -> bool);

const GROUPS: &[Group] = &[
    ("injected", |cause| cause.name().starts_with("guest_fault_")),
    ("fixed", |cause| {
        use ExitCause::{HostFaultAccessed, HostFaultDirty, HostFaultInstall, HostFaultLink};
        matches!(cause, HostFaultLink | HostFaultInstall | HostFaultDirty | HostFaultAccessed)
    }),
    ("table-wr", |cause| cause == ExitCause::HostFaultTableWrite),
    ("cr3", |cause| matches!(cause, ExitCause::Cr3Read | ExitCause::Cr3Write)),
    ("invlpg", |cause| cause == ExitCause::Invlpg),
];

/// The exits of a run by cause, and of its phases per operation, at most 100 columns wide. Empty without a report.
pub fn table(statistics: &Statistics) -> String {
    let Some(exits) = &statistics.exits else { return String::new() };
    let mut text = String::new();
    by_cause(&mut text, &exits.0);
    if let Some(mmu) = &statistics.mmu {
        text += &format!(
            "\nshadow pages built {}, zapped {} (reclaimed {}); splits {}, flushes {}\n",
            mmu.built, mmu.zapped, mmu.reclaimed, mmu.splits, mmu.flushes
        );
    }
    if !statistics.phases.is_empty() {
        by_phase(&mut text, &statistics.phases);
    }
    text
}

fn by_cause(text: &mut String, exits: &ExitCounts) {
    let total = exits.total();
    let mut row = |name: &str, count: u64| {
        let percent = if total == 0 { 0.0 } else { count as f64 * 100.0 / total as f64 };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name:<32} {count:>14} {percent:>6.1} %");
    };
    for (cause, count) in exits.iter().filter(|(_, count)| *count > 0) {
        row(cause.name(), count);
    }
    row("total", total);
}

fn by_phase(text: &mut String, phases: &[Phase]) {
    *text += &format!("\n{:<18} {:>7} {:>9}", "per operation", "ops", "exits");
    for (name, _) in GROUPS {
        *text += &format!(" {name:>8}");
    }
    *text += &format!(" {:>8} {:>9}", "other", "ticks");
    // Phases that count no operations show their sums.
    for phase in phases {
        let total = phase.exits.0.total();
        let per = |count: u64| match phase.ops {
            0 => count.to_string(),
            ops => per_operation(count as f64 / ops as f64),
        };
        let ops = if phase.ops == 0 { String::from("(sums)") } else { phase.ops.to_string() };
        *text += &format!("\n{:<18} {ops:>7} {:>9}", phase.name, per(total));
        let mut rest = total;
        for (_, belongs) in GROUPS {
            let causes = phase.exits.0.iter().filter(|(cause, _)| belongs(*cause));
            let count = causes.fold(0, |sum: u64, (_, count)| sum.saturating_add(count));
            rest = rest.saturating_sub(count);
            *text += &format!(" {:>8}", per(count));
        }
        *text += &format!(" {:>8} {:>9}", per(rest), short(phase.tsc as f64 / phase.ops.max(1) as f64));
    }
    text.push('\n');
}

/// Two digits behind the point where they say something.
fn per_operation(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// A large number in few columns.
fn short(value: f64) -> String {
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
    use crate::report::Exits;
    use crate::report::schema::tests::statistics;

    #[test]
    fn it_is_narrow_and_leaves_out_what_did_not_happen() {
        let mut statistics = statistics();
        let exits = [(ExitCause::Io, 300), (ExitCause::Hlt, 100)].into_iter().collect();
        statistics.exits = Some(Exits(exits));
        let text = table(&statistics);
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(!text.contains("cpuid"), "{text}");
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["io", "300", "75.0", "%"]);
        assert_eq!(rows[1], ["hlt", "100", "25.0", "%"]);
        assert_eq!(rows[2], ["total", "400", "100.0", "%"]);
    }

    #[test]
    fn phases_are_per_operation_and_their_columns_add_up() {
        let text = table(&statistics());
        let row: Vec<&str> =
            text.lines().find(|line| line.starts_with("demand")).unwrap().split_whitespace().collect();
        assert_eq!(row[1], "1024");
        let numbers: Vec<f64> = row[2..9].iter().map(|number| number.parse().unwrap()).collect();
        let parts: f64 = numbers[1..].iter().sum();
        assert!((numbers[0] - parts).abs() < 0.05, "{text}");
        assert_eq!(row[9], "4883");
    }

    #[test]
    fn absurd_counts_are_shown() {
        let mut statistics = statistics();
        let counts: ExitCounts = ExitCause::ALL.iter().map(|&cause| (cause, u64::MAX)).collect();
        statistics.exits = Some(Exits(counts.clone()));
        statistics.phases[0].exits = Exits(counts);
        assert!(table(&statistics).contains(&u64::MAX.to_string()));
    }

    #[test]
    fn no_exits_are_no_division_by_zero() {
        let mut statistics = statistics();
        statistics.exits = Some(Exits(ExitCounts::default()));
        assert!(table(&statistics).contains("0.0 %"));
        statistics.exits = None;
        assert_eq!(table(&statistics), "");
    }
}
