//! The table: rows, and a column for each machine and treatment of page faults.

use std::fmt;

use anyhow::Result;

use super::lines::Lines;
use super::machine::{Observed, cpu};
use super::rows::{ROWS, Shown};
use super::{events, msrs, rows};
use crate::umbra_run::{Machine, Policy, name};

/// What one run has shown.
pub struct Column {
    name: String,
    /// One for each row.
    cells: Vec<String>,
    right: bool,
    /// Differences with their reasons.
    reasons: String,
    first_wrong_event: Option<String>,
}

/// What the rows that compare have found.
struct Compared {
    msrs: msrs::Comparison,
    events: events::Comparison,
}

impl Column {
    /// The bare machine's: what it does is right, but where Bochs is known to be wrong.
    ///
    /// # Errors
    /// The output cannot be read.
    pub fn bare(machine: Machine, bare: &Observed) -> Result<Column> {
        Lines::read(&bare.exact)?;
        Ok(Column::new(name(machine, None), bare, None, String::new()))
    }

    /// Umbra's.
    ///
    /// # Errors
    /// The output cannot be read.
    pub fn umbra(
        machine: Machine,
        policy: Policy,
        bare: &Observed,
        found: &Observed,
    ) -> Result<Column> {
        let cpu = cpu(machine);
        let (right, other) = (Lines::read(&bare.exact)?, Lines::read(&found.exact)?);
        let compared = Compared {
            msrs: msrs::compare(&cpu, &right, &other),
            events: events::compare(&right, &other),
        };
        let name = name(machine, Some(policy));
        let reasons = format!(
            "{name}: {}\n{}{}\n{}",
            compared.msrs,
            msrs::reasons(&cpu, &right, &other),
            compared.events,
            events::reasons(&compared.events)
        );
        Ok(Column::new(name, found, Some(compared), reasons))
    }

    fn new(
        name: String,
        observed: &Observed,
        compared: Option<Compared>,
        reasons: String,
    ) -> Column {
        let verdicts = rows::verdicts(&observed.basics);
        let bare = compared.is_none();
        let mut right = true;
        let mut cell = |shown: &Shown| match (shown, &compared) {
            (Shown::Registers, None) => "the measure".into(),
            (Shown::Registers, Some(Compared { msrs, .. })) => {
                right &= msrs.wrong.is_empty();
                match msrs.wrong.len() {
                    0 => format!("{} alike, {} by the table", msrs.alike, msrs.explained()),
                    wrong => format!("**{wrong} wrong**"),
                }
            }
            (Shown::Events(tests), compared) => {
                let (words, passed) = rows::sum(&verdicts, tests, bare);
                right &= passed;
                let events = match compared {
                    None => "the measure".into(),
                    Some(Compared { events, .. }) if events.wrong.is_empty() => {
                        format!("{} alike, {} by Bochs", events.alike, events.explained())
                    }
                    Some(Compared { events, .. }) => {
                        right = false;
                        format!("**{} wrong**", events.wrong.len())
                    }
                };
                format!("{events}; {words}")
            }
            (Shown::Basics(tests), _) => {
                let (words, passed) = rows::sum(&verdicts, tests, bare);
                right &= passed;
                words
            }
            (Shown::Elsewhere(where_), _) => format!("see {where_}"),
        };
        let cells =
            ROWS.iter().map(|row| row.shown.iter().map(&mut cell).collect::<Vec<_>>().join("; "));
        let cells = cells.collect();
        let first_wrong_event = compared.and_then(|compared| compared.events.first_wrong);
        Column { name, cells, right, reasons, first_wrong_event }
    }

    /// A line of event delivery that is not as on the bare machine.
    pub fn first_wrong_event(&self) -> Option<&str> {
        self.first_wrong_event.as_deref()
    }
}

/// All columns.
#[derive(Default)]
pub struct Table(Vec<Column>);

impl Table {
    /// Adds a column.
    pub fn push(&mut self, column: Column) {
        self.0.push(column);
    }

    /// Whether nothing is wrong.
    pub fn is_right(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|column| column.right)
    }
}

impl fmt::Display for Table {
    /// As Markdown: one table for each machine, then the reasons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|column| column.name.as_str()).collect();
        writeln!(f, "| | {} |", names.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(names.len()))?;
        for (index, row) in ROWS.iter().enumerate() {
            let cells: Vec<_> = self.0.iter().map(|column| column.cells[index].as_str()).collect();
            writeln!(f, "| {} | {} |", row.name, cells.join(" | "))?;
        }
        writeln!(f)?;
        for (test, why) in rows::BOCHS_FAILS {
            writeln!(f, "not by Bochs: {test}: {why}")?;
        }
        self.0.iter().try_for_each(|column| writeln!(f, "{}", column.reasons))
    }
}
