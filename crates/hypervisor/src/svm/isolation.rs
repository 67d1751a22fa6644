//! Runs of a single instruction in an address space of its own.

use umbra_vcpu::backend::{Isolation, rflags};
use umbra_vcpu::isolation::{Page, Space};
use umbra_vcpu::svm::vmcb::part;

use super::backend::{ASID, DR7_AT_START, Svm};

/// All exceptions; vector 2 is no exception.
const ALL_EXCEPTIONS: u32 = !(1 << 2);

/// The ASID of instructions that run in an address space of their own, if there is one more.
pub(super) const ISOLATED_ASID: u32 = 2;

/// What is put back after an instruction ran in an address space of its own.
pub(super) struct Saved {
    cr3: u64,
    dr7: u64,
    shadow: u64,
    pending_debug: u64,
    /// RFLAGS.TF.
    trap: u64,
}

impl Isolation for Svm {
    fn isolate<P: Page>(&mut self, space: &Space<P>) {
        let asid = self.isolated_asid();
        let (control, save) = (&mut self.vmcb.control, &mut self.vmcb.save);
        self.isolation = Some(Saved {
            cr3: save.cr3,
            dr7: save.dr7,
            shadow: control.shadow,
            pending_debug: core::mem::take(&mut self.pending_debug),
            trap: save.rflags & rflags::TF,
        });
        save.cr3 = space.root().raw();
        save.dr7 = DR7_AT_START;
        save.rflags &= !(rflags::TF | rflags::RF);
        control.shadow = 0;
        control.exceptions = ALL_EXCEPTIONS;
        control.asid = asid;
        self.cr3 = save.cr3;
        self.changed = part::ALL;
    }

    fn end_isolation(&mut self) {
        let Some(Saved { cr3, dr7, shadow, pending_debug, trap }) = self.isolation.take() else {
            return;
        };
        let (control, save) = (&mut self.vmcb.control, &mut self.vmcb.save);
        if control.asid == ASID {
            self.flushes.flush();
        }
        save.cr3 = cr3;
        save.dr7 = dr7;
        save.rflags |= trap;
        control.shadow = shadow;
        control.exceptions = self.exceptions;
        control.asid = ASID;
        self.cr3 = cr3;
        self.pending_debug = pending_debug;
        self.changed = part::ALL;
    }
}
