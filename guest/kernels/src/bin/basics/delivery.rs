//! Page faults during the delivery of another event.

use guest_kernels::check;
use guest_kernels::entries::{KERNEL_PAGE, PAGE};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::traps::{self, vector};
use guest_kernels::kit::{cpu, descriptors, snippets, space};
use umbra_paging::{Gva, Level, bits};

use crate::setting::Setting;

const WRITE: u64 = 1 << 1;

/// The stack of ring 0 is not there, or read-only: #PF (on a stack of its own), then the event
/// again.
pub fn stack(setting: &mut Setting, report: &mut Report) {
    let gva = space::slot(20);
    let top = gva.raw() + 4096;
    let frames = setting.pool.frames(2, 4096);
    descriptors::use_ist(vector::PF, 3);
    descriptors::set_ring0_stack(Some(top));
    for (entry, error_code) in [
        (0, WRITE),
        (frames.address() | PAGE & !bits::P, WRITE),
        (frames.address() | KERNEL_PAGE & !bits::W, WRITE | 1),
    ] {
        for snippet in [snippets::undefined(), snippets::breakpoint(), snippets::nothing()] {
            setting.space.map(&mut setting.pool, gva, Level::L1, entry);
            cpu::invlpg(gva);
            let start = snippet.user();
            let trap = traps::run(&start);
            let expected = (vector::PF, error_code, top - 8, start.rip);
            let found = (trap.vector, trap.error_code, trap.cr2, trap.context.rip);
            check!(
                report,
                found == expected,
                "the stack's entry is {entry:#x}: {found:x?} instead of {expected:x?}"
            );
            // Once more, with a stack (whose A and D are clear) made without a flush where there
            // was none.
            setting.space.map(
                &mut setting.pool,
                gva,
                Level::L1,
                frames.address() | KERNEL_PAGE & !(bits::A | bits::D),
            );
            if entry & bits::P != 0 {
                cpu::invlpg(gva);
            }
            let trap = traps::run(&start);
            check!(
                report,
                matches!(trap.vector, vector::UD | vector::BP | vector::STOP),
                "with a stack: {trap:x?}"
            );
            let word = frames.read(511);
            check!(
                report,
                word == descriptors::selector::USER_DATA,
                "SS on the stack is {word:#x}"
            );
        }
    }
    // Without a stack of its own, the page fault cannot be delivered, either.
    descriptors::use_ist(vector::PF, 0);
    setting.space.map(&mut setting.pool, gva, Level::L1, 0);
    cpu::invlpg(gva);
    let trap = traps::run(&snippets::undefined().user());
    check!(
        report,
        (trap.vector, trap.error_code) == (vector::DF, 0),
        "no stack for #PF: {trap:x?}"
    );
    descriptors::set_ring0_stack(None);
}

/// The gates of the vectors from 128 on lie in a page that is not there.
pub fn idt(setting: &mut Setting, report: &mut Report) {
    let gva = space::slot(21);
    let frames = setting.pool.frames(2, 4096);
    for (index, word) in descriptors::idt_words().into_iter().enumerate() {
        let place = index + 256;
        frames.after(place as u64 / 512).write(place % 512, word);
    }
    let second = Gva::new(gva.raw() + 4096);
    setting.space.map(&mut setting.pool, gva, Level::L1, frames.address() | KERNEL_PAGE & !bits::A);
    descriptors::load_idt(Some(gva.raw() + 2048));
    for user in [false, true] {
        let reserved = if setting.cpu.features.maxphyaddr < 52 { 1 << 51 } else { 0 };
        for (entry, error_code) in [
            (0, 0),
            (frames.after(1).address() | PAGE & !bits::P, 0),
            (reserved | PAGE & !bits::P, 0),
        ] {
            setting.space.map(&mut setting.pool, second, Level::L1, entry);
            cpu::invlpg(second);
            let start = snippets::nothing().in_ring(user);
            let trap = traps::run(&start);
            // The CPU's own access, so not of user mode.
            let expected = (vector::PF, error_code, second.raw(), start.rip);
            let found = (trap.vector, trap.error_code, trap.cr2, trap.context.rip);
            check!(
                report,
                found == expected,
                "gates behind {entry:#x}, user {user}: {found:x?} instead of {expected:x?}"
            );
        }
        setting.space.map(&mut setting.pool, second, Level::L1, 0);
        cpu::invlpg(second);
        let trap = traps::run(&snippets::nothing().in_ring(user));
        check!(report, trap.vector == vector::PF, "no gates: {trap:x?}");
        // Present without a flush.
        setting.space.map(
            &mut setting.pool,
            second,
            Level::L1,
            frames.after(1).address() | KERNEL_PAGE & !bits::A,
        );
        let trap = traps::run(&snippets::nothing().in_ring(user));
        check!(report, trap.is_stop(), "gates that appeared, user {user}: {trap:x?}");
    }
    descriptors::load_idt(None);
}

/// Under SMAP an event is pushed on a user page if RFLAGS.AC is set, and only then, whether the
/// page was accessed before or not (SDM, "Determination of Access Mode": pushes are explicit).
pub fn user_stack(setting: &mut Setting, report: &mut Report) {
    if !setting.cpu.smap {
        return;
    }
    let gva = space::slot(22);
    let frame = setting.pool.frame();
    descriptors::use_ist(vector::PF, 3);
    for smep in [false, true] {
        for accessed in [bits::A | bits::D, bits::A, 0] {
            for ac in [true, false] {
                let entry = frame.address() | PAGE & !(bits::A | bits::D) | accessed;
                setting.space.map(&mut setting.pool, gva, Level::L1, entry);
                cpu::flush_all();
                cpu::set_paging_bits(true, smep, true, false);
                let mut start = snippets::breakpoint().kernel();
                start.rsp = gva.raw() + 2048;
                let start = if ac { start.with_flags(cpu::rflags::AC) } else { start };
                let trap = traps::run(&start);
                cpu::set_paging_bits(true, false, false, false);
                let found = (trap.vector, trap.error_code, trap.cr2);
                let expected =
                    if ac { (vector::BP, 0, 0) } else { (vector::PF, WRITE | 1, gva.raw() + 2040) };
                check!(
                    report,
                    found == expected,
                    "a push to {entry:#x}, AC {ac}, SMEP {smep}: {found:x?} instead of {expected:x?}"
                );
            }
        }
    }
    descriptors::use_ist(vector::PF, 0);
}
