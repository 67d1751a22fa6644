//! What is counted, and the report.

use alloc::vec::Vec;

use umbra_devices::Mark;
use umbra_telemetry::trace::Record;
use umbra_telemetry::{ExitCause, ExitCounts, GuestExit, Message, MmuCounters, Stats};
use umbra_vcpu::backend::Backend;
use umbra_vcpu::phases::{BOOT, Phases, Totals};

use super::Vcpu;
use super::audit::Auditor;
use crate::telemetry;

/// Exits by cause, and between the guest's phase marks.
#[derive(Default)]
pub struct Accounts {
    exits: ExitCounts,
    phases: Phases,
}

impl Accounts {
    /// Counts an exit.
    pub fn count(&mut self, cause: ExitCause) {
        self.exits.count(cause);
    }
}

impl<B: Backend> Vcpu<B> {
    /// Everything counted so far.
    fn totals(&self) -> Totals {
        let counters = self.mmu.counters();
        Totals {
            exits: self.accounts.exits.clone(),
            mmu: MmuCounters {
                built: counters.built,
                zapped: counters.zapped,
                reclaimed: counters.reclaimed,
                splits: counters.splits,
                flushes: counters.flushes,
                attached: counters.attached,
                detached: counters.detached,
                roots_moved: counters.roots_moved,
                filter_switches: counters.filter_switches,
                live_pages: self.mmu.live_pages().into(),
                metadata_bytes: self.mmu.metadata_bytes() as u64,
            },
            tsc: self.time.now(),
        }
    }

    /// Tells the host what was counted so far.
    pub(super) fn send_counts(&self) {
        let exits = self.accounts.exits.clone();
        telemetry::send(&Message::Counts { exits, tsc: self.time.now() });
    }

    /// A phase mark of the guest.
    pub(super) fn mark(&mut self, mark: Mark) {
        let arrived = self.time.now();
        self.audit_everything();
        self.trace_phase(match mark {
            Mark::BootEnd => Record::PhaseEnd(BOOT),
            Mark::Start { id } => Record::PhaseStart(id),
            Mark::End { id, .. } => Record::PhaseEnd(id),
        });
        // What the mark itself takes belongs to no phase.
        let mut totals = self.totals();
        totals.tsc = match mark {
            Mark::Start { .. } => self.time.now(),
            Mark::BootEnd | Mark::End { .. } => arrived,
        };
        self.accounts.phases.mark(mark, &totals);
    }

    /// Reports on the guest, which has ended like this, and ends the machine.
    pub(super) fn finish(mut self, end: GuestExit) -> ! {
        self.audit_everything();
        self.flush_output();
        self.show_last_screen();
        self.finish_trace();
        let totals = self.totals();
        // The guest's time has ended: this costs none of it.
        let canary = self.canary.check();
        if let Err(hpa) = canary {
            self.end = Some(GuestExit::CanaryBroken { hpa: hpa.raw() });
        }
        // What was found wrong now says more than how the guest ended.
        let guest_exit = self.end.take().unwrap_or(end);
        telemetry::end(Stats {
            guest_exit,
            guest_faults: self.settings.guest_faults,
            filter: self.space.filter_name().into(),
            exits: totals.exits.clone(),
            mmu: totals.mmu,
            tsc: totals.tsc,
            counters: Vec::new(),
            phases: self.accounts.phases.finish(&totals),
            audits: self.auditor.as_ref().map_or((0, 0), Auditor::counts),
            canary: canary.ok(),
        })
    }
}
