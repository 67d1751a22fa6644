//! Breakpoints on instructions, data and ports, over instructions that a hypervisor may carry out
//! itself: what is reported, and when, must be the same on a plain page, a page table and a device.

use guest_kernels::check;
use guest_kernels::kit::apic::{self, register};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, Breakpoint, rflags};
use guest_kernels::kit::descriptors::selector;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets::{self, Snippet};
use guest_kernels::kit::space;
use guest_kernels::kit::traps::{self, Trap, vector};

use crate::setting::Setting;
use crate::{log, operands};

/// B0 to B3 and BS.
const REASONS: u64 = 0x400f;
const BS: u64 = 1 << 14;

/// Where a #DB came, with DR6 in the upper half.
fn note(context: &mut Context) {
    log::note(context.rip & 0xffff_ffff | (cpu::dr6() & REASONS) << 32);
    cpu::clear_dr6();
    // As debuggers do, or a breakpoint on an instruction comes again.
    context.rflags |= rflags::RF;
}

/// Each #DB: how far behind the start, and DR6.
struct Seen {
    count: usize,
    places: [(u64, u64); 8],
}

impl Seen {
    fn is(&self, expected: &[(u64, u64)]) -> bool {
        self.count == expected.len() && self.places[..self.count.min(8)] == *expected
    }
}

fn run(context: &Context) -> (Seen, Trap) {
    log::clear();
    cpu::clear_dr6();
    let trap = traps::run(context);
    let values = log::values();
    let place = |n: usize| {
        let value: u64 = values[n];
        ((value & 0xffff_ffff).wrapping_sub(context.rip & 0xffff_ffff), value >> 32)
    };
    let count = log::count();
    let places = core::array::from_fn(|n| if n < count { place(n) } else { (0, 0) });
    (Seen { count, places }, trap)
}

/// Begins a test; without any #DB on data this machine has no breakpoints (an emulator built
/// without).
fn begin(setting: &mut Setting) {
    traps::handle(vector::DB, note);
    cpu::clear_breakpoints();
    cpu::clear_dr6();
    setting.space.activate();
}

fn end() {
    cpu::clear_breakpoints();
    cpu::clear_dr6();
    traps::unhandle(vector::DB);
}

/// Data: writes and reads, whole and partly covered, alone and with a single step.
pub fn data(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    begin(setting);
    let device = targets.device.raw() + register::TPR;
    for user in [false, true] {
        for (place, snippet, size) in [
            (targets.plain.raw() + 128, snippets::steps(), 8),
            (targets.table.raw() + 128, snippets::steps(), 8),
            (device, snippets::steps_device(), 4),
        ] {
            // Behind the store, behind the load, and behind what follows.
            let [store, load] = if size == 8 { [3, 6] } else { [2, 4] };
            let mut context = snippet.in_ring(user);
            context.rdi = place;
            let mut expect = |what: &str, context: &Context, expected: &[(u64, u64)]| {
                let (seen, trap) = run(context);
                check!(
                    report,
                    trap.is_stop() && seen.is(expected),
                    "{what} at {place:#x}, user {user}: {} times, {:x?} instead of {expected:x?}; {trap:x?}",
                    seen.count,
                    &seen.places[..seen.count.min(8)]
                );
            };
            cpu::set_breakpoint(0, Breakpoint::Write, place, 1);
            expect("a breakpoint on writes", &context, &[(store, 1)]);
            cpu::set_breakpoint(0, Breakpoint::Access, place, 4);
            expect("a breakpoint on accesses", &context, &[(store, 1), (load, 1)]);
            // The last byte that the access covers, and the first that it does not.
            cpu::set_breakpoint(0, Breakpoint::Write, place + size - 1, 1);
            cpu::set_breakpoint(3, Breakpoint::Access, place + size, 1);
            expect("breakpoints at the end", &context, &[(store, 1)]);
            cpu::set_breakpoint(0, Breakpoint::Write, place, 2);
            cpu::set_breakpoint(3, Breakpoint::Access, place, 4);
            expect("two breakpoints", &context, &[(store, 9), (load, 8)]);
            cpu::set_breakpoint(3, Breakpoint::Write, place + 64, 8);
            let stepped = context.with_flags(rflags::TF);
            let (seen, trap) = run(&stepped);
            check!(
                report,
                trap.is_stop()
                    && seen.count == 4
                    && seen.places[..2] == [(store, BS | 1), (load, BS)],
                "a breakpoint and single steps at {place:#x}, user {user}: {:x?}; {trap:x?}",
                seen.places
            );
            cpu::clear_breakpoints();
        }
    }
    end();
}

/// Operands that the CPU reads where there is no memory.
pub fn vectors(setting: &mut Setting, report: &mut Report) {
    let plain = setting.targets().plain.raw() + 128;
    let hole = operands::hole(setting).raw();
    begin(setting);
    for user in [false, true] {
        for place in [plain, hole, hole + 4096 - 16] {
            let mut context = snippets::steps_sse().in_ring(user);
            context.rdi = place;
            cpu::set_breakpoint(0, Breakpoint::Access, place + 12, 4);
            let (seen, trap) = run(&context);
            // Behind the load, and behind the store.
            check!(
                report,
                trap.is_stop() && seen.is(&[(3, 1), (6, 1)]),
                "SSE over a breakpoint at {place:#x}, user {user}: {} times, {:x?}; {trap:x?}",
                seen.count,
                seen.places
            );
            cpu::clear_breakpoints();
        }
    }
    end();
}

