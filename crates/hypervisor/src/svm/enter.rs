//! The way into the guest and back.

use core::arch::naked_asm;
use core::mem::offset_of;

use umbra_vcpu::svm::vmcb::Vmcb;

use crate::hw::gprs::{load_guest, pop_preserved, push_preserved, store_guest};

/// The guest's general-purpose registers while the hypervisor runs, by their numbers in instruction
/// encodings; RAX and RSP (0 and 4) are in the VMCB instead. What else [`enter`] needs lies behind
/// them.
#[repr(C)]
pub struct GeneralRegisters {
    /// The registers.
    pub gpr: [u64; 16],
    /// Where the guest's VMCB lies in physical memory.
    pub guest: u64,
    /// Where the page lies that holds the host's TR and what else VMLOAD loads.
    pub host: u64,
}

/// Runs the guest until #VMEXIT.
///
/// Saves general-purpose registers only: the hypervisor is compiled without floating point. So x87,
/// SSE and AVX registers are the guest's all the time, as are DR0 to DR3 and XCR0.
///
/// The global interrupt flag is clear from before STI until after the host's TR is back, whose
/// stacks NMIs need. RFLAGS.IF of the host is set meanwhile: with V_INTR_MASKING that one, not the
/// guest's, lets physical interrupts end the guest (APM, "Virtualizing RFLAGS.IF").
///
/// # Safety
/// `vmcb` is what `registers.guest` says, and its guest can reach no memory but its own.
/// `registers.host` has been filled by VMSAVE. EFER.SVME is set and VM_HSAVE_PA names a page of its
/// own.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: *mut GeneralRegisters, vmcb: *mut Vmcb) {
    naked_asm!(
        push_preserved!(),
        "push rdi",
        "clgi",
        "sti",
        "mov rax, [rdi + {guest}]",
        "vmload rax",
        load_guest!(),
        "vmrun rax",
        // RAX and RSP are the host's again.
        "vmsave rax",
        "push rdi",
        "mov rdi, [rsp + 8]",
        store_guest!(),
        "mov rax, [rdi + {host}]",
        "vmload rax",
        "cli",
        "stgi",
        "add rsp, 8",
        pop_preserved!(),
        "ret",
        guest = const offset_of!(GeneralRegisters, guest),
        host = const offset_of!(GeneralRegisters, host),
    )
}
