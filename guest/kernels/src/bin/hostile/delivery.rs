//! Event delivery that pushes into tables, or goes through a table.

use guest_kernels::check;
use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::apic;
use guest_kernels::kit::cpu;
use guest_kernels::kit::descriptors::{self, selector};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::traps::{self, vector};
use umbra_paging::{Access, AccessKind, Gva, Level};

use crate::setting::Setting;

const IST: u8 = 5;
const STACK_FRAMES: u64 = 6;
/// A vector for interrupts of our own.
const VECTOR: u8 = 0x61;

/// Interrupt stacks in page tables that are in use, by all ways: exceptions of both rings, INT,
/// NMI, IPI.
pub fn delivery(setting: &mut Setting, space: &Space, report: &mut Report) {
    let judge = setting.judge(space, true, false, false, true);
    let tables = setting.pool.frames(STACK_FRAMES, 4096);
    let data = setting.pool.frame();
    let translated = space::slot(4);
    let directory = space.table(&mut setting.pool, translated, Level::L2);
    for index in 0..STACK_FRAMES {
        directory.write(index as usize, tables.after(index).address() | TABLE);
    }
    let page = |word: u64| Gva::new(translated.raw() + 4096 * word);
    let words = STACK_FRAMES * 512;
    let user_read = Access { kind: AccessKind::Read, user: true, smap_override: false };
    for round in 0..setting.times(100) {
        for word in (words - 80..words).step_by(3) {
            tables.after(word / 512).update(word as usize % 512, data.address() | PAGE);
            judge.flush_and_judge(&setting.pool, report, page(word), user_read, 0);
        }
        // The top: within the last frame, so that delivery writes entries that were in use.
        let back = setting.random.below(32);
        let top_word = words - 1 - back;
        let top = tables.address() + 8 * top_word;
        let user = setting.random.one_in(2);
        let by_ist = !user || setting.random.one_in(2);
        if by_ist {
            descriptors::set_ist(IST, Some(top));
            for vector in [vector::UD, vector::PF, vector::BP, vector::STOP, vector::NMI, VECTOR] {
                descriptors::use_ist(vector, IST);
            }
        } else {
            descriptors::set_ring0_stack(Some(top));
        }
        let event = setting.random.below(5);
        let mut context = match event {
            0 => snippets::undefined(),
            1 => snippets::breakpoint(),
            2 => snippets::read(),
            _ => snippets::nothing(),
        }
        .in_ring(user);
        context.rdi = space::slot(100).raw();
        if event == 3 {
            // It arrives at the first instruction of the context.
            context = context.with_flags(cpu::rflags::IF);
            apic::send_self(VECTOR);
        }
        let trap = traps::run(&context);
        for vector in [vector::UD, vector::PF, vector::BP, vector::STOP, vector::NMI, VECTOR] {
            descriptors::use_ist(vector, 0);
        }
        descriptors::use_ist(vector::NMI, 1);
        descriptors::set_ist(IST, None);
        descriptors::set_ring0_stack(None);
        if event == 3 {
            apic::end_of_interrupt();
        }

        let expected = [vector::UD, vector::BP, vector::PF, VECTOR, vector::STOP][event as usize];
        check!(
            report,
            trap.vector == expected,
            "event {event} with its stack in a table, user {user}: {trap:x?}"
        );
        let mut frame = [
            trap.context.rip,
            trap.context.cs,
            trap.context.rflags,
            trap.context.rsp,
            if user { selector::USER_DATA } else { selector::DATA },
        ];
        let mut count = 5;
        let top_word = top_word & !1;
        let word = |n: u64| tables.after(n / 512).read(n as usize % 512);
        for n in 0..count {
            let (found, expected) = (word(top_word - count + n), frame[n as usize]);
            check!(
                report,
                found == expected,
                "round {round}: event {event}: word {n} of the frame is {found:#x} instead of {expected:#x}"
            );
        }
        if expected == vector::PF {
            count += 1;
            frame[0] = trap.error_code;
            check!(report, word(top_word - count) == frame[0], "the error code in the table");
        }
        // What was pushed there are entries now.
        for n in top_word - count..top_word {
            judge.flush_and_judge(&setting.pool, report, page(n), user_read, 0);
        }
    }
}

/// The IDT in a frame that is a page table, too, whose entries are written while it is used.
pub fn idt_in_a_table(setting: &mut Setting, space: &Space, report: &mut Report) {
    let judge = setting.judge(space, true, false, false, true);
    let table = setting.pool.frame();
    for (index, word) in descriptors::idt_words().into_iter().enumerate() {
        table.write(index, word);
    }
    let translated = space::slot(5);
    space.map(&mut setting.pool, translated, Level::L2, table.address() | TABLE);
    let data = setting.pool.frame();
    descriptors::load_idt(Some(table.address()));
    let user_read = Access { kind: AccessKind::Read, user: true, smap_override: false };
    for _ in 0..setting.times(100) {
        // Gates of a vector that nobody uses: a page now and then.
        let index = 2 * 0xc0 + setting.random.index(32);
        let entry = if setting.random.one_in(3) { 0 } else { data.address() | PAGE };
        table.write(index, entry);
        let gva = Gva::new(translated.raw() + 4096 * index as u64);
        judge.flush_and_judge(&setting.pool, report, gva, user_read, 0);
        let gate = Gva::new(translated.raw() + 4096 * setting.random.below(64));
        judge.flush_and_judge(&setting.pool, report, gate, user_read, 0);
        let user = setting.random.one_in(2);
        let trap = traps::run(&snippets::undefined().in_ring(user));
        check!(report, trap.vector == vector::UD, "#UD through an IDT in a table: {trap:x?}");
    }
    descriptors::load_idt(None);
}
