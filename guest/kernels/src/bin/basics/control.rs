//! Control registers: what CPUID shows can be set, what it hides is #GP.

use guest_kernels::check;
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::cpu::{self, cpuid};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets::{self, Snippet};
use guest_kernels::kit::traps::{self, vector};
use umbra_paging::{cr0, cr4};

use crate::setting::Setting;

const GP: Fault = Fault::general_protection(0);

fn write(snippet: Snippet, value: u64) -> Result<(), Fault> {
    let mut context = snippet.kernel();
    context.rsi = value;
    access::run(&context).map(|_| ())
}

/// Whether CPUID shows the feature of a bit of CR4; `None` for bits that nothing shows.
fn shown(bit: u32) -> Option<bool> {
    let seven = if cpuid(0, 0).eax >= 7 { Some(cpuid(7, 0)) } else { None };
    let one = cpuid(1, 0);
    let has = |word: u32, index: u32| Some(word >> index & 1 != 0);
    let of_seven = |word: fn(core::arch::x86_64::CpuidResult) -> u32, index: u32| {
        Some(seven.is_some_and(|seven| word(seven) >> index & 1 != 0))
    };
    // SDM, "Control Registers", CR4.
    match bit {
        0 | 1 => has(one.edx, 1),
        2 => has(one.edx, 4),
        3 => has(one.edx, 2),
        4 => has(one.edx, 3),
        5 => has(one.edx, 6),
        6 => has(one.edx, 7),
        7 => has(one.edx, 13),
        8 => Some(true),
        9 => has(one.edx, 24),
        10 => has(one.edx, 25),
        11 => of_seven(|seven| seven.ecx, 2),
        13 => has(one.ecx, 5),
        14 => has(one.ecx, 6),
        16 => of_seven(|seven| seven.ebx, 0),
        17 => has(one.ecx, 17),
        18 => has(one.ecx, 26),
        20 => of_seven(|seven| seven.ebx, 7),
        21 => of_seven(|seven| seven.ebx, 20),
        22 => of_seven(|seven| seven.ecx, 3),
        23 => of_seven(|seven| seven.ecx, 7),
        24 => of_seven(|seven| seven.ecx, 31),
        25 => of_seven(|seven| seven.edx, 5),
        _ => None,
    }
}

/// Every bit of CR4.
pub fn cr4(_: &mut Setting, report: &mut Report) {
    let before = cpu::cr4();
    for bit in 0..64 {
        // 5-level paging cannot be switched while paging is on, whether it exists or not.
        let accepted = shown(bit).unwrap_or(false);
        let outcome = write(snippets::write_cr4(), before | 1 << bit);
        let expected = if accepted || before >> bit & 1 != 0 { Ok(()) } else { Err(GP) };
        check!(
            report,
            outcome == expected,
            "CR4 bit {bit}, which CPUID shows: {accepted}: {outcome:x?} instead of {expected:x?}"
        );
        let found = cpu::cr4();
        let wanted = if expected.is_ok() { before | 1 << bit } else { before };
        check!(report, found == wanted, "CR4 is {found:#x} instead of {wanted:#x}");
        let restored = write(snippets::write_cr4(), before);
        check!(report, restored.is_ok(), "CR4 back to {before:#x}: {restored:x?}");
    }
    let outcome = write(snippets::write_cr4(), before & !cr4::PAE);
    check!(report, outcome == Err(GP), "CR4.PAE off in long mode: {outcome:x?}");
}

