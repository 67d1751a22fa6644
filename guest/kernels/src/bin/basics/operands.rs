//! Operands of x87, MMX and SSE instructions where there is no plain memory, code where there is
//! none, and instructions at the end of the canonical addresses.

use guest_kernels::check;
use guest_kernels::entries::{KERNEL_PAGE, PAGE};
use guest_kernels::kit::access::Fault;
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, rflags};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets::{self, Snippet};
use guest_kernels::kit::traps::{self, vector};
use guest_kernels::kit::{access, apic, space};
use umbra_paging::{Gva, Level, bits};

use crate::setting::Setting;

/// A guest-physical address where there is nothing.
const HOLE: u64 = 0xd000_0000;
/// CR0.TS.
const TS: u64 = 1 << 3;

/// The ways to copy, and how many bytes each copies.
fn copies() -> [(&'static str, Snippet, usize); 3] {
    [
        ("SSE", snippets::copy_by_sse(), 16),
        ("MMX", snippets::copy_by_mmx(), 4),
        ("x87", snippets::copy_by_x87(), 4),
    ]
}

fn copy(snippet: Snippet, user: bool, from: u64, to: u64) -> Result<Context, Fault> {
    let mut start = snippet.in_ring(user);
    (start.rdi, start.rsi) = (from, to);
    access::run(&start)
}

/// Maps the hole for everybody.
pub fn hole(setting: &mut Setting) -> Gva {
    let hole = space::slot(14);
    setting.space.map(&mut setting.pool, hole, Level::L1, HOLE | PAGE);
    hole
}

/// Holes give ones and swallow what is written; a device has its registers.
pub fn vector(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let (hole, plain, device) = (hole(setting).raw(), targets.plain.raw(), targets.device.raw());
    let frame = targets.plain_frame;
    for user in [false, true] {
        for (name, snippet, size) in copies() {
            (0..4).for_each(|word| frame.write(word, 0x1122_3344_5566_7788));
            let done = copy(snippet, user, hole, plain);
            let found = [frame.read(0), frame.read(1)];
            let expected = match size {
                16 => [u64::MAX; 2],
                _ => [0x1122_3344_ffff_ffff, 0x1122_3344_5566_7788],
            };
            check!(
                report,
                done.is_ok() && found == expected,
                "{name} from a hole, user {user}: {done:x?}, {found:x?} instead of {expected:x?}"
            );
            let done = copy(snippet, user, plain, hole + 4096 - size as u64);
            check!(report, done.is_ok(), "{name} to a hole: {done:x?}");
            if size == 4 {
                let version = copy(snippet, user, device + apic::register::VERSION, plain);
                let found = frame.read(0) as u32;
                let expected = apic::read(apic::register::VERSION);
                check!(
                    report,
                    version.is_ok() && found == expected,
                    "{name} from the APIC: {version:x?}, {found:#x} instead of {expected:#x}"
                );
                frame.write(0, 0x30);
                let set = copy(snippet, user, plain, device + apic::register::TPR);
                let found = apic::read(apic::register::TPR);
                check!(
                    report,
                    set.is_ok() && found == 0x30,
                    "{name} to the TPR: {set:x?}, {found:#x}"
                );
                apic::write(apic::register::TPR, 0);
            }
        }
        let mut start = snippets::flush_line().in_ring(user);
        start.rdi = device + apic::register::VERSION;
        let trap = traps::run(&start);
        check!(report, trap.is_stop(), "CLFLUSH of a device: {trap:x?}");
        // The x87 instruction pointer is that of the guest's instruction.
        let mut start = snippets::store_environment().in_ring(user);
        (start.rdi, start.rsi) = (hole, plain);
        let trap = traps::run(&start);
        let (found, expected) = ((frame.read(1) >> 32) as u32, (start.rip + 2) as u32);
        check!(
            report,
            trap.is_stop() && found == expected,
            "the x87 instruction pointer: {trap:x?}, {found:#x} instead of {expected:#x}"
        );
    }
}

/// An operand half of which lies in the page of its own instruction, the other half where there is
/// nothing.
pub fn beside_code(setting: &mut Setting, report: &mut Report) {
    /// MOVUPS from (%rdi), and to (%rsi).
    const CODE: [u8; 8] = [0x0f, 0x10, 0x07, 0x0f, 0x11, 0x06, 0xcd, 0x80];
    const VALUE: u64 = 0x1122_3344_5566_7788;
    let targets = setting.targets();
    let (page, frame) = (space::slot(16), setting.pool.frame());
    setting.space.map(&mut setting.pool, page, Level::L1, frame.address() | PAGE);
    setting.space.map(&mut setting.pool, Gva::new(page.raw() + 4096), Level::L1, HOLE | PAGE);
    frame.write_bytes(0x800, &CODE);
    frame.write(511, VALUE);
    for user in [false, true] {
        let mut start = snippets::nothing().in_ring(user);
        start.rip = page.raw() + 0x800;
        (start.rdi, start.rsi) = (page.raw() + 4096 - 8, targets.plain.raw());
        let trap = traps::run(&start);
        let found = [targets.plain_frame.read(0), targets.plain_frame.read(1)];
        check!(
            report,
            trap.is_stop() && found == [VALUE, u64::MAX],
            "an operand beside its code, user {user}: {trap:x?}, {found:x?}"
        );
        (0..2).for_each(|word| targets.plain_frame.write(word, 0));
    }
}

/// Entries of a table in use, written by them.
pub fn table(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let shown = space::slot(13);
    for user in [false, true] {
        for round in 0..20u64 {
            let index = 2 * round as usize;
            let entry = targets.plain_frame.address() | PAGE;
            [0, 0]
                .into_iter()
                .enumerate()
                .for_each(|(n, zero)| targets.table_frame.write(index + n, zero));
            targets.plain_frame.write(0, entry);
            targets.plain_frame.write(1, entry);
            let page = Gva::new(shown.raw() + 4096 * index as u64);
            cpu::invlpg(page);
            let gone = access::read(page);
            check!(report, gone == Err(Fault::page(0, page.raw())), "before: {gone:x?}");
            let to = targets.table.raw() + 8 * index as u64;
            let done = copy(snippets::copy_by_sse(), user, targets.plain.raw(), to);
            let found = access::read(page);
            check!(
                report,
                done.is_ok() && found == Ok(entry),
                "an entry written by SSE, user {user}: {done:x?}, {found:x?}"
            );
        }
    }
}

/// Read-only pages written by ring 0 while CR0.WP is clear, whatever holds back what else.
pub fn write_protected(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let (to, frame) = (space::slot(15), setting.pool.frame());
    for entry in [KERNEL_PAGE & !bits::W, PAGE & !bits::W] {
        setting.space.map(&mut setting.pool, to, Level::L1, frame.address() | entry);
        for (smep, smap) in [(false, false), (true, false), (true, true)] {
            if (smep && !setting.cpu.smep) || (smap && !setting.cpu.smap) {
                continue;
            }
            cpu::flush_all();
            cpu::set_paging_bits(false, smep, smap, false);
            for (name, snippet, size) in copies() {
                frame.fill(0);
                targets.plain_frame.write(0, 0x1234_5678);
                targets.plain_frame.write(1, 0x9abc_def0);
                let mut start = snippet.kernel().with_flags(rflags::AC);
                (start.rdi, start.rsi) = (targets.plain.raw(), to.raw());
                let done = access::run(&start);
                let found = [frame.read(0), frame.read(1)];
                let expected =
                    if size == 16 { [0x1234_5678, 0x9abc_def0] } else { [0x1234_5678, 0] };
                check!(
                    report,
                    done.is_ok() && found == expected,
                    "{name} through {entry:#x}, SMEP {smep}, SMAP {smap}: {done:x?}, {found:x?}"
                );
            }
            cpu::set_paging_bits(true, false, false, false);
        }
    }
}

/// A misaligned write raises #AC, and leaves the page clean: it was not written.
pub fn alignment(setting: &mut Setting, report: &mut Report) {
    let (to, frame) = (space::slot(15), setting.pool.frame());
    let clean = frame.address() | PAGE & !bits::D;
    cpu::enable_alignment_checks();
    for (offset, vector, dirty) in [(1, vector::AC, false), (4, vector::STOP, true)] {
        let table = setting.space.map(&mut setting.pool, to, Level::L1, clean);
        cpu::invlpg(to);
        let mut start = snippets::ins_4().user().with_flags(rflags::AC | rflags::IOPL_3);
        (start.rdi, start.rdx) = (to.raw() + offset, 0x150);
        let trap = traps::run(&start);
        let entry = table.read(to.index(Level::L1));
        check!(
            report,
            trap.vector == vector && (entry & bits::D != 0) == dirty,
            "INS to offset {offset}: {trap:x?}, entry {entry:#x}"
        );
    }
}

/// Faults of these instructions: alignment, CR0.TS, and an operand of which the second page is
/// missing.
pub fn faults(setting: &mut Setting, report: &mut Report) {
    let hole = hole(setting).raw();
    for user in [false, true] {
        let mut start = snippets::load_aligned().in_ring(user);
        start.rdi = hole + 8;
        let found = access::run(&start);
        check!(report, found == Err(Fault::general_protection(0)), "MOVAPS misaligned: {found:x?}");
        let found = copy(snippets::copy_by_sse(), user, hole + 4096 - 8, hole);
        let code = if user { 4 } else { 0 };
        check!(
            report,
            found == Err(Fault::page(code, hole + 4096)),
            "MOVUPS into a page that is missing: {found:x?}"
        );
        let found = copy(snippets::copy_by_sse(), user, hole, hole + 4096 - 8);
        check!(
            report,
            found == Err(Fault::page(code | 2, hole + 4096)),
            "MOVUPS to a page that is missing: {found:x?}"
        );
    }
    let mut switched = snippets::write_cr0().kernel();
    switched.rsi = cpu::cr0() | TS;
    check!(report, traps::run(&switched).is_stop(), "CR0.TS cannot be set");
    let found = copy(snippets::copy_by_sse(), true, hole, hole);
    check!(report, traps::run(&snippets::clear_task_switched().kernel()).is_stop(), "CLTS");
    let expected = Err(Fault { vector: vector::NM, error_code: 0, cr2: 0 });
    check!(report, found == expected, "MOVUPS with CR0.TS: {found:x?}");
}

/// A trap behind each, as behind every instruction.
pub fn steps(setting: &mut Setting, report: &mut Report) {
    const BS: u64 = 1 << 14;
    let hole = hole(setting).raw();
    for user in [false, true] {
        cpu::clear_dr6();
        let mut start = snippets::steps_sse().in_ring(user).with_flags(rflags::TF);
        start.rdi = hole;
        for step in 1..=2u64 {
            let trap = traps::run(&start);
            let found =
                (trap.vector, trap.context.rip - start.rip, trap.context.rflags & rflags::TF);
            check!(report, found == (vector::DB, 3, rflags::TF), "step {step}: {found:x?}");
            check!(report, cpu::dr6() & BS != 0, "step {step} without DR6.BS");
            cpu::clear_dr6();
            start.rip = trap.context.rip;
        }
    }
}

/// Where there is no memory, code reads as ones, and two of these are no instruction.
pub fn hole_code(setting: &mut Setting, report: &mut Report) {
    let hole = hole(setting).raw();
    let before = Gva::new(hole - 4096);
    let frame = setting.pool.frame();
    setting.space.map(&mut setting.pool, before, Level::L1, frame.address() | PAGE);
    // INC DWORD PTR [RDI+disp8], of which the displacement lies in the hole.
    frame.write_bytes(4094, &[0xff, 0x47]);
    frame.write(1, 41);
    for user in [false, true] {
        let mut start = snippets::nothing().in_ring(user);
        start.rip = hole;
        let trap = traps::run(&start);
        let found = (trap.vector, trap.context.rip);
        check!(report, found == (vector::UD, hole), "a jump into a hole: {trap:x?}");
        let word = frame.read(1);
        (start.rip, start.rdi) = (hole - 2, before.raw() + 9);
        let trap = traps::run(&start);
        let found = (trap.vector, trap.context.rip, frame.read(1));
        check!(
            report,
            found == (vector::UD, hole + 1, word + 1),
            "half an instruction: {trap:x?} {found:x?}"
        );
    }
}

/// The instruction has retired if the next address is not canonical: #GP is that of the next one.
pub fn last_instruction(setting: &mut Setting, report: &mut Report) {
    const END: u64 = 1 << 47;
    let page = Gva::new(END - 4096);
    let frame = setting.pool.frame();
    setting.space.map(&mut setting.pool, page, Level::L1, frame.address() | PAGE);
    // CPUID; OUT to a port that does nothing; a store to a device.
    let targets = setting.targets();
    let tpr = targets.device.raw() + apic::register::TPR;
    for (code, kernel_only) in [
        (&[0x0f, 0xa2][..], false),
        (&[0xe6, 0x80], true),
        (&[0x89, 0x37], false),
        (&[0x0f, 0x11, 0x1f], false),
    ] {
        frame.write_bytes(4096 - code.len(), code);
        for user in [false, true] {
            if user && kernel_only {
                continue;
            }
            let mut start = snippets::nothing().in_ring(user);
            start.rip = END - code.len() as u64;
            (start.rdi, start.rsi, start.rax) = (tpr, 0x40, 0);
            if code.len() == 3 {
                start.rdi = hole(setting).raw();
            }
            let trap = traps::run(&start);
            let found = (trap.vector, trap.error_code, trap.context.rip);
            check!(report, found == (vector::GP, 0, END), "{code:x?} at the end: {found:x?}");
            if code[1] == 0xa2 {
                check!(report, trap.context.rax != 0, "CPUID has not retired");
            }
        }
    }
    let found = apic::read(apic::register::TPR);
    check!(report, found == 0x40, "the store has not retired: {found:#x}");
    apic::write(apic::register::TPR, 0);
}
