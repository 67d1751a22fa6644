//! x87, MMX, SSE and AVX registers. Compiled code uses none of them, so they are a test's.

use core::arch::asm;

use super::cpu;

/// How many words of 64 bits the state has.
pub const WORDS: usize = 104;

/// Words up to here are those of FXSAVE.
pub const LEGACY_WORDS: usize = 64;

/// The state as FXSAVE or, where there is AVX, XSAVE lays it out (SDM vol. 1, "XSAVE Area").
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Vectors {
    /// Words of 64 bits.
    pub words: [u64; WORDS],
}

/// Which instructions save the registers of this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// FXSAVE.
    Legacy,
    /// XSAVE, with x87, SSE and AVX state.
    Extended,
}

/// The components x87, SSE and AVX of XCR0.
const COMPONENTS: u32 = 7;

impl Format {
    /// Lets SSE and, where CPUID shows it, XSAVE and AVX work.
    pub fn enable() -> Format {
        const XSAVE: u32 = 1 << 26;
        const OSXSAVE: u64 = 1 << 18;
        cpu::enable_sse();
        if cpu::cpuid(1, 0).ecx & XSAVE == 0 {
            return Format::Legacy;
        }
        let components = cpu::cpuid(0xd, 0).eax & COMPONENTS;
        // SAFETY: CPUID shows the bit and the components; compiled code uses none of it.
        unsafe {
            cpu::write_cr4(cpu::cr4() | OSXSAVE);
            asm!("xsetbv", in("ecx") 0, in("eax") components, in("edx") 0, options(nomem, nostack));
        }
        if components == COMPONENTS { Format::Extended } else { Format::Legacy }
    }

    /// Loads all registers.
    pub fn load(self, state: &Vectors) {
        // SAFETY: aligned, and a state that the CPU takes, or else #GP ends the kernel with a
        // message.
        unsafe {
            match self {
                Format::Legacy => asm!("fxrstor64 [{}]", in(reg) state, options(readonly, nostack)),
                Format::Extended => asm!(
                    "xrstor64 [{}]", in(reg) state, in("eax") COMPONENTS, in("edx") 0, options(readonly, nostack)
                ),
            }
        }
    }

    /// Stores all registers; what the CPU leaves out stays.
    pub fn store(self, state: &mut Vectors) {
        // SAFETY: aligned, and large enough for these components.
        unsafe {
            match self {
                Format::Legacy => asm!("fxsave64 [{}]", in(reg) state, options(nostack)),
                Format::Extended => {
                    asm!("xsave64 [{}]", in(reg) state, in("eax") COMPONENTS, in("edx") 0, options(nostack));
                }
            }
        }
    }
}
