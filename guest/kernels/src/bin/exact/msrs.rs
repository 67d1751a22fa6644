//! Every model-specific register: what it reads, which bits can be written, which raise #GP.

use core::ops::RangeInclusive;

use guest_kernels::kit::access::{read_msr as read, write_msr as write};
use guest_kernels::kit::cpu;
use guest_kernels::say;

/// Where vendors have registers: Intel's, hypervisors' first ones, AMD64's, AMD's.
const RANGES: [RangeInclusive<u32>; 5] = [
    0..=0x1fff,
    0x4000_0000..=0x4000_00ff,
    0xc000_0000..=0xc000_0fff,
    0xc001_0000..=0xc001_02ff,
    0xc001_1000..=0xc001_10ff,
];

/// Registers that count: their value is another at each read.
const COUNTERS: [u32; 4] = [0x10, 0xe7, 0xe8, 0x6e0];

/// Registers that are read only here: the APIC's base and commands (it would go, or send), loading
/// of microcode.
const NOT_WRITTEN: [RangeInclusive<u32>; 3] = [0x1b..=0x1b, 0x79..=0x79, 0x800..=0x8ff];

/// What flipping single bits of a register does.
#[derive(Default)]
struct Bits {
    /// The write raises #GP.
    refused: u64,
    /// The register reads as written.
    kept: u64,
}

/// Flips each bit of a register that reads as `value`, and flips it back.
fn flip(msr: u32, value: u64) -> Bits {
    let mut bits = Bits::default();
    for bit in (0..64).map(|bit| 1 << bit) {
        match write(msr, value ^ bit) {
            Err(_) => bits.refused |= bit,
            Ok(()) => {
                if read(msr) == Ok(value ^ bit) {
                    bits.kept |= bit;
                }
                let _ = write(msr, value);
            }
        }
    }
    bits
}

/// Prints a line for each register that can be read or written.
pub fn run() -> u64 {
    let mut lines = 0;
    for msr in RANGES.into_iter().flatten() {
        let written = !NOT_WRITTEN.iter().any(|range| range.contains(&msr));
        match read(msr) {
            Ok(_) if COUNTERS.contains(&msr) => say!("msrs: {msr:#x} = counts"),
            Ok(value) if written => {
                let Bits { refused, kept } = flip(msr, value);
                say!("msrs: {msr:#x} = {value:#x} kept {kept:#x} refused {refused:#x}");
            }
            Ok(value) => say!("msrs: {msr:#x} = {value:#x}"),
            Err(_) if written && write(msr, 0).is_ok() => say!("msrs: {msr:#x} = cannot be read"),
            Err(_) => continue,
        }
        lines += 1;
    }
    let (one, seven) = (cpu::cpuid(1, 0), cpu::cpuid(7, 0));
    say!("cpuid: 0x1 = {:#x} {:#x} {:#x}", one.eax, one.ecx, one.edx);
    say!("cpuid: 0x7 = {:#x} {:#x} {:#x}", seven.ebx, seven.ecx, seven.edx);
    let (six, ten) = (cpu::cpuid(6, 0), cpu::cpuid(10, 0));
    say!("cpuid: 0x6 = {:#x} {:#x} {:#x}", six.eax, six.ebx, six.ecx);
    say!("cpuid: 0xa = {:#x} {:#x} {:#x}", ten.eax, ten.ebx, ten.edx);
    lines + 4
}
