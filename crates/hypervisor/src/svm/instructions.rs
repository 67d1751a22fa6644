//! Instructions of SVM beside those of the way into the guest.

use core::arch::asm;

use umbra_paging::{Gva, Hpa};

/// VMSAVE: stores FS, GS, TR, LDTR and the MSRs of SYSCALL and SYSENTER in a VMCB.
///
/// # Safety
/// EFER.SVME is set, and `page` is in no other use.
pub unsafe fn vmsave(page: Hpa) {
    // SAFETY: the caller's.
    unsafe { asm!("vmsave rax", in("rax") page.raw(), options(nostack, preserves_flags)) };
}

/// INVLPGA: drops the translation of a page under an ASID, and the intermediate entries.
///
/// # Safety
/// EFER.SVME is set.
pub unsafe fn invlpga(gva: Gva, asid: u32) {
    // SAFETY: the caller's; dropping translations is always allowed.
    unsafe {
        asm!("invlpga rax, ecx", in("rax") gva.raw(), in("ecx") asid, options(nostack, preserves_flags))
    };
}
