//! Registers and small instructions.

use core::arch::{asm, global_asm};

use x86::controlregs::{Cr0, Cr4};
use x86::msr;

/// MSRs that mean nothing to the hypervisor, which uses neither SYSCALL nor SWAPGS: the guest has
/// the real ones. (FS and GS bases are switched with the segments.)
pub const PASSED_MSRS: &[u32] = &[
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_KERNEL_GSBASE,
    msr::IA32_FS_BASE,
    msr::IA32_GS_BASE,
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
];

/// Reads a model-specific register. It must exist: otherwise the machine ends with a host
/// exception.
pub fn read_msr(msr: u32) -> u64 {
    // SAFETY: reading changes nothing that Rust relies on.
    unsafe { x86::msr::rdmsr(msr) }
}

global_asm!(
    // Returns 1 with the register's value at RSI, or 0 if the general-protection handler goes on at
    // `msr_refused`.
    ".text",
    ".global try_rdmsr, try_rdmsr_access, try_rdmsr_refused",
    "try_rdmsr:",
    "movl %edi, %ecx",
    "try_rdmsr_access:",
    "rdmsr",
    "movl %eax, (%rsi)",
    "movl %edx, 4(%rsi)",
    "movl $1, %eax",
    "ret",
    "try_rdmsr_refused:",
    "xorl %eax, %eax",
    "ret",
    options(att_syntax)
);

unsafe extern "sysv64" {
    fn try_rdmsr(msr: u32, value: &mut u64) -> u32;
    fn try_rdmsr_access();
    fn try_rdmsr_refused();
}

/// Where to go on after a #GP at `rip`, if it is that of [`try_read_msr`].
pub(super) fn msr_fixup(rip: u64) -> Option<u64> {
    (rip == try_rdmsr_access as *const () as u64).then_some(try_rdmsr_refused as *const () as u64)
}

/// Reads a model-specific register that may not exist. The host's descriptor tables are loaded.
pub fn try_read_msr(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: reading changes nothing that Rust relies on; the #GP of a register that does not
    // exist is caught (`interrupts`).
    let there = unsafe { try_rdmsr(msr, &mut value) };
    (there != 0).then_some(value)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must keep the hypervisor's own execution state (SYSCALL bases and such are the
/// guest's) intact.
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
    // SAFETY: reading changes nothing. Not `x86::controlregs::cr4`, which panics on bits it does
    // not know.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets the control registers as the hypervisor runs: caches on, no FPU traps; PAE and machine
/// checks in CR4.
pub fn normalize_control_registers() {
    let cr0 = Cr0::CR0_PROTECTED_MODE
        | Cr0::CR0_EXTENSION_TYPE
        | Cr0::CR0_NUMERIC_ERROR
        | Cr0::CR0_WRITE_PROTECT
        | Cr0::CR0_ENABLE_PAGING;
    // SAFETY: the modes that the compiled code needs (protected, paging, PAE) stay on; the
    // hypervisor uses no FPU and no feature of CR4 beside PAE; vector 18 has a handler from
    // `interrupts::load` on, and without MCE a machine check shuts the machine down anyway.
    unsafe {
        x86::controlregs::cr0_write(cr0);
        x86::controlregs::cr4_write(Cr4::CR4_ENABLE_PAE | Cr4::CR4_ENABLE_MACHINE_CHECK);
    }
}

/// Sets CR4.OSXSAVE, on a CPU that has it.
pub fn allow_xsetbv() {
    const OSXSAVE: u64 = 1 << 18;
    // SAFETY: it allows XSETBV and the like, of which compiled code has none.
    unsafe { asm!("mov cr4, {}", in(reg) cr4() | OSXSAVE, options(nostack, preserves_flags)) };
}

/// XCR0, the guest's, on a CPU that has it.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing, and CR4.OSXSAVE is set if there is XCR0.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Sets XCR0, the guest's, to a value that was checked against CPUID.
pub fn set_xcr0(value: u64) {
    // SAFETY: the hypervisor uses no extended state, and CR4.OSXSAVE is set if there is XSETBV at
    // all.
    unsafe {
        asm!(
            "xsetbv",
            in("ecx") 0,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// DR0 to DR3, which are the guest's all the time.
pub fn breakpoint_addresses() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
    // SAFETY: reading changes nothing.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3,
            options(nomem, nostack, preserves_flags)
        );
    }
    [dr0, dr1, dr2, dr3]
}

/// The faulting address of the last page fault.
pub fn cr2() -> u64 {
    // SAFETY: reading changes nothing.
    unsafe { x86::controlregs::cr2() as u64 }
}

/// Sets CR2.
pub fn set_cr2(value: u64) {
    // SAFETY: the hypervisor takes no page faults that it returns from while the guest lives.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
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
    // SAFETY: handlers for all vectors are installed before anything calls this. Interrupts come
    // after the instruction behind STI (SDM, "STI").
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// Ends the blocking of NMIs that an exit for one has left (SDM, "NMI-exiting"): only IRET does.
pub fn end_nmi() {
    // SAFETY: the handler of vector 2 is installed before anything calls this, and returns.
    unsafe { asm!("int 2", options(nostack)) };
}

/// A YMM register of the guest, by its number, while the hypervisor runs. The caller has seen AVX
/// in XCR0, which is the guest's.
pub fn ymm(number: usize) -> [u8; 32] {
    let mut all = [[0; 32]; 16];
    // SAFETY: the registers are stored, within the array; none changes. XCR0 has AVX, says the
    // caller; CR4.OSXSAVE of the hypervisor is set where there is XCR0, and CR0.TS of the
    // hypervisor is clear.
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
