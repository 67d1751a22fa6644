//! Which uses of the shadow tables exit, and flushes of the guest's translations.

use umbra_mmu::{GuestFaults, PfecFilter, Tlb};
use umbra_paging::{Gva, cr4};
use umbra_vcpu::backend::{AddressSpace, ControlRegisters};
use x86::vmx::vmcs::control;
use x86::vmx::vmcs::control::PrimaryControls;

use super::capabilities::MAX_CR3_TARGETS;
use super::controls::CR4_GUEST;
use super::vmcs::Vmcs;
use super::{PAGE_FAULT, VPID, Vmx};

impl AddressSpace for Vmx {
    type Tlb = VmxTlb;

    fn tlb(&self) -> VmxTlb {
        VmxTlb { has_vpid: self.has_vpid(), by_address: self.invvpid_by_address }
    }

    fn set_guest_faults(&mut self, guest_faults: GuestFaults) {
        let PfecFilter { bitmap_bit, mask, matched } = guest_faults.pfec_filter();
        let bit = if bitmap_bit { PAGE_FAULT } else { 0 };
        self.exceptions = self.exceptions & !PAGE_FAULT | bit;
        self.update(control::EXCEPTION_BITMAP, self.exceptions);
        self.vmcs.write(control::PAGE_FAULT_ERR_CODE_MASK, mask.bits().into());
        self.vmcs.write(control::PAGE_FAULT_ERR_CODE_MATCH, matched.bits().into());
    }

    fn set_cr3_targets(&mut self, values: &[u64], reads: bool) {
        assert!(values.len() <= self.cr3_targets, "the CPU has so many CR3 targets");
        const TARGETS: [u32; MAX_CR3_TARGETS] = [
            control::CR3_TARGET_VALUE0,
            control::CR3_TARGET_VALUE1,
            control::CR3_TARGET_VALUE2,
            control::CR3_TARGET_VALUE3,
        ];
        for (field, &value) in TARGETS.into_iter().zip(values) {
            self.vmcs.write(field, value);
        }
        self.update(control::CR3_TARGET_COUNT, values.len() as u64);
        self.switch_primary(PrimaryControls::CR3_STORE_EXITING, !reads);
    }

    fn set_flush_exits(&mut self, exit: bool) {
        let cr4 = self.cr4();
        self.switch_primary(PrimaryControls::INVLPG_EXITING, exit);
        // What the guest reads stays what it was.
        self.vmcs.write(control::CR4_READ_SHADOW, cr4);
        self.flush_exits = exit;
        self.cr4_flush = self.own_flush_bits();
        self.vmcs.write(control::CR4_GUEST_HOST_MASK, !(CR4_GUEST | self.cr4_flush));
    }
}

impl Vmx {
    /// Bits of CR4 that the guest changes without an exit, though that flushes. Under PAE paging a
    /// change of CR4.PGE also loads the PDPTE registers, from the guest's own table.
    pub(super) fn own_flush_bits(&self) -> u64 {
        if self.flush_exits || self.pae_paging { 0 } else { cr4::PGE }
    }
}

/// Flushes of the guest's translations.
pub struct VmxTlb {
    has_vpid: bool,
    /// Whether INVVPID takes a single address.
    by_address: bool,
}

impl Tlb for VmxTlb {
    fn flush(&mut self) {
        // Without VPIDs every VM entry and exit flushes everything, globals included (SDM,
        // "Operations that Invalidate TLBs and Paging-Structure Caches").
        if self.has_vpid {
            Vmcs::invalidate(VPID);
        }
    }

    fn flush_page(&mut self, _vcpu: usize, _gva: Gva) {
        // No type of INVVPID drops the intermediate entries of other addresses, but those that drop
        // everything.
        self.flush();
    }

    fn flush_fault(&mut self, _vcpu: usize, gva: Gva) {
        if self.has_vpid && self.by_address && gva.is_canonical() {
            Vmcs::invalidate_address(VPID, gva);
        } else {
            self.flush();
        }
    }
}
