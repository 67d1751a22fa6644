//! Registers and small instructions.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

use umbra_paging::{Features, Gva, cr0, cr4, efer};

pub use super::tsc::tsc;

/// Bits of RFLAGS.
pub mod rflags {
    /// Always set.
    pub const FIXED: u64 = 1 << 1;
    /// Trap: single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts are enabled.
    pub const IF: u64 = 1 << 9;
    /// Direction.
    pub const DF: u64 = 1 << 10;
    /// I/O privilege level 3: ring 3 may use ports.
    pub const IOPL_3: u64 = 3 << 12;
    /// Resume: instruction breakpoints are off for one instruction.
    pub const RF: u64 = 1 << 16;
    /// Alignment check; under SMAP, access to user pages.
    pub const AC: u64 = 1 << 18;
    /// The six arithmetic flags.
    pub const STATUS: u64 = 0x8d5;
}

macro_rules! registers {
    ($($(#[$doc:meta])* $name:literal: $read:ident, $write:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $read() -> u64 {
                let value;
                // SAFETY: reading changes nothing.
                unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
                value
            }

            /// Writes it.
            ///
            /// # Safety
            /// The value must be accepted, and leave the kit's code, stack and descriptor tables
            /// where they are.
            pub unsafe fn $write(value: u64) {
                // SAFETY: the caller's.
                unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
            }
        )*
    };
}

registers! {
    /// CR0.
    "cr0": cr0, write_cr0;
    /// CR2: the address of the last page fault.
    "cr2": cr2, write_cr2;
    /// CR3.
    "cr3": cr3, write_cr3;
    /// CR4.
    "cr4": cr4, write_cr4;
    /// DR0 to DR3: where breakpoints are.
    "dr0": dr0, write_dr0;
    /// DR1.
    "dr1": dr1, write_dr1;
    /// DR2.
    "dr2": dr2, write_dr2;
    /// DR3.
    "dr3": dr3, write_dr3;
    /// DR6: what a debug exception was about.
    "dr6": dr6, write_dr6;
    /// DR7: breakpoint control.
    "dr7": dr7, write_dr7;
}

/// Reads a model-specific register that exists.
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing that Rust relies on.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist and take the value, which must leave long mode and the kit's segments
/// alone.
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;

/// Sets the control bits that shape paging. Those that this CPU has not must be `false`. Sets
/// CR4.PGE, too.
pub fn set_paging_bits(wp: bool, smep: bool, smap: bool, nxe: bool) {
    let with = |value: u64, bit: u64, on: bool| if on { value | bit } else { value & !bit };
    let cr4 = with(with(cr4() | cr4::PGE, cr4::SMEP, smep), cr4::SMAP, smap);
    let efer = with(read_msr(EFER), efer::NXE, nxe);
    // SAFETY: the kit's own pages are for ring 0 only, writable, and have no NX bit: none of this
    // concerns them.
    unsafe {
        write_cr0(with(cr0(), cr0::WP, wp));
        write_cr4(cr4);
        write_msr(EFER, efer);
    }
}

/// Switches CR4.PCIDE. The low bits of CR3 must be zero.
pub fn set_pcide(on: bool) {
    // SAFETY: PCIDs concern caching only.
    unsafe { write_cr4(if on { cr4() | cr4::PCIDE } else { cr4() & !cr4::PCIDE }) };
}

/// Lets SSE instructions work: CR4.OSFXSR and OSXMMEXCPT.
pub fn enable_sse() {
    // SAFETY: every 64-bit CPU has SSE, and compiled code does not use it.
    unsafe { write_cr4(cr4() | 3 << 9) };
}

/// Lets RFLAGS.AC work: CR0.AM.
pub fn enable_alignment_checks() {
    const AM: u64 = 1 << 18;
    // SAFETY: the kit runs in ring 0, where nothing is checked.
    unsafe { write_cr0(cr0() | AM) };
}

/// Switches CR0.NE: errors of the x87 FPU raise #MF, or else are reported by a line to the PICs.
pub fn set_numeric_error(on: bool) {
    const NE: u64 = 1 << 5;
    // SAFETY: the kit does not use the FPU.
    unsafe { write_cr0(if on { cr0() | NE } else { cr0() & !NE }) };
}

/// The x87 status word; its exceptions are cleared.
pub fn take_fpu_status() -> u16 {
    let status: u16;
    // SAFETY: compiled code does not use the FPU.
    unsafe { asm!("fnstsw ax", "fnclex", out("ax") status, options(nomem, nostack)) };
    status
}

/// Sets CR2, as a fault does.
pub fn set_cr2(value: u64) {
    // SAFETY: CR2 has no effect and takes any value.
    unsafe { write_cr2(value) };
}

/// Clears what DR6 says about debug exceptions.
pub fn clear_dr6() {
    // SAFETY: the value at reset.
    unsafe { write_dr6(0xffff_0ff0) };
}

/// What a breakpoint waits for: DR7's R/W fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakpoint {
    /// An instruction.
    Execute = 0,
    /// Writes of data.
    Write = 1,
    /// IN and OUT, if CR4.DE is set.
    Port = 2,
    /// Reads and writes of data.
    Access = 3,
}

