//! The live auditor: checks the shadow MMU's invariants while the guest runs, in time that the
//! guest does not see.

use umbra_mmu::Violation;
use umbra_telemetry::{Audit, GuestExit};
use umbra_vcpu::backend::Backend;

use super::Vcpu;
use super::time::AlarmAfter;
use crate::hw::cpu;

/// When to audit, and how often it was done.
pub struct Auditor {
    config: Audit,
    /// Exits since the last check of everything.
    since: u32,
    per_exit: u64,
    full: u64,
}

impl Auditor {
    /// Audits as configured.
    pub fn new(config: Audit) -> Auditor {
        Auditor { config, since: 0, per_exit: 0, full: 0 }
    }

    /// Checks made: (per exit, of everything).
    pub fn counts(&self) -> (u64, u64) {
        (self.per_exit, self.full)
    }
}

impl<B: Backend> Vcpu<B> {
    /// Checks what the exit changed, and everything if it is time.
    pub(super) fn audit_exit(&mut self) {
        let Some(auditor) = &mut self.auditor else { return };
        auditor.since += 1;
        if auditor.since >= auditor.config.every {
            return self.audit_everything();
        }
        auditor.per_exit += 1;
        self.audit_with(|vcpu| vcpu.mmu.audit_changed(&vcpu.env));
    }

    /// Checks everything, if the auditor is on.
    pub(super) fn audit_everything(&mut self) {
        let Some(auditor) = &mut self.auditor else { return };
        auditor.since = 0;
        auditor.full += 1;
        self.audit_with(|vcpu| vcpu.mmu.audit(&vcpu.env));
    }

    fn audit_with(&mut self, check: impl FnOnce(&mut Self) -> Result<(), Violation>) {
        let start = cpu::tsc();
        if let Err(violation) = check(self) {
            self.end = Some(GuestExit::AuditFailed(alloc::format!("{violation}")));
        }
        self.take_time_back(start, AlarmAfter::SetLater);
    }
}
