//! GDT, TSS and IDT in frames that are page tables, or mapped by a table that event delivery itself
//! writes.

use guest_kernels::check;
use guest_kernels::entries::{KERNEL_PAGE, PAGE, TABLE};
use guest_kernels::kit::cpu;
use guest_kernels::kit::descriptors::{self, ACCESSED, GDT_WORDS, selector};
use guest_kernels::kit::frames::Frame;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::traps::{self, vector};
use umbra_paging::{Access, AccessKind, Gva, Level};

use crate::setting::Setting;

const USER_READ: Access = Access { kind: AccessKind::Read, user: true, smap_override: false };

/// Copies words to the start of a frame, or further into it.
fn copy(frame: Frame, first: usize, words: &[u64]) {
    for (index, &word) in words.iter().enumerate() {
        frame.write(first + index, word);
    }
}

/// The GDT and the TSS in a page table: LTR sets the busy bit there, segment loads set accessed
/// bits, and interrupts read their stack there, while its other entries come and go.
pub fn gdt_in_a_table(setting: &mut Setting, space: &Space, report: &mut Report) {
    /// Where the TSS begins, in words; behind it are entries.
    const TSS: usize = 16;
    const ENTRIES: usize = 64;
    let judge = setting.judge(space, true, false, false, true);
    let (table, data) = (setting.pool.frame(), setting.pool.frame());
    let translated = space::slot(5);
    space.map(&mut setting.pool, translated, Level::L2, table.address() | TABLE);
    let tss = descriptors::tss_words();
    for round in 0..setting.times(60) {
        copy(table, 0, &descriptors::gdt_words());
        copy(
            table,
            selector::TSS as usize / 8,
            &descriptors::tss_descriptor(table.address() + 8 * TSS as u64),
        );
        copy(table, TSS, &tss);
        for index in ENTRIES..ENTRIES + 16 {
            table.write(index, if setting.random.one_in(3) { 0 } else { data.address() | PAGE });
        }
        // All of it is in use as a table: the descriptors, too.
        for index in (0..GDT_WORDS).chain(ENTRIES..ENTRIES + 16) {
            let gva = Gva::new(translated.raw() + 4096 * index as u64);
            judge.flush_and_judge(&setting.pool, report, gva, USER_READ, 0);
        }
        descriptors::load_gdt(Some(table.address()));
        let busy = table.read(selector::TSS as usize / 8) >> 40 & 0xff;
        check!(
            report,
            busy == 0x8b,
            "round {round}: LTR left type {busy:#x} in the TSS's descriptor"
        );
        // The walk may have set these bits as an entry's: only the one that loading sets is looked
        // at.
        for name in [selector::USER_CODE, selector::USER_DATA] {
            let index = name as usize / 8;
            table.write(index, table.read(index) & !ACCESSED);
        }
        let user = setting.random.one_in(2);
        let snippet =
            if setting.random.one_in(2) { snippets::undefined() } else { snippets::breakpoint() };
        let trap = traps::run(&snippet.in_ring(user));
        check!(
            report,
            matches!(trap.vector, vector::UD | vector::BP),
            "round {round}: an exception with GDT and TSS in a table, user {user}: {trap:x?}"
        );
        for name in [selector::USER_CODE, selector::USER_DATA] {
            let word = table.read(name as usize / 8);
            check!(
                report,
                (word & ACCESSED != 0) == user,
                "round {round}: the descriptor of {name:#x} is {word:#x} after user {user}"
            );
        }
        for index in ENTRIES..ENTRIES + 16 {
            let gva = Gva::new(translated.raw() + 4096 * index as u64);
            judge.flush_and_judge(&setting.pool, report, gva, USER_READ, 0);
        }
        descriptors::load_gdt(None);
    }
}

/// IDT, GDT and TSS are mapped by the page table that the interrupt's frame is pushed into; the
/// frame replaces the entries of IDT and TSS, which are read no more before it is complete.
pub fn mapped_by_the_stack(setting: &mut Setting, space: &Space, report: &mut Report) {
    const IST: u8 = 5;
    const STACK_FRAMES: u64 = 6;
    /// The GDT's entry: out of reach, because IRET reads it.
    const GDT: usize = 100;
    const VECTORS: [u8; 4] = [vector::UD, vector::BP, vector::PF, vector::STOP];
    let judge = setting.judge(space, true, false, false, true);
    // The table is the last frame of the stack, so that handlers go on in the ones before.
    let stack = setting.pool.frames(STACK_FRAMES, 4096);
    let table = stack.after(STACK_FRAMES - 1);
    let [idt, gdt, tss] = core::array::from_fn(|_| setting.pool.frame());
    let gva = space::slot(9);
    space.map(&mut setting.pool, gva, Level::L2, table.address() | TABLE);
    let shown = |index: usize| Gva::new(gva.raw() + 4096 * index as u64);
    for round in 0..setting.times(60) {
        table.fill(0);
        // The five words of a frame end below the top; one lies above, one below.
        let top = 8 + 2 * setting.random.index(4);
        let [first, second] =
            [top - 5 + setting.random.index(3), top - 1 - setting.random.index(2)];
        descriptors::set_ist(IST, Some(table.address() + 8 * top as u64));
        VECTORS.into_iter().for_each(|vector| descriptors::use_ist(vector, IST));
        copy(idt, 0, &descriptors::idt_words());
        copy(gdt, 0, &descriptors::gdt_words());
        copy(gdt, selector::TSS as usize / 8, &descriptors::tss_descriptor(shown(second).raw()));
        copy(tss, 0, &descriptors::tss_words());
        table.write(first, idt.address() | KERNEL_PAGE);
        table.write(second, tss.address() | KERNEL_PAGE);
        table.write(GDT, gdt.address() | KERNEL_PAGE);
        cpu::flush_all();
        descriptors::load_gdt(Some(shown(GDT).raw()));
        descriptors::load_idt(Some(shown(first).raw()));
        let user = setting.random.one_in(2);
        let event = setting.random.index(3);
        let mut context =
            [snippets::undefined(), snippets::breakpoint(), snippets::read()][event].in_ring(user);
        context.rdi = space::slot(101).raw();
        let trap = traps::run(&context);
        descriptors::load_idt(None);
        descriptors::load_gdt(None);
        VECTORS.into_iter().for_each(|vector| descriptors::use_ist(vector, 0));
        descriptors::set_ist(IST, None);
        check!(
            report,
            trap.vector == VECTORS[event],
            "round {round}: event {event} into the table that maps its descriptors, user {user}: {trap:x?}"
        );
        let frame: [u64; 5] = core::array::from_fn(|n| table.read(top - 5 + n));
        let data = if user { selector::USER_DATA } else { selector::DATA };
        let expected =
            [trap.context.rip, trap.context.cs, trap.context.rflags, trap.context.rsp, data];
        check!(
            report,
            frame == expected,
            "round {round}: the frame is {frame:x?} instead of {expected:x?}"
        );
        // They are entries now.
        for index in top - 5..top {
            judge.flush_and_judge(&setting.pool, report, shown(index), USER_READ, 0);
        }
    }
}
