//! Which uses of the shadow tables exit, and flushes.

use umbra_mmu::GuestFaults;
use umbra_vcpu::backend::{AddressSpace, Cr3Target};
use umbra_vcpu::svm::vmcb::{flush, intercept1, intercept3, part};

use super::backend::{ASID, CR3_READ, INTERCEPTS_3, Svm};
use super::tlb::SvmTlb;

impl AddressSpace for Svm {
    type Tlb = SvmTlb;

    fn tlb(&self) -> SvmTlb {
        SvmTlb::new(self.flushes.clone(), ASID)
    }

    fn set_guest_faults(&mut self, guest_faults: GuestFaults) {
        assert_eq!(guest_faults, GuestFaults::Trap, "SVM intercepts all page faults or none");
    }

    fn set_cr3_targets(&mut self, targets: &[Cr3Target], reads: bool) {
        assert!(targets.is_empty(), "every load of CR3 is intercepted");
        let others = self.vmcb.control.cr_reads & !CR3_READ;
        self.vmcb.control.cr_reads = if reads { others } else { others | CR3_READ };
        self.changed |= part::INTERCEPTS;
    }

    fn set_flush_exits(&mut self, exit: bool) {
        self.switch_intercept1(intercept1::INVLPG, exit);
        let control = &mut self.vmcb.control;
        control.intercept3 = if exit { INTERCEPTS_3 } else { INTERCEPTS_3 & !intercept3::INVPCID };
        self.changed |= part::INTERCEPTS;
    }
}

impl Svm {
    /// The flush of the next entry.
    pub(super) fn choose_flush(&mut self) {
        let own = if self.capabilities.flush_by_asid { flush::ASID } else { flush::ALL };
        self.vmcb.control.tlb_control = if self.isolation.is_some() {
            // The guest's own flush waits, unless this one is for all.
            if own == flush::ALL || self.vmcb.control.asid == ASID {
                self.flushes.take();
            }
            own
        } else if self.flushes.take() {
            own
        } else {
            flush::NOTHING
        };
    }
}
