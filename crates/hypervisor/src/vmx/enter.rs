//! The way into the guest and back.

use core::arch::naked_asm;
use core::mem::offset_of;

use x86::vmx::vmcs::host;

use crate::hw::gprs::{load_guest, pop_preserved, push_preserved, store_guest};

/// The guest's general-purpose registers while the hypervisor runs, by their numbers in instruction
/// encodings; RSP (number 4) is in the VMCS instead.
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

/// VMLAUNCH, or VMRESUME if `launched`. Returns 0 after a VM exit (also of a failed VM entry), 1
/// for VMfailInvalid, 2 for VMfailValid.
///
/// Saves general-purpose registers only: the hypervisor is compiled without floating point. So x87,
/// SSE and AVX registers are the guest's all the time, as are DR0 to DR3, DR6, CR2 and XCR0.
///
/// # Safety
/// The current VMCS is complete: its host state is that of the running hypervisor, host RIP is
/// [`exit_address`], and its guest can reach no memory but its own.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: *mut GeneralRegisters, launched: bool) -> u64 {
    naked_asm!(
        push_preserved!(),
        "push rdi",
        "cmp [rdi + {host_rsp}], rsp",
        "je 1f",
        "mov [rdi + {host_rsp}], rsp",
        "mov eax, {field}",
        "vmwrite rax, rsp",
        "1:",
        "test sil, sil",
        "mov rax, [rdi]",
        load_guest!(),
        "jnz 2f",
        // Interrupts stay blocked by STI until the guest runs. A guest with IF=0 is left for an
        // interrupt too; Bochs finds that out only where IF changes.
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
        store_guest!(),
        "add rsp, 8",
        "xor eax, eax",
        "4:",
        pop_preserved!(),
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
