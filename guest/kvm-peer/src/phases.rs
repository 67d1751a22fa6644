//! What KVM counted between the guest's phase marks.

use anyhow::Result;
use umbra_devices::Mark;
use umbra_telemetry::PhaseStats;

use crate::counters::Counters;
use crate::sys;

/// The phase that starts at guest entry.
const BOOT: u32 = 0;

/// Counters that a mark's own exit adds to; it is taken off again.
const COUNT_MARKS: &[&str] = &["exits", "io_exits"];

/// Everything counted up to a moment.
#[derive(Clone)]
struct Totals {
    counters: Vec<u64>,
    marks: u64,
    tsc: u64,
}

/// The phases so far.
pub struct Phases {
    counters: Counters,
    /// In the order of their first start, with the totals at the start of those that run.
    phases: Vec<(PhaseStats, Option<Totals>)>,
    /// Exits for marks so far.
    marks: u64,
    at_entry: Totals,
}

/// All that was counted.
pub struct Counted {
    /// Over the whole run, without the marks' exits.
    pub counters: Vec<(String, u64)>,
    /// Ticks from guest entry to the end.
    pub tsc: u64,
    /// In the order of their first start.
    pub phases: Vec<PhaseStats>,
}

impl Phases {
    /// At guest entry: `boot` runs.
    ///
    /// # Errors
    /// KVM's counters cannot be read.
    pub fn new(mut counters: Counters) -> Result<Phases> {
        let values = counters.read()?;
        let at_entry = Totals { counters: values, marks: 0, tsc: sys::tsc() };
        let boot = PhaseStats { id: BOOT, ..PhaseStats::default() };
        let phases = vec![(boot, Some(at_entry.clone()))];
        Ok(Phases { counters, phases, marks: 0, at_entry })
    }

    /// Another exit was for a mark.
    pub fn count_mark(&mut self) {
        self.marks += 1;
    }

    /// The guest marks something at time `tsc`.
    ///
    /// # Errors
    /// KVM's counters cannot be read.
    pub fn mark(&mut self, mark: Mark, tsc: u64) -> Result<()> {
        match mark {
            Mark::BootEnd => self.end(BOOT, 0, tsc),
            Mark::Start { id } => self.start(id),
            Mark::End { id, ops } => self.end(id, ops, tsc),
        }
    }

    fn start(&mut self, id: u32) -> Result<()> {
        let counters = self.counters.read()?;
        // Taken last: reading the counters is not the phase's work.
        let totals = Totals { counters, marks: self.marks, tsc: sys::tsc() };
        match self.phases.iter_mut().find(|(phase, _)| phase.id == id) {
            Some((_, running)) => *running = Some(totals),
            None => self.phases.push((PhaseStats { id, ..PhaseStats::default() }, Some(totals))),
        }
        Ok(())
    }

    fn end(&mut self, id: u32, ops: u32, tsc: u64) -> Result<()> {
        let now = Totals { counters: self.counters.read()?, marks: self.marks, tsc };
        let Some((phase, running)) = self.phases.iter_mut().find(|(phase, _)| phase.id == id)
        else {
            return Ok(());
        };
        let Some(start) = running.take() else { return Ok(()) };
        phase.ops += u64::from(ops);
        phase.tsc += now.tsc - start.tsc;
        let counted = difference(self.counters.names(), &start, &now);
        if phase.counters.is_empty() {
            phase.counters = counted;
        } else {
            phase.counters.iter_mut().zip(counted).for_each(|(sum, (_, more))| sum.1 += more);
        }
        Ok(())
    }

    /// At the end, at time `tsc`: phases that still run end here.
    ///
    /// # Errors
    /// KVM's counters cannot be read.
    pub fn finish(mut self, tsc: u64) -> Result<Counted> {
        let running: Vec<u32> = self
            .phases
            .iter()
            .filter(|(_, start)| start.is_some())
            .map(|(phase, _)| phase.id)
            .collect();
        running.into_iter().try_for_each(|id| self.end(id, 0, tsc))?;
        let now = Totals { counters: self.counters.read()?, marks: self.marks, tsc };
        Ok(Counted {
            counters: difference(self.counters.names(), &self.at_entry, &now),
            tsc: tsc - self.at_entry.tsc,
            phases: self.phases.into_iter().map(|(phase, _)| phase).collect(),
        })
    }
}

fn difference<'a>(
    names: impl Iterator<Item = &'a str>,
    from: &Totals,
    to: &Totals,
) -> Vec<(String, u64)> {
    let marks = to.marks - from.marks;
    let values = from.counters.iter().zip(&to.counters).map(|(from, to)| to - from);
    let counted = names.zip(values).map(|(name, value)| {
        let own = if COUNT_MARKS.contains(&name) { marks } else { 0 };
        (String::from(name), value.saturating_sub(own))
    });
    counted.collect()
}