/// CR0: combinations that are refused, TS and #NM, LMSW, CLTS.
pub fn cr0(_: &mut Setting, report: &mut Report) {
    const TS: u64 = 1 << 3;
    const NW: u64 = 1 << 29;
    let before = cpu::cr0();
    for (what, value) in [
        ("PG without PE", before & !cr0::PE),
        ("NW without CD", before | NW),
        ("a high bit", before | 1 << 32),
        ("paging off in 64-bit mode", before & !cr0::PG),
    ] {
        let outcome = write(snippets::write_cr0(), value);
        check!(report, outcome == Err(GP), "{what}: {outcome:x?}");
        check!(report, cpu::cr0() == before, "CR0 is {:#x} instead of {before:#x}", cpu::cr0());
    }
    let set = write(snippets::write_cr0(), before | TS);
    check!(report, set.is_ok() && cpu::cr0() & TS != 0, "TS on: {set:x?}, CR0 {:#x}", cpu::cr0());
    let trap = traps::run(&snippets::wait().kernel());
    check!(report, trap.vector == vector::NM, "FWAIT under TS and MP: {trap:x?}");
    let trap = traps::run(&snippets::clear_task_switched().kernel());
    check!(
        report,
        trap.is_stop() && cpu::cr0() == before,
        "CLTS: {trap:x?}, CR0 {:#x}",
        cpu::cr0()
    );
    let trap = traps::run(&snippets::wait().kernel());
    check!(report, trap.is_stop(), "FWAIT: {trap:x?}");
    // LMSW sets TS, and cannot clear PE.
    let mut context = snippets::lmsw().kernel();
    context.rsi = before & 0xf & !cr0::PE | TS;
    let trap = traps::run(&context);
    check!(
        report,
        trap.is_stop() && cpu::cr0() == before | TS,
        "LMSW: {trap:x?}, CR0 {:#x}",
        cpu::cr0()
    );
    let back = write(snippets::write_cr0(), before);
    check!(report, back.is_ok() && cpu::cr0() == before, "CR0 back: {back:x?}");
    let user = traps::run(&snippets::clear_task_switched().user());
    check!(report, user.vector == vector::GP, "CLTS in ring 3: {user:x?}");
    let swapped = traps::run(&snippets::swapgs().kernel());
    check!(report, swapped.is_stop(), "SWAPGS twice: {swapped:x?}");
}

/// CR3: address bits beyond MAXPHYADDR are #GP; low bits are kept.
pub fn cr3(setting: &mut Setting, report: &mut Report) {
    let root = setting.space.root().address();
    for bit in u32::from(setting.cpu.features.maxphyaddr)..64 {
        let outcome = write(snippets::write_cr3(), root | 1 << bit);
        check!(report, outcome == Err(GP), "CR3 bit {bit}: {outcome:x?}");
    }
    // PWT and PCD.
    let outcome = write(snippets::write_cr3(), root | 0x18);
    check!(
        report,
        outcome.is_ok() && cpu::cr3() == root | 0x18,
        "CR3 with PWT and PCD: {outcome:x?}, {:#x}",
        cpu::cr3()
    );
    setting.space.activate();
    check!(report, cpu::cr3() == root, "CR3 is {:#x} instead of {root:#x}", cpu::cr3());
    if !setting.cpu.pcid {
        return;
    }
    let on = write(snippets::write_cr4(), cpu::cr4() | cr4::PCIDE);
    check!(report, on.is_ok(), "CR4.PCIDE on: {on:x?}");
    for value in [root | 5, root | 1 << 63 | 6, root | 1 << 63 | 5, root] {
        let outcome = write(snippets::write_cr3(), value);
        let expected = value & !(1 << 63);
        check!(
            report,
            outcome.is_ok() && cpu::cr3() == expected,
            "CR3 = {value:#x}: {outcome:x?}, {:#x}",
            cpu::cr3()
        );
    }
    let off = write(snippets::write_cr4(), cpu::cr4() & !cr4::PCIDE);
    check!(report, off.is_ok(), "CR4.PCIDE off: {off:x?}");
    let low = write(snippets::write_cr3(), root | 8);
    let refused = write(snippets::write_cr4(), cpu::cr4() | cr4::PCIDE);
    check!(
        report,
        low.is_ok() && refused == Err(GP),
        "CR4.PCIDE on with low bits in CR3: {refused:x?}"
    );
    setting.space.activate();
}

/// EFER: LME cannot change while paging is on; bits that do not exist are #GP.
pub fn efer(setting: &mut Setting, report: &mut Report) {
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;
    const NXE: u64 = 1 << 11;
    let before = cpu::read_msr(cpu::EFER);
    let write = |value: u64| access::write_msr(cpu::EFER, value);
    check!(report, before & (LME | LMA) == LME | LMA, "EFER is {before:#x} in long mode");
    let outcome = write(before & !LME);
    check!(report, outcome == Err(GP), "LME off while paging: {outcome:x?}");
    for bit in [1, 2, 7, 9, 16, 31, 32, 63] {
        let outcome = write(before | 1 << bit);
        check!(report, outcome == Err(GP), "EFER bit {bit}: {outcome:x?}");
    }
    let outcome = write(before | NXE);
    let expected = if setting.cpu.nx { Ok(()) } else { Err(GP) };
    check!(report, outcome == expected, "NXE: {outcome:x?} instead of {expected:x?}");
    let back = write(before);
    check!(report, back.is_ok() && cpu::read_msr(cpu::EFER) == before, "EFER back: {back:x?}");
}
