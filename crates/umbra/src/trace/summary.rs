//! A trace in figures: exits by cause with the hypervisor's ticks, and the instructions that exit
//! most.

use std::collections::BTreeMap;

use umbra_telemetry::ExitCause;
use umbra_telemetry::trace::{Exit, MmuEvent};

use super::symbols::Symbols;
use crate::console::Table;

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

    /// The tables; `top` instructions are listed, with the names of their places if there are
    /// symbols.
    pub fn text(mut self, top: usize, symbols: Option<&Symbols>) -> String {
        let total: usize = self.causes.values().map(Vec::len).sum();
        let mut table = Table::new(1, ["cause", "exits", "%", "median", "99 %", "most", "ticks"])
            .indent(CAUSES);
        let mut line = |name: &str, ticks: &mut Vec<u64>| {
            ticks.sort_unstable();
            let at = |part: usize| ticks[(ticks.len() - 1) * part / 100].to_string();
            let sum = ticks.iter().fold(0_u64, |sum, &ticks| sum.saturating_add(ticks));
            let share = percent(ticks.len(), total);
            table.row([
                name.into(),
                ticks.len().to_string(),
                share,
                at(50),
                at(99),
                at(100),
                sum.to_string(),
            ]);
        };
        for (cause, ticks) in &mut self.causes {
            line(cause.name(), ticks);
        }
        let mut all: Vec<_> = self.causes.into_values().flatten().collect();
        if !all.is_empty() {
            line("total", &mut all);
        }
        let mut text = table.to_string();

        if !self.events.is_empty() {
            let mut table = Table::new(1, ["done by the shadow MMU", "times"]).indent(CAUSES);
            self.events
                .into_iter()
                .for_each(|(kind, times)| table.row([kind.into(), times.to_string()]));
            text += &format!("\n{table}");
        }

        let mut places: Vec<_> =
            self.places.into_iter().map(|(place, exits)| (exits, place)).collect();
        places.sort_unstable_by_key(|&(exits, _)| std::cmp::Reverse(exits));
        if top > 0 && !places.is_empty() {
            let function = symbols.map(|_| "by");
            let heads = ["most exits by", "exits", "%", "rip"].into_iter().chain(function);
            let mut table = Table::new(1, heads).indent(CAUSES).left(4);
            for (exits, (cause, rip)) in places.into_iter().take(top) {
                let share = percent(exits as usize, total);
                let place = symbols.map(|symbols| {
                    symbols.place(rip).map_or(String::new(), |place| place.to_string())
                });
                let cells = [cause.name().into(), exits.to_string(), share, format!("{rip:016x}")];
                table.row(cells.into_iter().chain(place));
            }
            text += &format!("\n{table}");
        }
        text
    }
}

/// As wide as the longest name of a cause.
const CAUSES: u16 = 30;

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1}", part as f64 * 100.0 / whole as f64)
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
        let symbols = Symbols::parse("00000008 T out\n00000020 T _end\n").unwrap();
        let text = summary.text(1, Some(&symbols));
        let words = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line.split_whitespace().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(words("io"), ["io", "101", "99.0", "50", "99", "100", "5050"]);
        assert_eq!(words("total")[1], "102");
        assert!(text.ends_with("0000000000000010  out+0x8\n"), "{text}");
    }

    #[test]
    fn nothing_is_no_line() {
        assert_eq!(Summary::default().text(5, None).lines().count(), 1);
    }
}
