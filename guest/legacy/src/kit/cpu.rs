//! Control registers and what else changes the CPU's mode.

use core::arch::asm;

/// Bits of control registers and of EFER.
pub mod bit {
    pub const CR0_WP: u32 = 1 << 16;
    pub const CR0_PG: u32 = 1 << 31;
    pub const CR4_PSE: u32 = 1 << 4;
    pub const CR4_PAE: u32 = 1 << 5;
    pub const EFER_NXE: u32 = 1 << 11;
}

const EFER: u32 = 0xc000_0080;

macro_rules! registers {
    ($($name:literal: $read:ident, $write:ident;)*) => {
        $(
            /// Reads the register.
            pub fn $read() -> u32 {
                let value;
                // SAFETY: reading changes nothing.
                unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
                value
            }

            /// Writes the register. The image stays where it is mapped now.
            pub fn $write(value: u32) {
                // SAFETY: callers keep the image mapped to itself; other memory is reached by
                // volatile accesses.
                unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
            }
        )*
    };
}

registers! {
    "cr0": cr0, set_cr0;
    "cr3": cr3, set_cr3;
    "cr4": cr4, set_cr4;
}

/// Reads a model-specific register that there is.
pub fn msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing.
    unsafe { asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register that there is.
pub fn set_msr(number: u32, value: u64) {
    // SAFETY: callers write EFER.NXE and the targets of SYSENTER only, which move no memory.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Switches EFER.NXE.
pub fn set_nxe(on: bool) {
    let other = msr(EFER) & !u64::from(bit::EFER_NXE);
    set_msr(EFER, other | if on { u64::from(bit::EFER_NXE) } else { 0 });
}

/// Drops what is cached of one address.
pub fn invlpg(linear: u32) {
    // SAFETY: INVLPG changes no memory.
    unsafe { asm!("invlpg [{}]", in(reg) linear, options(nostack, preserves_flags)) };
}

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let result = core::arch::x86::__cpuid(leaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}
