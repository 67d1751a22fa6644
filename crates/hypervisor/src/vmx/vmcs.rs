//! The current VMCS as a value: whoever has it is in VMX root operation with this VMCS loaded.

use alloc::boxed::Box;
use core::marker::PhantomData;

use umbra_paging::Gva;

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

    /// Writes a field. Only this folder calls it, and for what it writes see the SAFETY comments of
    /// `Vmx`.
    ///
    /// # Panics
    /// The CPU does not have it.
    pub fn write(&mut self, field: u32, value: u64) {
        // SAFETY: in VMX root operation; VM entries, which give the value its effect, are
        // `Vmx::enter`'s to justify.
        unsafe { instructions::vmwrite(field, value) }
    }

    /// Forgets all translations of a VPID.
    pub fn invalidate(vpid: u16) {
        // SAFETY: called with a VPID of a CPU that has them, behind VMXON.
        unsafe { instructions::invvpid(instructions::Invvpid::SingleContext(vpid)) }
            .expect("the operand is valid and the type supported");
    }

    /// Forgets what translates one address, which is canonical, under a VPID, on a CPU where that
    /// can be said.
    pub fn invalidate_address(vpid: u16, gva: Gva) {
        // SAFETY: as above.
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
