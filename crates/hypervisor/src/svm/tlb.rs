//! Flushes of the guest's translations.

use alloc::rc::Rc;
use core::cell::Cell;

use umbra_mmu::{Tlb, VcpuId};
use umbra_paging::Gva;

use super::instructions;

/// What the shadow MMU asks for, and the next VMRUN does.
#[derive(Default)]
pub struct Request {
    /// Everything of the guest is to be dropped.
    all: Cell<bool>,
    /// CR4.PCIDE of the guest: INVLPGA says nothing of PCIDs.
    pcids: Cell<bool>,
}

impl Request {
    /// Asks for a flush of everything.
    pub fn flush(&self) {
        self.all.set(true);
    }

    /// Whether a flush was asked for since the last call.
    pub fn take(&self) -> bool {
        self.all.replace(false)
    }

    /// The guest's CR4.PCIDE.
    pub fn set_pcids(&self, pcids: bool) {
        self.pcids.set(pcids);
    }
}

/// The flushes, for the MMU's environment.
pub struct SvmTlb {
    request: Rc<Request>,
    asid: u32,
}

impl SvmTlb {
    /// Flushes of an ASID; those of everything are asked for by `request`.
    pub fn new(request: Rc<Request>, asid: u32) -> SvmTlb {
        SvmTlb { request, asid }
    }

    fn drop_page(&self, gva: Gva) {
        if self.request.pcids.get() || !gva.is_canonical() {
            self.request.flush();
        } else {
            // SAFETY: the backend, which made this, has set EFER.SVME.
            unsafe { instructions::invlpga(gva, self.asid) };
        }
    }
}

impl Tlb for SvmTlb {
    fn flush(&mut self) {
        self.request.flush();
    }

    fn flush_page(&mut self, _vcpu: VcpuId, gva: Gva) {
        // While EFER.TCE is clear, it drops all intermediate entries (APM, "Translation Cache
        // Extension").
        self.drop_page(gva);
    }

    fn flush_fault(&mut self, _vcpu: VcpuId, gva: Gva) {
        self.drop_page(gva);
    }
}
