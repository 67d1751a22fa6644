//! Exceptions and where they arrive.

use guest_kernels::check;
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, rflags};
use guest_kernels::kit::descriptors::{self, IST_COUNT, selector};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets::{self, Snippet};
use guest_kernels::kit::space;
use guest_kernels::kit::traps::{self, Trap, vector};
use umbra_paging::Gva;

use crate::log;
use crate::setting::Setting;

/// Bit 47 and not those above.
const NOT_CANONICAL: u64 = 1 << 47;

/// Vector, error code, and how far RIP is behind the context's start.
type Expected = (u8, u64, u64);

fn expect(report: &mut Report, what: &str, start: &Context, trap: &Trap, expected: Expected) {
    let found = (trap.vector, trap.error_code, trap.context.rip.wrapping_sub(start.rip));
    check!(
        report,
        found == expected,
        "{what}, CS {:#x}: {found:x?} instead of {expected:x?}",
        start.cs
    );
}

/// One of each kind, in both rings, with vector, error code and RIP.
pub fn exceptions(_: &mut Setting, report: &mut Report) {
    // Traps point behind the instruction, faults at it.
    let plain: [(&str, Snippet, u8, u64); 3] = [
        ("INT3", snippets::breakpoint(), vector::BP, 1),
        ("UD2", snippets::undefined(), vector::UD, 0),
        ("DIV by 0", snippets::divide(), vector::DE, 9),
    ];
    for user in [false, true] {
        for (what, snippet, vector, offset) in plain {
            let start = snippet.in_ring(user);
            expect(report, what, &start, &traps::run(&start), (vector, 0, offset));
        }
        let mut start = snippets::read().in_ring(user);
        start.rdi = NOT_CANONICAL;
        expect(
            report,
            "a read of a non-canonical address",
            &start,
            &traps::run(&start),
            (vector::GP, 0, 0),
        );
        let start = snippets::syscall().in_ring(user);
        expect(
            report,
            "SYSCALL while EFER.SCE is clear",
            &start,
            &traps::run(&start),
            (vector::UD, 0, 0),
        );
        let mut start = snippets::software_interrupt().in_ring(user);
        start.rdi = 0;
        let (vector, error_code, offset) =
            if user { (vector::GP, 0x41 << 3 | 2, 0) } else { (0x41, 0, 2) };
        expect(report, "INT 0x41", &start, &traps::run(&start), (vector, error_code, offset));
    }
    let start = snippets::halt().user();
    expect(report, "HLT", &start, &traps::run(&start), (vector::GP, 0, 0));
    for (what, snippet) in [
        ("MOV from CR3", snippets::read_cr3()),
        ("MOV from CR4", snippets::read_cr4()),
        ("MOV to CR0", snippets::write_cr0()),
        ("MOV to CR3", snippets::write_cr3()),
        ("MOV from DR7", snippets::read_dr7()),
        ("INVLPG", snippets::invlpg()),
        ("WBINVD", snippets::write_back()),
        ("LMSW", snippets::lmsw()),
        ("SWAPGS", snippets::swapgs()),
    ] {
        let start = snippet.user();
        expect(report, what, &start, &traps::run(&start), (vector::GP, 0, 0));
    }
    let trap = traps::run(&snippets::overflow().kernel());
    check!(report, trap.vector == vector::OF, "INTO in 32-bit code: {trap:x?}");
}

/// A non-canonical address by way of the stack's segment is #SS.
pub fn stack_fault(_: &mut Setting, report: &mut Report) {
    for user in [false, true] {
        let mut start = snippets::read_by_rbp().in_ring(user);
        start.rbp = NOT_CANONICAL;
        expect(
            report,
            "a non-canonical address by RBP",
            &start,
            &traps::run(&start),
            (vector::SS, 0, 0),
        );
    }
}