/// Sets breakpoint `number` on `length` bytes (1, 2, 4 or 8) at `address`.
///
/// # Panics
/// If there is no such breakpoint or length.
pub fn set_breakpoint(number: u32, kind: Breakpoint, address: u64, length: u64) {
    let field = match length {
        1 => 0,
        2 => 1,
        4 => 3,
        8 => 2,
        _ => panic!("no breakpoint has {length} bytes"),
    };
    // SAFETY: an address that is met raises #DB, which has a handler or ends the kernel with a
    // message.
    unsafe {
        match number {
            0 => write_dr0(address),
            1 => write_dr1(address),
            2 => write_dr2(address),
            3 => write_dr3(address),
            _ => panic!("there are four breakpoints"),
        }
        let clear = !(0xf << (16 + 4 * number) | 3 << (2 * number));
        let bits = (kind as u64 | field << 2) << (16 + 4 * number) | 1 << (2 * number);
        write_dr7(dr7() & clear | bits);
    }
}

/// Sets DR0 to DR3, and DR7 as it is given.
pub fn set_debug_registers(addresses: [u64; 4], control: u64) {
    // SAFETY: as in `set_breakpoint`; an upper half of DR7 that is not zero raises #GP, which ends
    // the kernel with a message.
    unsafe {
        write_dr0(addresses[0]);
        write_dr1(addresses[1]);
        write_dr2(addresses[2]);
        write_dr3(addresses[3]);
        write_dr7(control);
    }
}

/// Lets SYSCALL and SYSRET work: EFER.SCE.
pub fn set_system_calls() {
    // SAFETY: the kit does not use them.
    unsafe { write_msr(EFER, read_msr(EFER) | 1) };
}

/// Sets a register of SYSENTER, SYSCALL or SWAPGS.
///
/// # Panics
/// If it is another one.
pub fn set_call_register(msr: u32, value: u64) {
    assert!(
        matches!(msr, 0x174..=0x176 | 0xc000_0081..=0xc000_0084 | 0xc000_0102),
        "not one of these"
    );
    // SAFETY: the kit does not use these instructions.
    unsafe { write_msr(msr, value) };
}

/// Lets the next access to a debug register raise #DB: DR7.GD, which that clears.
pub fn detect_debug_registers() {
    // SAFETY: #DB has a handler or ends the kernel with a message.
    unsafe { write_dr7(dr7() | 1 << 13) };
}

/// Takes all breakpoints away.
pub fn clear_breakpoints() {
    // SAFETY: the value at reset.
    unsafe { write_dr7(0x400) };
}

/// Switches CR4.DE: breakpoints on ports.
pub fn set_debug_extensions(on: bool) {
    const DE: u64 = 1 << 3;
    // SAFETY: DR4 and DR5 are not used here.
    unsafe { write_cr4(if on { cr4() | DE } else { cr4() & !DE }) };
}

/// Drops translations of one page.
pub fn invlpg(gva: Gva) {
    // SAFETY: changes no memory; entries that the kit itself runs on are always current.
    unsafe { asm!("invlpg [{}]", in(reg) gva.raw(), options(nostack, preserves_flags)) };
}

/// Drops all translations but global ones.
pub fn reload_cr3() {
    // SAFETY: the same root.
    unsafe { write_cr3(cr3()) };
}

/// Drops all translations, global ones, too, by turning CR4.PGE off and on. CR4.PGE is on
/// afterwards.
pub fn flush_all() {
    // SAFETY: PGE concerns caching only.
    unsafe {
        write_cr4(cr4() | cr4::PGE);
        write_cr4(cr4() & !cr4::PGE);
        write_cr4(cr4() | cr4::PGE);
    }
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Lets interrupts in for `cycles` of the time-stamp counter, or until `until` says so. Says
/// whether it did.
pub fn interruptible(cycles: u64, mut until: impl FnMut() -> bool) -> bool {
    let start = tsc();
    loop {
        // SAFETY: every vector has a handler; an unexpected one ends the kernel with a message.
        unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
        if until() {
            return true;
        }
        if tsc().wrapping_sub(start) > cycles {
            return false;
        }
    }
}

/// Sleeps until an interrupt was handled.
pub fn idle() {
    // SAFETY: as in `interruptible`; no interrupt slips in between STI and HLT (SDM, "STI").
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// What CPUID says about paging and some instructions.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// MAXPHYADDR and 1 GiB pages.
    pub features: Features,
    /// CR4.SMEP exists.
    pub smep: bool,
    /// CR4.SMAP exists.
    pub smap: bool,
    /// EFER.NXE exists.
    pub nx: bool,
    /// CMPXCHG16B exists.
    pub cmpxchg16b: bool,
    /// PCIDs exist.
    pub pcid: bool,
    /// INVPCID exists.
    pub invpcid: bool,
    /// MOVBE exists.
    pub movbe: bool,
}

impl Cpu {
    /// Asks.
    pub fn detect() -> Cpu {
        let bit = |word: u32, index: u32| word >> index & 1 != 0;
        let extended = cpuid(0x8000_0000, 0).eax;
        // SDM, "CPUID": without leaf 80000008H it is 36 where there is PAE.
        let maxphyaddr = if extended >= 0x8000_0008 { cpuid(0x8000_0008, 0).eax as u8 } else { 36 };
        let more = cpuid(0x8000_0001, 0).edx;
        let seven = if cpuid(0, 0).eax >= 7 { cpuid(7, 0).ebx } else { 0 };
        let one = cpuid(1, 0).ecx;
        Cpu {
            features: Features::new(maxphyaddr, bit(more, 26)),
            smep: bit(seven, 7),
            smap: bit(seven, 20),
            nx: bit(more, 20),
            cmpxchg16b: bit(one, 13),
            pcid: bit(one, 17),
            invpcid: bit(seven, 10),
            movbe: bit(one, 22),
        }
    }
}
