//! What the programs have met: mode of code, operand, event.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::candidate::Candidate;
use super::mode::Mode;
use super::runner::Outcome;

/// Counts of steps that ran.
#[derive(Default)]
pub struct Coverage {
    /// By mode, operand and event; an event is a vector.
    seen: BTreeMap<(Mode, String, u32), u64>,
    programs: u64,
    events: u64,
    /// Programs that ended before an event of one of their steps.
    idle: u64,
}

/// The column of steps without an event.
const NONE: u32 = u32::MAX;

impl Coverage {
    /// Adds what a program did.
    pub fn add(&mut self, candidate: &Candidate, outcome: &Outcome) {
        self.programs += 1;
        self.events += outcome.events.len() as u64;
        let mode = candidate.start.mode;
        let mut add = |operand: &str, event| {
            *self.seen.entry((mode, operand.into(), event)).or_default() += 1;
        };
        // Steps behind the last event were not run.
        let last = outcome.last_step();
        self.idle += u64::from(last.is_none());
        for (index, step) in candidate.steps.iter().enumerate() {
            if last.is_some_and(|last| index <= last) {
                let mut vectors = outcome.events.iter().filter(|(_, at)| *at == index).peekable();
                if vectors.peek().is_none() {
                    add(&step.operand, NONE);
                }
                vectors.for_each(|&(vector, _)| add(&step.operand, vector));
            }
        }
    }
}

fn event_name(event: u32) -> String {
    let known =
        ["#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS"];
    match event {
        NONE => "-".into(),
        13 => "#GP".into(),
        14 => "#PF".into(),
        16 => "#MF".into(),
        17 => "#AC".into(),
        19 => "#XM".into(),
        0x40..=0x50 => "INT n".into(),
        0x51 => "INTR".into(),
        0x80 => "end".into(),
        0x108 => "task".into(),
        other => {
            known.get(other as usize).map_or_else(|| format!("{other:#x}"), |name| (*name).into())
        }
    }
}

impl fmt::Display for Coverage {
    /// A table of operands and events, then one of modes and events; how many of the cells mode x
    /// operand x event have been met.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut columns = BTreeSet::new();
        let mut by_operand: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
        let mut by_mode: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
        for ((mode, operand, event), count) in &self.seen {
            let event = event_name(*event);
            *by_operand.entry(operand).or_default().entry(event.clone()).or_default() += count;
            *by_mode.entry(mode.name).or_default().entry(event.clone()).or_default() += count;
            columns.insert(event);
        }
        for (title, rows) in [("operand", &by_operand), ("mode", &by_mode)] {
            writeln!(
                f,
                "| {title} | {} |",
                columns.iter().cloned().collect::<Vec<_>>().join(" | ")
            )?;
            writeln!(f, "|---|{}", "---|".repeat(columns.len()))?;
            for (row, counts) in rows {
                let cells: Vec<_> = columns
                    .iter()
                    .map(|column| counts.get(column).unwrap_or(&0).to_string())
                    .collect();
                writeln!(f, "| {row} | {} |", cells.join(" | "))?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "{} programs, {} of them without an event of their own, {} events; {} cells of mode x \
             operand x event",
            self.programs,
            self.idle,
            self.events,
            self.seen.len()
        )
    }
}
