//! Single steps and interrupt shadows, over instructions that a hypervisor may emulate.

use guest_kernels::check;
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, rflags};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets::{self, Snippet};
use guest_kernels::kit::traps::{self, Trap, vector};
use guest_kernels::kit::{access, apic, descriptors, port};

use crate::log;
use crate::setting::Setting;

/// DR6: single step.
const BS: u64 = 1 << 14;

fn note_step(context: &mut Context) {
    log::note(context.rip << 1 | u64::from(cpu::dr6() & BS != 0));
    cpu::clear_dr6();
}

/// The addresses behind the steps of a snippet, relative to its start.
fn steps(snippet: Snippet, user: bool, target: u64, rcx: u64) -> (usize, [u64; 64], Context) {
    let mut context = snippet.in_ring(user);
    (context.rdi, context.rsi, context.rcx) = (target, 0, rcx);
    if snippet == snippets::steps_mov_ss() {
        context.rsi =
            if user { descriptors::selector::USER_DATA } else { descriptors::selector::DATA };
    }
    // User mode has no stack of its own here.
    if snippet == snippets::steps_popf() && user {
        context.rsp = target;
    }
    let (count, values, trap) = step_over(&context);
    (count, values, trap.context)
}

fn step_over(context: &Context) -> (usize, [u64; 64], Trap) {
    log::clear();
    let start = context.rip;
    let trap = traps::run(&context.with_flags(rflags::TF));
    let values = log::values().map(|value| match value {
        0 => 0,
        noted if noted & 1 == 1 => (noted >> 1) - start,
        // A step without DR6.BS.
        _ => u64::MAX,
    });
    (log::count(), values, trap)
}

/// #DB after every instruction: the same on a plain page, a page table and a device.
pub fn step(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let tpr = targets.device.raw() + apic::register::TPR;
    traps::handle(vector::DB, note_step);
    cpu::clear_dr6();
    for user in [false, true] {
        // MOV SS and the instruction behind it are one step; each repetition of a string
        // instruction is one.
        for (name, snippet, rcx, expected) in [
            ("store, load, add", snippets::steps(), 0, &[3, 6, 10, 11][..]),
            ("rep stosq", snippets::steps_string(), 3, &[0, 0, 3, 4, 5]),
            ("mov ss", snippets::steps_mov_ss(), 0, &[5, 6, 7]),
            ("popf", snippets::steps_popf(), 0, &[2, 3]),
        ] {
            for place in [targets.plain.raw() + 128, targets.table.raw() + 128] {
                let (count, values, end) = steps(snippet, user, place, rcx);
                let found = &values[..count.min(64)];
                check!(
                    report,
                    found == expected,
                    "{name} at {place:#x}, user {user}: steps {found:?} instead of {expected:?}, the end {end:x?}"
                );
            }
        }
        let (count, values, _) = steps(snippets::steps_device(), user, tpr, 0);
        let found = &values[..count.min(64)];
        check!(report, found == [2, 4, 5, 6], "a device, user {user}: steps {found:?}");
    }
    traps::unhandle(vector::DB);
    apic::write(apic::register::TPR, 0);
}

/// #DB after IN and OUT, and after every repetition of INS and OUTS, whose memory is a plain page or
/// a page table.
pub fn ports(setting: &mut Setting, report: &mut Report) {
    /// The first PIC's mask: reading it changes nothing.
    const MASK: u64 = 0x21;
    /// A diagnostic port: any value may be written.
    const ANY: u64 = 0x80;
    let targets = setting.targets();
    traps::handle(vector::DB, note_step);
    cpu::clear_dr6();
    let mask = u64::from(port::read_u8(MASK as u16));
    for user in [false, true] {
        for (place, frame) in
            [(targets.plain, targets.plain_frame), (targets.table, targets.table_frame)]
        {
            // RCX before and after; how far RDI or RSI goes.
            for (name, snippet, input, rcx, left, moved, expected) in [
                ("in", snippets::steps_in(), true, 9, 9, 0, &[1, 2, 3][..]),
                ("out", snippets::steps_out(), false, 9, 9, 0, &[1, 2, 3]),
                ("insb", snippets::steps_ins(), true, 9, 9, 1, &[1, 2, 3]),
                ("outsb", snippets::steps_outs(), false, 9, 9, 1, &[1, 2, 3]),
                ("rep insb", snippets::steps_rep_ins(), true, 3, 0, 3, &[0, 0, 2, 3, 4]),
                ("rep outsb", snippets::steps_rep_outs(), false, 3, 0, 3, &[0, 0, 2, 3, 4]),
                ("rep insb of nothing", snippets::steps_rep_ins(), true, 0, 0, 0, &[2, 3, 4]),
                ("rep outsb of nothing", snippets::steps_rep_outs(), false, 0, 0, 0, &[2, 3, 4]),
            ] {
                frame.write(24, 0);
                let start = place.raw() + 24 * 8;
                let mut context = snippet.in_ring(user).with_flags(rflags::IOPL_3);
                (context.rdi, context.rsi, context.rcx) = (start, start, rcx);
                context.rdx = if input { MASK } else { ANY };
                let (count, values, trap) = step_over(&context);
                let found = &values[..count.min(64)];
                check!(
                    report,
                    trap.is_stop() && found == expected,
                    "{name} at {start:#x}, user {user}: steps {found:?} instead of {expected:?}, {trap:x?}"
                );
                let end = trap.context;
                let registers = (end.rdi.wrapping_sub(start), end.rsi.wrapping_sub(start), end.rcx);
                let wanted = if input { (moved, 0, left) } else { (0, moved, left) };
                check!(
                    report,
                    registers == wanted,
                    "{name} at {start:#x}, user {user}: RDI, RSI, RCX are {registers:x?} instead of {wanted:x?}"
                );
                let bytes = if input { moved } else { 0 };
                let read = (0..bytes).fold(0, |word, _| word << 8 | mask);
                let word = frame.read(24);
                check!(
                    report,
                    word == read,
                    "{name} at {start:#x}, user {user}: the word is {word:#x} instead of {read:#x}"
                );
            }
        }
    }
    traps::unhandle(vector::DB);
}

