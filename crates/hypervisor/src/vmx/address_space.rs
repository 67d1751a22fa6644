//! Which uses of the shadow tables exit, and flushes of the guest's translations.

use umbra_mmu::{GuestFaults, PfecFilter, Tlb, VcpuId};
use umbra_paging::{Gva, cr4};
use umbra_vcpu::backend::{AddressSpace, ControlRegisters, Cr3Target};
use x86::vmx::vmcs::control;
use x86::vmx::vmcs::control::PrimaryControls;

use super::capabilities::MAX_CR3_TARGETS;
use super::controls::CR4_GUEST;
use super::vmcs::Translations;
use super::{PAGE_FAULT, VPID, Vmx};

impl AddressSpace for Vmx {
    type Tlb = VmxTlb;

    fn tlb(&self) -> VmxTlb {
        VmxTlb { translations: self.translations }
    }

    fn set_guest_faults(&mut self, guest_faults: GuestFaults) {
        let PfecFilter { bitmap_bit, mask, matched } = guest_faults.pfec_filter();
        let bit = if bitmap_bit { PAGE_FAULT } else { 0 };
        self.exceptions = self.exceptions & !PAGE_FAULT | bit;
        self.update(control::EXCEPTION_BITMAP, self.exceptions);
        self.vmcs.write(control::PAGE_FAULT_ERR_CODE_MASK, mask.bits().into());
        self.vmcs.write(control::PAGE_FAULT_ERR_CODE_MATCH, matched.bits().into());
    }

    fn set_cr3_targets(&mut self, targets: &[Cr3Target], reads: bool) {
        assert!(targets.len() <= self.cr3_targets, "the CPU has so many CR3 targets");
        const TARGETS: [u32; MAX_CR3_TARGETS] = [
            control::CR3_TARGET_VALUE0,
            control::CR3_TARGET_VALUE1,
            control::CR3_TARGET_VALUE2,
            control::CR3_TARGET_VALUE3,
        ];
        // SAFETY: each value loads a root that the MMU says the guest may load by itself
        // (`LoadableRoot`), which maps the guest's memory only.
        unsafe {
            for (field, target) in TARGETS.into_iter().zip(targets) {
                self.vmcs.write_guarded(field, target.value());
            }
            self.update_guarded(control::CR3_TARGET_COUNT, targets.len() as u64);
        }
        self.switch_primary(PrimaryControls::CR3_STORE_EXITING, !reads);
    }

    fn set_flush_exits(&mut self, exit: bool) {
        let cr4 = self.cr4();
        self.switch_primary(PrimaryControls::INVLPG_EXITING, exit);
        // What the guest reads stays what it was.
        self.vmcs.write(control::CR4_READ_SHADOW, cr4);
        self.flush_exits = exit;
        self.cr4_flush = self.own_flush_bits();
        self.write_cr4_mask();
    }
}

impl Vmx {
    /// Bits of CR4 that the guest changes without an exit, though that flushes. Under PAE paging a
    /// change of CR4.PGE also loads the PDPTE registers, from the guest's own table.
    pub(super) fn own_flush_bits(&self) -> u64 {
        if self.flush_exits || self.pae_paging { 0 } else { cr4::PGE }
    }
}

impl Vmx {
    /// Which bits of CR4 the guest changes without an exit.
    pub(super) fn write_cr4_mask(&mut self) {
        let own = CR4_GUEST | self.cr4_flush;
        // SAFETY: none of these bits changes what an entry of a table maps, or for whom.
        unsafe { self.vmcs.write_guarded(control::CR4_GUEST_HOST_MASK, !own) };
    }
}

/// Flushes of the guest's translations.
pub struct VmxTlb {
    /// Without VPIDs every VM entry and exit flushes everything, globals included (SDM, "Operations
    /// that Invalidate TLBs and Paging-Structure Caches").
    translations: Option<Translations>,
}

impl Tlb for VmxTlb {
    fn flush(&mut self) {
        if let Some(translations) = self.translations {
            translations.invalidate(VPID);
        }
    }

    fn flush_page(&mut self, _vcpu: VcpuId, _gva: Gva) {
        // No type of INVVPID drops the intermediate entries of other addresses, but those that drop
        // everything.
        self.flush();
    }

    fn flush_fault(&mut self, _vcpu: VcpuId, gva: Gva) {
        if let Some(translations) = self.translations {
            translations.invalidate_address(VPID, gva);
        }
    }
}
