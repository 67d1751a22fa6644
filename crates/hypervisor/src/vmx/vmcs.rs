//! The current VMCS as a value: whoever has it is in VMX root operation with this VMCS loaded.

use alloc::boxed::Box;
use core::marker::PhantomData;

use umbra_paging::Gva;
use x86::vmx::vmcs::control::SecondaryControls;
use x86::vmx::vmcs::{control, guest};

use super::capabilities::Capabilities;
use super::instructions::{self, VmFail};
use crate::hw::phys::HostPage;

/// The VMCS of the one guest, current on the one CPU.
pub struct Vmcs {
    _vmxon: Box<HostPage>,
    _region: Box<HostPage>,
    /// A VMCS is current on one CPU only.
    _not_send: PhantomData<*const ()>,
}

impl Vmcs {
    /// VMXON, VMCLEAR, VMPTRLD.
    ///
    /// # Safety
    /// CR0 and CR4 are as VMX operation wants them. Called once.
    pub unsafe fn load(capabilities: &Capabilities) -> Result<Vmcs, VmFail> {
        let (vmxon, region) = (page(capabilities.revision), page(capabilities.revision));
        // SAFETY: the pages live as long as the value, and nothing else uses them.
        unsafe {
            instructions::vmxon(vmxon.hpa())?;
            instructions::vmclear(region.hpa())?;
            instructions::vmptrld(region.hpa())?;
        }
        Ok(Vmcs { _vmxon: vmxon, _region: region, _not_send: PhantomData })
    }

    /// Reads a field.
    ///
    /// # Panics
    /// The CPU does not have it.
    pub fn read(&self, field: u32) -> u64 {
        // SAFETY: `self` exists in VMX root operation only.
        unsafe { instructions::vmread(field) }
    }

    /// Writes a field that decides neither what memory is reached nor where the host goes on.
    ///
    /// # Panics
    /// The CPU does not have it, or it is guarded: see [`Vmcs::write_guarded`].
    #[inline]
    pub fn write(&mut self, field: u32, value: u64) {
        assert!(!is_guarded(field), "field {field:#x} decides what the guest reaches");
        // SAFETY: in VMX root operation. A guest with any value here reaches what CR0, CR3, CR4 and
        // the controls let it reach.
        unsafe { instructions::vmwrite(field, value) }
    }

    /// Writes any field.
    ///
    /// # Safety
    /// With the value, VM entries still run a guest that reaches no memory but its own, whose
    /// changes of CR0, CR3 and CR4 exit as far as they could change that; and VM exits come back to
    /// the hypervisor as it is.
    ///
    /// # Panics
    /// The CPU does not have it.
    pub unsafe fn write_guarded(&mut self, field: u32, value: u64) {
        // SAFETY: in VMX root operation; the rest is the caller's.
        unsafe { instructions::vmwrite(field, value) }
    }

    /// The translations of VPIDs, on a CPU that has them.
    pub fn translations(&self, capabilities: &Capabilities) -> Option<Translations> {
        let has_vpid = capabilities.secondary.contains(SecondaryControls::ENABLE_VPID);
        has_vpid.then_some(Translations { by_address: capabilities.invvpid_by_address })
    }
}

/// Whether a field decides what memory guest or host reach, or where the host goes on: all host
/// state, the guest's CR0, CR3 and CR4, and controls but those of events, read shadows and time.
const fn is_guarded(field: u32) -> bool {
    const CONTROL: u32 = 0;
    const HOST: u32 = 3;
    match field >> 10 & 3 {
        CONTROL => !matches!(
            field,
            control::EXCEPTION_BITMAP
                | control::PAGE_FAULT_ERR_CODE_MASK
                | control::PAGE_FAULT_ERR_CODE_MATCH
                | control::CR0_READ_SHADOW
                | control::CR4_READ_SHADOW
                | control::VMENTRY_INTERRUPTION_INFO_FIELD
                | control::VMENTRY_EXCEPTION_ERR_CODE
                | control::VMENTRY_INSTRUCTION_LEN
                | control::TSC_OFFSET_FULL
        ),
        HOST => true,
        _ => matches!(field, guest::CR0 | guest::CR3 | guest::CR4 | guest::LINK_PTR_FULL),
    }
}

/// What the CPU has cached under VPIDs. It exists behind VMXON, on a CPU that has VPIDs.
#[derive(Clone, Copy)]
pub struct Translations {
    /// Whether INVVPID takes a single address.
    by_address: bool,
}

impl Translations {
    /// Forgets all translations of a VPID.
    ///
    /// # Panics
    /// It is 0, the host's.
    pub fn invalidate(self, vpid: u16) {
        // SAFETY: this CPU has VPIDs, and is in VMX root operation. Less is cached then.
        unsafe { instructions::invvpid(instructions::Invvpid::SingleContext(vpid)) }
            .expect("the operand is valid and the type supported");
    }

    /// Forgets at least what translates one address under a VPID.
    ///
    /// # Panics
    /// The VPID is 0, the host's.
    pub fn invalidate_address(self, vpid: u16, gva: Gva) {
        if !self.by_address || !gva.is_canonical() {
            return self.invalidate(vpid);
        }
        // SAFETY: as above; the CPU takes this type, and the address is canonical.
        unsafe { instructions::invvpid(instructions::Invvpid::Address(vpid, gva)) }
            .expect("the operand is valid and the type supported");
    }
}

/// A region that starts with the revision identifier (SDM, "VMCS Region").
fn page(revision: u32) -> Box<HostPage> {
    let mut page = HostPage::new();
    page.bytes_mut()[..4].copy_from_slice(&revision.to_le_bytes());
    page
}

/// The bitmap that lets RDMSR and WRMSR of `pass` through (SDM, "MSR-Bitmap Address").
pub fn msr_bitmap(pass: &[u32]) -> Box<HostPage> {
    let mut page = HostPage::new();
    page.bytes_mut().fill(0xff);
    for &msr in pass {
        let quarter = if msr < 0x2000 { 0 } else { 1024 };
        let number = (msr & 0x1fff) as usize;
        for read_or_write in [0, 2048] {
            page.bytes_mut()[read_or_write + quarter + number / 8] &= !(1 << (number % 8));
        }
    }
    page
}
