//! The way into the guest and back.

use core::arch::naked_asm;
use core::mem::offset_of;

use x86::vmx::vmcs::host;

/// The guest's general-purpose registers while the hypervisor runs, by their numbers in instruction encodings;
/// RSP (number 4) is in the VMCS instead.
#[repr(C)]
pub struct GeneralRegisters {
    /// The registers.
    pub gpr: [u64; 16],
    /// What host RSP in the VMCS is.
    host_rsp: u64,
}

impl GeneralRegisters {
    /// All zero.
    pub fn new() -> GeneralRegisters {
        GeneralRegisters { gpr: [0; 16], host_rsp: 0 }
    }
}

/// VMLAUNCH, or VMRESUME if `launched`. Returns 0 after a VM exit (also of a failed VM entry), 1 for VMfailInvalid, 2 for
/// VMfailValid.
///
/// Saves general-purpose registers only: the hypervisor is compiled without floating point, so that x87, SSE and
/// AVX registers are the guest's all the time, as are DR0 to DR3, DR6, CR2 and XCR0.
///
/// # Safety
/// The current VMCS is complete: its host state is that of the running hypervisor, host RIP is [`exit_address`], and its guest
/// can reach no memory but its own.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: *mut GeneralRegisters, launched: bool) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "cmp [rdi + {host_rsp}], rsp",
        "je 1f",
        "mov [rdi + {host_rsp}], rsp",
        "mov eax, {field}",
        "vmwrite rax, rsp",
        "1:",
        "test sil, sil",
        "mov rax, [rdi]",
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
        "jnz 2f",
        // Interrupts stay blocked by STI until the guest runs. A guest with IF=0 is left for an interrupt too; Bochs
        // finds that out only where IF changes.
        "sti",
        "vmlaunch",
        "jmp 3f",
        "2:",
        "sti",
        "vmresume",
        "3:",
        "cli",
        // VMfail: CF is VMfailInvalid, ZF is VMfailValid.
        "mov eax, 1",
        "mov ecx, 2",
        "cmovz eax, ecx",
        "add rsp, 8",
        "jmp 4f",
        ".global vmx_exit",
        "vmx_exit:",
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi], rax",
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
        "add rsp, 8",
        "xor eax, eax",
        "4:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        host_rsp = const offset_of!(GeneralRegisters, host_rsp),
        field = const host::RSP,
    )
}

unsafe extern "C" {
    /// Inside [`enter`].
    static vmx_exit: u8;
}

/// Where the CPU goes on after a VM exit.
pub fn exit_address() -> u64 {
    (&raw const vmx_exit) as u64
}
