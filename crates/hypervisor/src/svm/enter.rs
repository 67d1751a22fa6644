//! The way into the guest and back.

use core::arch::naked_asm;
use core::mem::offset_of;

use umbra_vcpu::svm::vmcb::Vmcb;

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
/// Saves general-purpose registers only: the hypervisor is compiled without floating point, so that
/// x87, SSE and AVX registers are the guest's all the time, as are DR0 to DR3 and XCR0.
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
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "clgi",
        "sti",
        "mov rax, [rdi + {guest}]",
        "vmload rax",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "vmrun rax",
        // RAX and RSP are the host's again.
        "vmsave rax",
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "pop qword ptr [rdi + 56]",
        "mov rax, [rdi + {host}]",
        "vmload rax",
        "cli",
        "stgi",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        guest = const offset_of!(GeneralRegisters, guest),
        host = const offset_of!(GeneralRegisters, host),
    )
}
