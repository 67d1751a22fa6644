//! Registers and small instructions.

use core::arch::asm;

use x86::controlregs::{Cr0, Cr4};

/// Reads a model-specific register. It must exist: otherwise the machine ends with a host exception.
pub fn read_msr(msr: u32) -> u64 {
    // SAFETY: reading changes nothing that Rust relies on.
    unsafe { x86::msr::rdmsr(msr) }
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must keep the hypervisor's own execution state (SYSCALL bases and such are the guest's) intact.
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe { x86::msr::wrmsr(msr, value) }
}

/// CR0.
pub fn cr0() -> u64 {
    // SAFETY: reading changes nothing.
    unsafe { x86::controlregs::cr0() }.bits() as u64
}

/// CR3.
pub fn cr3() -> u64 {
    // SAFETY: reading changes nothing.
    unsafe { x86::controlregs::cr3() }
}

/// CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading changes nothing. Not `x86::controlregs::cr4`, which panics on bits it does not know.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets the control registers as the hypervisor runs: caches on, no FPU traps; PAE and machine checks in CR4.
pub fn normalize_control_registers() {
    let cr0 = Cr0::CR0_PROTECTED_MODE
        | Cr0::CR0_EXTENSION_TYPE
        | Cr0::CR0_NUMERIC_ERROR
        | Cr0::CR0_WRITE_PROTECT
        | Cr0::CR0_ENABLE_PAGING;
    // SAFETY: the modes that the compiled code needs (protected, paging, PAE) stay on; the hypervisor uses no
    // FPU and no feature of CR4 beside PAE; vector 18 has a handler from `interrupts::load` on, and without MCE
    // a machine check shuts the machine down anyway.
    unsafe {
        x86::controlregs::cr0_write(cr0);
        x86::controlregs::cr4_write(Cr4::CR4_ENABLE_PAE | Cr4::CR4_ENABLE_MACHINE_CHECK);
    }
}

/// The faulting address of the last page fault.
pub fn cr2() -> u64 {
    // SAFETY: reading changes nothing.
    unsafe { x86::controlregs::cr2() as u64 }
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> core::arch::x86_64::CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// MAXPHYADDR.
pub fn physical_address_bits() -> u8 {
    // SDM, "CPUID": without leaf 80000008H it is 36 where there is PAE.
    match cpuid(0x8000_0000, 0).eax {
        0x8000_0008.. => cpuid(0x8000_0008, 0).eax as u8,
        _ => 36,
    }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reading changes nothing.
    unsafe { x86::time::rdtsc() }
}

/// Lets pending interrupts in for a moment; their handlers leave flags.
pub fn take_interrupts() {
    // SAFETY: handlers for all vectors are installed before anything calls this. Interrupts come after the
    // instruction behind STI (SDM, "STI").
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// Ends the blocking of NMIs that an exit for one has left (SDM, "NMI-exiting"): only IRET does.
pub fn end_nmi() {
    // SAFETY: the handler of vector 2 is installed before anything calls this, and returns.
    unsafe { asm!("int 2", options(nostack)) };
}

/// A YMM register of the guest, by its number, while the hypervisor runs. The caller has seen AVX in XCR0,
/// which is the guest's.
pub fn ymm(number: usize) -> [u8; 32] {
    let mut all = [[0; 32]; 16];
    // SAFETY: the registers are stored, within the array; none changes. XCR0 has AVX, says the
    // caller; CR4.OSXSAVE of the hypervisor is set where there is XCR0, and CR0.TS of the hypervisor is clear.
    unsafe {
        asm!(
            "vmovdqu [{0}], ymm0", "vmovdqu [{0} + 32], ymm1",
            "vmovdqu [{0} + 64], ymm2", "vmovdqu [{0} + 96], ymm3",
            "vmovdqu [{0} + 128], ymm4", "vmovdqu [{0} + 160], ymm5",
            "vmovdqu [{0} + 192], ymm6", "vmovdqu [{0} + 224], ymm7",
            "vmovdqu [{0} + 256], ymm8", "vmovdqu [{0} + 288], ymm9",
            "vmovdqu [{0} + 320], ymm10", "vmovdqu [{0} + 352], ymm11",
            "vmovdqu [{0} + 384], ymm12", "vmovdqu [{0} + 416], ymm13",
            "vmovdqu [{0} + 448], ymm14", "vmovdqu [{0} + 480], ymm15",
            in(reg) all.as_mut_ptr(),
            options(nostack, preserves_flags),
        );
    }
    all[number % 16]
}

/// Sleeps until an interrupt has been handled.
pub fn idle() {
    // SAFETY: as in `take_interrupts`; no interrupt can slip in between STI and HLT.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Stops for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: nothing runs afterwards but NMI handlers.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