/// INT1 is a trap of its own: the handler returns behind it, and DR6 stays (SDM, "INT
/// n/INTO/INT3/INT1").
pub fn int1(_: &mut Setting, report: &mut Report) {
    const BS: u64 = 1 << 14;
    for user in [false, true] {
        for flags in [0, rflags::TF] {
            cpu::clear_dr6();
            let before = cpu::dr6();
            let start = snippets::int1().in_ring(user).with_flags(flags);
            expect(report, "INT1", &start, &traps::run(&start), (vector::DB, 0, 1));
            let dr6 = cpu::dr6();
            check!(
                report,
                dr6 & !BS == before & !BS,
                "DR6 after INT1: {dr6:#x} instead of {before:#x}"
            );
            check!(report, flags != 0 || dr6 == before, "INT1 set DR6.BS");
        }
    }
    cpu::clear_dr6();
}

/// Segment loads that are refused.
pub fn segments(_: &mut Setting, report: &mut Report) {
    for user in [false, true] {
        let mut start = snippets::load_segment().in_ring(user);
        // Beyond the GDT's limit; a system segment.
        for selector in [0x1000, selector::TSS] {
            start.rsi = selector;
            expect(
                report,
                "DS with a bad selector",
                &start,
                &traps::run(&start),
                (vector::GP, selector, 0),
            );
        }
        start.rsi = 0;
        let trap = traps::run(&start);
        check!(report, trap.is_stop(), "DS with the null selector, user {user}: {trap:x?}");
        let mut start = snippets::load_stack_segment().in_ring(user);
        start.rsi = selector::CODE;
        expect(
            report,
            "SS with code",
            &start,
            &traps::run(&start),
            (vector::GP, selector::CODE, 0),
        );
    }
}

/// A page fault whose delivery page-faults is a double fault.
pub fn double_fault(_: &mut Setting, report: &mut Report) {
    let nowhere = space::slot(100).raw();
    // Ring 0, with a stack that is not there.
    for snippet in [snippets::undefined(), snippets::breakpoint(), snippets::read()] {
        let mut start = snippet.kernel();
        (start.rsp, start.rdi) = (nowhere, nowhere);
        let trap = traps::run(&start);
        check!(
            report,
            (trap.vector, trap.error_code, trap.context.rsp) == (vector::DF, 0, nowhere),
            "an exception without a stack: {trap:x?}"
        );
    }
    // A non-canonical stack: #SS, and that is contributory, too.
    let mut start = snippets::read().kernel();
    (start.rsp, start.rdi) = (NOT_CANONICAL, nowhere);
    let trap = traps::run(&start);
    check!(
        report,
        (trap.vector, trap.error_code) == (vector::DF, 0),
        "#PF on a non-canonical stack: {trap:x?}"
    );
    let after = access::read(Gva::new(nowhere));
    check!(report, after == Err(Fault::page(0, nowhere)), "a page fault afterwards: {after:x?}");
}

fn note_stack(context: &mut Context) {
    log::note(&raw const *context as u64);
}

/// Each interrupt stack, from both rings, and none.
pub fn ist(_: &mut Setting, report: &mut Report) {
    traps::handle(vector::BP, note_stack);
    for ist in 0..=IST_COUNT {
        descriptors::use_ist(vector::BP, ist);
        for user in [false, true] {
            log::clear();
            let start = snippets::breakpoint().in_ring(user);
            let trap = traps::run(&start);
            check!(report, trap.is_stop(), "INT3 on stack {ist}, user {user}: {trap:x?}");
            let stack = match (ist, user) {
                (0, true) => descriptors::ring0_range(),
                (0, false) => start.rsp - 4096..start.rsp,
                _ => descriptors::ist_range(ist),
            };
            let found = log::values()[0];
            check!(
                report,
                stack.contains(&found),
                "stack {ist}, user {user}: the handler ran at {found:#x}, not in {stack:x?}"
            );
        }
    }
    descriptors::use_ist(vector::BP, 0);
    traps::unhandle(vector::BP);
}
