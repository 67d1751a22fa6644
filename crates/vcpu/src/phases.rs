//! What happened between the guest's phase marks.

use alloc::vec::Vec;

use umbra_devices::Mark;
use umbra_telemetry::{ExitCounts, MmuCounters, PhaseStats};

/// Distinct phases that are kept; a guest that marks more has its further ones ignored.
const MAX_PHASES: usize = 1024;

/// The phase that starts at guest entry.
pub const BOOT: u32 = 0;

/// Everything counted up to some moment.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Exits.
    pub exits: ExitCounts,
    /// The MMU's work.
    pub mmu: MmuCounters,
    /// Ticks since guest entry.
    pub tsc: u64,
}

/// The phases so far.
#[derive(Debug)]
pub struct Phases {
    /// In the order of their first start, with the totals at the start of those that run.
    phases: Vec<(PhaseStats, Option<Totals>)>,
}

impl Default for Phases {
    /// At guest entry: the same as [`Phases::new`].
    fn default() -> Phases {
        Phases::new()
    }
}

impl Phases {
    /// At guest entry: `boot` runs.
    pub fn new() -> Phases {
        let mut phases = Phases { phases: Vec::new() };
        phases.start(BOOT, &Totals::default());
        phases
    }

    /// The guest marks something.
    pub fn mark(&mut self, mark: Mark, totals: &Totals) {
        match mark {
            Mark::BootEnd => self.end(BOOT, 0, totals),
            Mark::Start { id } => self.start(id, totals),
            Mark::End { id, ops } => self.end(id, ops, totals),
        }
    }

    fn start(&mut self, id: u32, totals: &Totals) {
        let room = self.phases.len() < MAX_PHASES;
        match self.phases.iter_mut().find(|(phase, _)| phase.id == id) {
            Some((_, running)) => *running = Some(totals.clone()),
            None if room => {
                self.phases
                    .push((PhaseStats { id, ..PhaseStats::default() }, Some(totals.clone())));
            }
            None => (),
        }
    }

    fn end(&mut self, id: u32, ops: u32, totals: &Totals) {
        let found = self.phases.iter_mut().find(|(phase, _)| phase.id == id);
        let Some((phase, running)) = found else { return };
        let Some(start) = running.take() else { return };
        phase.ops = phase.ops.saturating_add(ops.into());
        phase.exits.add(&totals.exits.since(&start.exits));
        phase.mmu.add(&totals.mmu.since(&start.mmu));
        phase.tsc += totals.tsc - start.tsc;
    }

    /// At the end: phases that still run end here.
    pub fn finish(mut self, totals: &Totals) -> Vec<PhaseStats> {
        let running: Vec<u32> = self
            .phases
            .iter()
            .filter(|(_, start)| start.is_some())
            .map(|(phase, _)| phase.id)
            .collect();
        running.into_iter().for_each(|id| self.end(id, 0, totals));
        self.phases.into_iter().map(|(phase, _)| phase).collect()
    }
}

#[cfg(test)]
mod tests {
    use umbra_telemetry::ExitCause;

    use super::*;

    fn totals(hlts: u64) -> Totals {
        let mut totals = Totals { tsc: hlts * 10, ..Totals::default() };
        (0..hlts).for_each(|_| totals.exits.count(ExitCause::Hlt));
        totals.mmu.built = hlts * 2;
        totals
    }

    #[test]
    fn repeats_accumulate_and_open_phases_end_with_the_guest() {
        let mut phases = Phases::new();
        phases.mark(Mark::BootEnd, &totals(5));
        phases.mark(Mark::Start { id: 7 }, &totals(6));
        phases.mark(Mark::End { id: 7, ops: 3 }, &totals(8));
        phases.mark(Mark::End { id: 7, ops: 100 }, &totals(9));
        phases.mark(Mark::Start { id: 7 }, &totals(10));
        phases.mark(Mark::End { id: 7, ops: 4 }, &totals(11));
        phases.mark(Mark::Start { id: 9 }, &totals(11));
        let found = phases.finish(&totals(12));
        let summary: Vec<_> =
            found.iter().map(|p| (p.id, p.ops, p.exits.total(), p.mmu.built, p.tsc)).collect();
        assert_eq!(summary, [(0, 0, 5, 10, 50), (7, 7, 3, 6, 30), (9, 0, 1, 2, 10)]);
    }

    #[test]
    fn a_guest_cannot_fill_the_heap_with_phases() {
        let mut phases = Phases::new();
        (1..100_000).for_each(|id| phases.mark(Mark::Start { id }, &totals(0)));
        assert_eq!(phases.finish(&totals(1)).len(), MAX_PHASES);
    }
}
