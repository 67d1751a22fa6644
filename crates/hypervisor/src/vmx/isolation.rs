//! Runs of a single instruction in an address space of its own.

use umbra_vcpu::backend::{Isolation, Registers, rflags};
use umbra_vcpu::isolation::{Page, Space};
use x86::vmx::vmcs::control::PrimaryControls;
use x86::vmx::vmcs::{control, guest};

use super::{BLOCKED_BY_STI_OR_MOV_SS, DR7_AT_START, VPID, Vmx};

/// The VPID of instructions that run in an address space of their own.
const ISOLATED_VPID: u16 = 2;

/// What changes while an instruction runs in an address space of its own.
const ISOLATED: [u32; 7] = [
    guest::CR3,
    guest::DR7,
    guest::INTERRUPTIBILITY_STATE,
    guest::PENDING_DBG_EXCEPTIONS,
    control::EXCEPTION_BITMAP,
    control::PAGE_FAULT_ERR_CODE_MASK,
    control::PAGE_FAULT_ERR_CODE_MATCH,
];

/// What is put back after that.
pub struct Saved {
    fields: [(u32, u64); ISOLATED.len()],
    primary: u64,
    /// RFLAGS.TF.
    trap: u64,
}

impl Isolation for Vmx {
    fn isolate<P: Page>(&mut self, space: &Space<P>) {
        const WINDOWS: PrimaryControls =
            PrimaryControls::INTERRUPT_WINDOW_EXITING.union(PrimaryControls::NMI_WINDOW_EXITING);
        let fields = ISOLATED.map(|field| (field, self.vmcs.read(field)));
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE);
        let isolated = [
            (guest::CR3, space.root().raw()),
            (guest::DR7, DR7_AT_START),
            (guest::INTERRUPTIBILITY_STATE, state & !BLOCKED_BY_STI_OR_MOV_SS),
            (guest::PENDING_DBG_EXCEPTIONS, 0),
            (control::EXCEPTION_BITMAP, u32::MAX.into()),
            (control::PAGE_FAULT_ERR_CODE_MASK, 0),
            (control::PAGE_FAULT_ERR_CODE_MATCH, 0),
        ];
        // SAFETY: CR3 is the root of a space of pages that are its own (`Space`); no other guarded
        // field changes.
        isolated
            .into_iter()
            .for_each(|(field, value)| unsafe { self.vmcs.write_guarded(field, value) });
        self.before_isolation =
            Some(Saved { fields, primary: self.primary, trap: self.rflags & rflags::TF });
        self.switch_primary(WINDOWS, false);
        self.set_rflags(self.rflags & !(rflags::TF | rflags::RF));
        if let Some(translations) = self.translations {
            // SAFETY: nothing is cached under it once it is invalidated.
            unsafe { self.vmcs.write_guarded(control::VPID, ISOLATED_VPID.into()) };
            translations.invalidate(ISOLATED_VPID);
        }
    }

    fn end_isolation(&mut self) {
        let Some(Saved { fields, primary, trap }) = self.before_isolation.take() else { return };
        // SAFETY: the values from before, which nothing else has changed meanwhile.
        unsafe {
            fields.into_iter().for_each(|(field, value)| self.vmcs.write_guarded(field, value));
            self.vmcs.write_guarded(control::PRIMARY_PROCBASED_EXEC_CONTROLS, primary);
        }
        self.primary = primary;
        self.set_rflags(self.rflags | trap);
        if self.translations.is_some() {
            // SAFETY: the guest's own, with what the MMU has not flushed of it.
            unsafe { self.vmcs.write_guarded(control::VPID, VPID.into()) };
        }
    }
}