/// Notes steps, and in their lowest bit whether the timer's interrupt was due already.
fn note_halt(context: &mut Context) {
    let due = apic::read(apic::register::IRR + 0x10 * u64::from(VECTOR / 32)) >> (VECTOR % 32) & 1;
    log::note(context.rip << 1 | u64::from(due));
    cpu::clear_dr6();
}

/// A single step ends HLT at once: "an enabled interrupt, a debug exception [...] will resume
/// execution" (SDM, "HLT").
pub fn halt(_: &mut Setting, report: &mut Report) {
    /// A long time, but not for ever: a machine that waits for it instead has failed.
    const COUNT: u32 = 20_000_000;
    traps::handle(vector::DB, note_halt);
    traps::handle(VECTOR, note_interrupt);
    cpu::clear_dr6();
    let mut over = |what: &str, flags: u64| {
        log::clear();
        let context = snippets::steps_halt().kernel().with_flags(flags | rflags::TF);
        let trap = traps::run(&context);
        let found = log::values().map(|value| value.wrapping_sub(context.rip << 1));
        check!(
            report,
            trap.is_stop() && log::count() == 3 && found[..3] == [2, 4, 6],
            "HLT with {what}: {} steps, {:x?}, {trap:x?}",
            log::count(),
            &found[..3]
        );
        log::count() == 3
    };
    apic::write(apic::register::DIVIDE, apic::bit::DIVIDE_BY_1);
    apic::write(apic::register::LVT_TIMER, VECTOR.into());
    apic::write(apic::register::INITIAL_COUNT, COUNT);
    let ended = over("interrupts on", rflags::IF);
    apic::write(apic::register::INITIAL_COUNT, 0);
    apic::write(apic::register::LVT_TIMER, apic::bit::MASKED);
    // Where it waits for an interrupt, this would be the end.
    if ended {
        over("interrupts off", 0);
    }
    cpu::interruptible(1000, || false);
    traps::unhandle(VECTOR);
    traps::unhandle(vector::DB);
}

const VECTOR: u8 = 0x62;

fn note_interrupt(context: &mut Context) {
    log::note(context.rip);
    apic::end_of_interrupt();
}

/// A pending interrupt comes after the instruction behind STI, whatever that instruction does.
///
/// The plain page is touched before: Bochs 2.7 does not save blocking by STI when a page fault in
/// that instruction exits from a guest, so a hypervisor in it cannot know.
pub fn shadow(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let esr = targets.device.raw() + apic::register::ESR;
    traps::handle(VECTOR, note_interrupt);
    let touched = access::write(targets.plain, 0);
    check!(report, touched.is_ok(), "a store to the plain page: {touched:x?}");
    for place in [targets.plain.raw() + 128, targets.table.raw() + 128, esr] {
        log::clear();
        apic::send_self(VECTOR);
        let mut context = snippets::sti_store().kernel();
        (context.rdi, context.rsi) = (place, 0);
        let start = context.rip;
        let trap = traps::run(&context);
        let (count, first) = (log::count(), log::values()[0].wrapping_sub(start));
        check!(
            report,
            trap.is_stop() && (count, first) == (1, 3),
            "a store to {place:#x} behind STI: {count} interrupts, the first at +{first}, {trap:x?}"
        );
    }
    traps::unhandle(VECTOR);
}
