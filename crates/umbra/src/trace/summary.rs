//! A trace in figures: exits by cause with the hypervisor's ticks, and the instructions that exit most.

use std::collections::BTreeMap;
use std::fmt::Write;

use umbra_telemetry::ExitCause;
use umbra_telemetry::trace::{Exit, MmuEvent};

/// Collects exits.
#[derive(Default)]
pub struct Summary {
    /// The ticks of each exit, by cause.
    causes: BTreeMap<ExitCause, Vec<u64>>,
    /// What the MMU did in answer to them, by kind.
    events: BTreeMap<&'static str, u64>,
    /// Exits by instruction.
    places: BTreeMap<(ExitCause, u64), u64>,
}

impl Summary {
    /// Adds an exit; phase marks do not count.
    pub fn add(&mut self, exit: &Exit) {
        let Some(cause) = exit.cause else { return };
        self.causes.entry(cause).or_default().push(exit.ticks);
        *self.places.entry((cause, exit.rip)).or_default() += 1;
    }

    /// Adds what the MMU did in answer to an exit.
    pub fn add_event(&mut self, event: MmuEvent) {
        *self.events.entry(event.kind()).or_default() += 1;
    }

    /// The tables; `top` instructions are named.
    pub fn text(mut self, top: usize) -> String {
        let total: usize = self.causes.values().map(Vec::len).sum();
        let mut text = format!(
            "{:<30} {:>9} {:>6}   {:>7} {:>7} {:>9} {:>13}\n",
            "cause", "exits", "%", "median", "99 %", "most", "ticks"
        );
        let mut line = |name: &str, ticks: &mut Vec<u64>| {
            ticks.sort_unstable();
            let at = |part: usize| ticks[(ticks.len() - 1) * part / 100];
            writeln!(
                text,
                "{name:<30} {:>9} {:>6.1}   {:>7} {:>7} {:>9} {:>13}",
                ticks.len(),
                percent(ticks.len(), total),
                at(50),
                at(99),
                at(100),
                ticks.iter().fold(0_u64, |sum, &ticks| sum.saturating_add(ticks))
            )
            .expect("a text takes everything");
        };
        for (cause, ticks) in &mut self.causes {
            line(cause.name(), ticks);
        }
        let mut all: Vec<_> = self.causes.into_values().flatten().collect();
        if !all.is_empty() {
            line("total", &mut all);
        }

        if !self.events.is_empty() {
            writeln!(text, "\n{:<30} {:>9}", "done by the shadow MMU", "times").expect("as above");
        }
        for (kind, times) in self.events {
            writeln!(text, "{kind:<30} {times:>9}").expect("as above");
        }

        let mut places: Vec<_> = self.places.into_iter().map(|(place, exits)| (exits, place)).collect();
        places.sort_unstable_by_key(|&(exits, _)| std::cmp::Reverse(exits));
        if top > 0 && !places.is_empty() {
            writeln!(text, "\n{:<30} {:>9} {:>6}   rip", "most exits by", "exits", "%").expect("as above");
        }
        for (exits, (cause, rip)) in places.into_iter().take(top) {
            let share = percent(exits as usize, total);
            writeln!(text, "{:<30} {exits:>9} {share:>6.1}   {rip:016x}", cause.name()).expect("as above");
        }
        text
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(cause: ExitCause, rip: u64, ticks: u64) -> Exit {
        Exit {
            time: 0,
            ticks,
            vcpu: 0,
            rip,
            cr3: 0,
            cause: Some(cause),
            address: None,
            value: None,
            gpa: None,
            delivers: None,
        }
    }

    #[test]
    fn medians_and_places() {
        let mut summary = Summary::default();
        (0..101).for_each(|ticks| summary.add(&exit(ExitCause::Io, 0x10, ticks)));
        summary.add(&exit(ExitCause::Hlt, 0x20, 7));
        summary.add(&Exit { cause: None, ..exit(ExitCause::Hlt, 0x30, 7) });
        let text = summary.text(1);
        let words = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line.split_whitespace().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(words("io"), ["io", "101", "99.0", "50", "99", "100", "5050"]);
        assert_eq!(words("total")[1], "102");
        assert!(text.ends_with("0000000000000010\n"));
    }

    #[test]
    fn nothing_is_no_line() {
        assert_eq!(Summary::default().text(5).lines().count(), 1);
    }
}