/// String instructions: after the iteration that met it, with the registers as they then are.
pub fn strings(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    begin(setting);
    for user in [false, true] {
        for place in [targets.plain.raw() + 256, targets.table.raw() + 256] {
            let mut context = snippets::steps_string().in_ring(user);
            (context.rdi, context.rcx) = (place, 4);
            cpu::set_breakpoint(1, Breakpoint::Write, place + 16, 8);
            let (seen, trap) = run(&context);
            // Bochs and older CPUs report it there; the architecture allows a repeated instruction
            // to go on a bit.
            check!(
                report,
                trap.is_stop() && seen.is(&[(0, 2)]),
                "REP STOSQ over a breakpoint at {place:#x}, user {user}: {} times, {:x?}; {trap:x?}",
                seen.count,
                seen.places
            );
            cpu::clear_breakpoints();
        }
    }
    end();
}

/// The trap of a breakpoint that MOV SS has met comes behind the next instruction. If that is HLT,
/// it ends it (SDM, "HLT").
pub fn held(setting: &mut Setting, report: &mut Report) {
    /// A long time, but not for ever: a machine that waits for it instead has failed.
    const COUNT: u32 = 20_000_000;
    const TIMER: u8 = 0x62;
    let targets = setting.targets();
    targets.plain_frame.write(16, selector::DATA);
    begin(setting);
    traps::handle(TIMER, |_| apic::end_of_interrupt());
    let mut over = |what: &str, flags: u64| {
        let mut context = snippets::steps_mov_ss_halt().kernel().with_flags(flags);
        context.rdi = targets.plain.raw() + 128;
        cpu::set_breakpoint(1, Breakpoint::Access, context.rdi, 2);
        let (seen, trap) = run(&context);
        cpu::clear_breakpoints();
        let ended = apic::read(register::CURRENT_COUNT) != 0;
        check!(
            report,
            trap.is_stop() && seen.is(&[(3, 2)]) && (ended || flags == 0),
            "MOV SS from a breakpoint, then HLT with {what}: {} times, {:x?}, before the timer: {ended}; {trap:x?}",
            seen.count,
            seen.places
        );
        ended
    };
    apic::write(register::DIVIDE, apic::bit::DIVIDE_BY_1);
    apic::write(register::LVT_TIMER, TIMER.into());
    apic::write(register::INITIAL_COUNT, COUNT);
    let ended = over("interrupts on", rflags::IF);
    apic::write(register::INITIAL_COUNT, 0);
    apic::write(register::LVT_TIMER, apic::bit::MASKED);
    // Where it waits for an interrupt, this would be the end.
    if ended {
        over("interrupts off", 0);
    }
    traps::unhandle(TIMER);
    end();
}

/// A store that faults meets no breakpoint.
pub fn faults(setting: &mut Setting, report: &mut Report) {
    begin(setting);
    let nowhere = space::slot(100).raw();
    cpu::set_breakpoint(2, Breakpoint::Access, nowhere, 8);
    for user in [false, true] {
        let mut context = snippets::steps().in_ring(user);
        context.rdi = nowhere;
        let (seen, trap) = run(&context);
        let expected = (vector::PF, 2 | u64::from(user) << 2, nowhere, 0);
        let found = (trap.vector, trap.error_code, trap.cr2, seen.count);
        check!(
            report,
            found == expected,
            "a store that faults: {found:x?} instead of {expected:x?}"
        );
    }
    end();
}

/// A breakpoint on the instruction that stores: before it does, once.
pub fn instructions(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    begin(setting);
    for user in [false, true] {
        for (place, frame) in
            [(targets.plain, targets.plain_frame), (targets.table, targets.table_frame)]
        {
            frame.write(40, 0x1234_5000);
            let mut context = snippets::steps().in_ring(user);
            (context.rdi, context.rsi) = (place.raw() + 320, 0x5678_9000);
            cpu::set_breakpoint(0, Breakpoint::Execute, context.rip, 1);
            cpu::set_breakpoint(1, Breakpoint::Write, place.raw() + 320, 8);
            let (seen, trap) = run(&context);
            check!(
                report,
                trap.is_stop() && seen.count == 2 && seen.places[..2] == [(0, 1), (3, 2)],
                "a breakpoint on the instruction and on its data at {place:#x}, user {user}: {:x?}; {trap:x?}",
                seen.places
            );
            let word = frame.read(40);
            check!(report, word == context.rsi, "the word at {place:#x} is {word:#x} afterwards");
            cpu::clear_breakpoints();
        }
    }
    end();
}

/// Ports, with CR4.DE.
pub fn ports(setting: &mut Setting, report: &mut Report) {
    /// A diagnostic port: any value may be written.
    const PORT: u64 = 0x80;
    let buffer = setting.pool.frame();
    begin(setting);
    cpu::set_debug_extensions(true);
    cpu::set_breakpoint(0, Breakpoint::Port, PORT, 1);
    let mut at = |what: &str, snippet: Snippet, port: u64, expected: &[(u64, u64)]| {
        let mut context = snippet.kernel();
        (context.rdx, context.rcx) = (port, 1);
        (context.rdi, context.rsi) = (buffer.address(), buffer.address());
        let (seen, trap) = run(&context);
        check!(
            report,
            trap.is_stop() && seen.is(expected),
            "{what} of {port:#x}: {} times, {:x?} instead of {expected:x?}; {trap:x?}",
            seen.count,
            seen.places
        );
    };
    at("IN", snippets::in_1(), PORT, &[(1, 1)]);
    at("OUT", snippets::out_1(), PORT, &[(1, 1)]);
    at("IN", snippets::in_1(), PORT + 1, &[]);
    at("OUTS", snippets::outs(), PORT, &[(2, 1)]);
    at("INS", snippets::ins(), PORT, &[(2, 1)]);
    cpu::set_debug_extensions(false);
    end();
}
