//! The table of model-specific registers that the hypervisor keeps for the guest.

use crate::cpuid::Vendor;

/// IA32_TIME_STAMP_COUNTER.
const IA32_TSC: u32 = 0x10;
/// IA32_PLATFORM_ID.
const IA32_PLATFORM_ID: u32 = 0x17;
/// IA32_FEATURE_CONTROL.
const IA32_FEATURE_CONTROL: u32 = 0x3a;
/// IA32_BIOS_SIGN_ID; AMD calls it PATCH_LEVEL.
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
/// IA32_ARCH_CAPABILITIES.
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_MISC_ENABLE.
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// IA32_PAT.
const IA32_PAT: u32 = 0x277;
/// EFER.
const EFER: u32 = 0xc000_0080;

/// IA32_FEATURE_CONTROL: locked, with VMX off.
const FEATURE_CONTROL: u64 = 1;
/// A microcode revision that no list of bad ones has.
const MICROCODE: u64 = 1 << 32;

/// Bits of IA32_MISC_ENABLE.
mod misc_enable {
    pub const FAST_STRINGS: u64 = 1 << 0;
    pub const NO_BRANCH_TRACE_STORE: u64 = 1 << 11;
    pub const NO_PEBS: u64 = 1 << 12;
    pub const VALUE: u64 = FAST_STRINGS | NO_BRANCH_TRACE_STORE | NO_PEBS;
}

/// IA32_PAT at reset.
pub const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

/// What a write to a register of fixed value does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedWrite {
    /// It raises #GP.
    Refused,
    /// It has no effect.
    Ignored,
    /// It has none if it writes the value that is there, and raises #GP else.
    SameOnly,
}

/// Where the hypervisor has a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// The time-stamp counter.
    Tsc,
    /// EFER.
    Efer,
    /// IA32_PAT, which is only stored: guest memory is write-back.
    Pat,
    /// IA32_ARCH_CAPABILITIES: see [`Cpuid::arch_capabilities`](crate::cpuid::Cpuid::arch_capabilities).
    ArchCapabilities,
    /// A register that never changes.
    Fixed(u64, FixedWrite),
    /// Nowhere in this table: it is a device's or hardware's, or does not exist.
    Other,
}

impl Msr {
    /// Where the register of this number is, for a guest that finds a CPU of `vendor`.
    pub fn find(number: u32, vendor: Vendor) -> Msr {
        match number {
            IA32_TSC => Msr::Tsc,
            EFER => Msr::Efer,
            IA32_PAT => Msr::Pat,
            // Loading microcode begins with a zero here.
            IA32_BIOS_SIGN_ID => Msr::Fixed(MICROCODE, FixedWrite::Ignored),
            _ if vendor == Vendor::Amd => Msr::Other,
            IA32_ARCH_CAPABILITIES => Msr::ArchCapabilities,
            IA32_PLATFORM_ID => Msr::Fixed(0, FixedWrite::Refused),
            IA32_FEATURE_CONTROL => Msr::Fixed(FEATURE_CONTROL, FixedWrite::Refused),
            IA32_MISC_ENABLE => Msr::Fixed(misc_enable::VALUE, FixedWrite::SameOnly),
            _ => Msr::Other,
        }
    }
}

impl FixedWrite {
    /// Whether a register that holds `value` takes `written`.
    pub fn takes(self, value: u64, written: u64) -> bool {
        match self {
            FixedWrite::Refused => false,
            FixedWrite::Ignored => true,
            FixedWrite::SameOnly => value == written,
        }
    }
}

/// Whether each byte is a memory type (SDM, "IA32_PAT MSR").
pub fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|memory_type| matches!(memory_type, 0 | 1 | 4..=7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_intel_alone_do_not_exist_on_amd() {
        for number in [IA32_PLATFORM_ID, IA32_FEATURE_CONTROL, IA32_ARCH_CAPABILITIES, IA32_MISC_ENABLE] {
            assert_ne!(Msr::find(number, Vendor::Intel), Msr::Other, "{number:#x}");
            assert_eq!(Msr::find(number, Vendor::Amd), Msr::Other, "{number:#x}");
        }
        for number in [IA32_TSC, EFER, IA32_PAT, IA32_BIOS_SIGN_ID] {
            let found = Msr::find(number, Vendor::Amd);
            assert!(found != Msr::Other && found == Msr::find(number, Vendor::Intel), "{number:#x}");
        }
    }

    #[test]
    fn fixed_registers_and_what_they_take() {
        let takes = |number, written| match Msr::find(number, Vendor::Intel) {
            Msr::Fixed(value, write) => write.takes(value, written),
            other => panic!("{number:#x} is {other:?}"),
        };
        assert!(!takes(IA32_FEATURE_CONTROL, FEATURE_CONTROL) && !takes(IA32_PLATFORM_ID, 0));
        assert!(takes(IA32_BIOS_SIGN_ID, 0) && takes(IA32_BIOS_SIGN_ID, 7));
        assert!(takes(IA32_MISC_ENABLE, 0x1801) && !takes(IA32_MISC_ENABLE, 0x1800));
    }

    #[test]
    fn memory_types() {
        assert!(is_pat(PAT_AT_RESET) && is_pat(0x0001_0405_0607_0000));
        for byte in 0..8 {
            for bad in [2, 3, 8, 0xff] {
                let value = PAT_AT_RESET & !(0xff << (8 * byte)) | bad << (8 * byte);
                assert!(!is_pat(value), "{value:#x}");
            }
        }
    }
}
