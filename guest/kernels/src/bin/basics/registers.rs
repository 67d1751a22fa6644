//! Model-specific registers: what may be written to them, and that those that are not there raise
//! #GP.

use guest_kernels::check;
use guest_kernels::kit::access::{Fault, read_msr as read, write_msr as write};
use guest_kernels::kit::cpu;
use guest_kernels::kit::report::Report;

use crate::setting::Setting;

const GP: Fault = Fault::general_protection(0);

/// Registers that hold an address: canonical ones are kept, others refused.
pub fn addresses(_: &mut Setting, report: &mut Report) {
    const REGISTERS: [(&str, u32); 7] = [
        ("IA32_SYSENTER_ESP", 0x175),
        ("IA32_SYSENTER_EIP", 0x176),
        ("IA32_LSTAR", 0xc000_0082),
        ("IA32_CSTAR", 0xc000_0083),
        ("IA32_FS_BASE", 0xc000_0100),
        ("IA32_GS_BASE", 0xc000_0101),
        ("IA32_KERNEL_GS_BASE", 0xc000_0102),
    ];
    for (name, msr) in REGISTERS {
        let before = read(msr);
        let Ok(before) = before else {
            check!(report, false, "{name}: {before:x?}");
            continue;
        };
        for value in [0x1234_5678_9abc, u64::MAX, 0xffff_8000_0000_0000, 0x7fff_ffff_ffff, 0] {
            let outcome = write(msr, value);
            let found = read(msr);
            check!(
                report,
                outcome.is_ok() && found == Ok(value),
                "{name} = {value:#x}: {outcome:x?}, {found:x?}"
            );
        }
        for value in [1 << 47, 0x8000_0000_0000_0000, 0xffff_7fff_ffff_ffff] {
            let outcome = write(msr, value);
            let found = read(msr);
            check!(
                report,
                outcome == Err(GP) && found == Ok(0),
                "{name} = {value:#x}: {outcome:x?}, {found:x?}"
            );
        }
        let restored = write(msr, before);
        check!(report, restored.is_ok(), "{name} back to {before:#x}: {restored:x?}");
    }
}

/// Other registers: STAR and FMASK keep what they are given, PAT takes memory types only.
pub fn values(_: &mut Setting, report: &mut Report) {
    const STAR: u32 = 0xc000_0081;
    const FMASK: u32 = 0xc000_0084;
    const SYSENTER_CS: u32 = 0x174;
    const PAT: u32 = 0x277;
    for (msr, value) in [(STAR, 0x0023_0010_1234_5678), (FMASK, 0x4_7700), (SYSENTER_CS, 0x10)] {
        let before = read(msr).unwrap_or(0);
        let outcome = write(msr, value);
        let found = read(msr);
        check!(
            report,
            outcome.is_ok() && found == Ok(value),
            "{msr:#x} = {value:#x}: {outcome:x?}, {found:x?}"
        );
        let restored = write(msr, before);
        check!(report, restored.is_ok(), "{msr:#x} back to {before:#x}: {restored:x?}");
    }
    let before = read(PAT).unwrap_or(0);
    for (value, expected) in [
        (0x0007_0406_0007_0406, Ok(())),
        (0x0606_0606_0606_0606, Ok(())),
        (0x0506_0104_0007_0406, Ok(())),
        // Types 2 and 3 do not exist, nor anything above 7.
        (0x0002_0406_0007_0406, Err(GP)),
        (0x0007_0406_0007_0403, Err(GP)),
        (0x0807_0406_0007_0406, Err(GP)),
    ] {
        let held = read(PAT);
        let outcome = write(PAT, value);
        let wanted = if expected.is_ok() { Ok(value) } else { held };
        let found = read(PAT);
        check!(
            report,
            outcome == expected && found == wanted,
            "IA32_PAT = {value:#x}: {outcome:x?} instead of {expected:x?}, then {found:x?}"
        );
    }
    let restored = write(PAT, before);
    check!(report, restored.is_ok(), "IA32_PAT back to {before:#x}: {restored:x?}");
}

/// Registers that no CPU has, and those of features that CPUID does not show.
pub fn missing(_: &mut Setting, report: &mut Report) {
    let one = cpu::cpuid(1, 0);
    let hidden = |shown: bool, msr: u32| (!shown).then_some(msr);
    let features = [
        // IA32_MTRRCAP, IA32_MCG_CAP, the first x2APIC register.
        hidden(one.edx >> 12 & 1 != 0, 0xfe),
        hidden(one.edx >> 14 & 1 != 0, 0x179),
        hidden(one.ecx >> 21 & 1 != 0, 0x802),
    ];
    let never =
        [0x0bad_0000, 0x2000_0000, 0x7fff_ffff, 0x8000_0000, 0xc000_7fff, 0xc123_4567, 0xffff_ffff];
    for msr in never.into_iter().chain(features.into_iter().flatten()) {
        let (got, put) = (read(msr), write(msr, 0));
        check!(
            report,
            got == Err(GP) && put == Err(GP),
            "register {msr:#x}: read {got:x?}, written {put:x?}"
        );
    }
}
