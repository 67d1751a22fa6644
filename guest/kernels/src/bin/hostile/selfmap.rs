//! Tables that map themselves, the code that writes them, or the stack that is pushed to.

use guest_kernels::check;
use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu;
use guest_kernels::kit::descriptors::selector;
use guest_kernels::kit::frames::Frame;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::traps::{self, vector};
use umbra_paging::{Access, AccessKind, Gva, Level, bits};

use crate::setting::Setting;

/// The PML4 slot that names the PML4 table itself.
const RECURSIVE: u64 = 200;

/// A recursive slot: tables of all levels are pages, which are read, and rewritten through
/// themselves.
pub fn recursive(setting: &mut Setting, space: &Space, report: &mut Report) {
    let judge = setting.judge(space, true, false, false, true);
    let target = space::slot(3);
    let pages = setting.pool.frames(512, 4096);
    for index in 0..512 {
        space.map(
            &mut setting.pool,
            Gva::new(target.raw() + 4096 * index),
            Level::L1,
            pages.after(index).address() | PAGE,
        );
    }
    space.root().write(RECURSIVE as usize, space.root().address() | TABLE | bits::D);
    // The entry for `gva` at a level shows at the address that `gva` becomes when its walk begins
    // so much later.
    let shown = |gva: Gva, level: Level| {
        let mut address = gva.raw();
        for _ in 0..level as u64 {
            address = RECURSIVE << 39 | address >> 9 & ((1 << 39) - 1);
        }
        // Canonical: the slot is of the lower half.
        Gva::new(address & !7)
    };
    let user = Access { kind: AccessKind::Read, user: true, smap_override: false };
    let write = user.with_kind(AccessKind::Write);
    for round in 0..setting.times(400) {
        let gva = Gva::new(target.raw() + 4096 * setting.random.below(512));
        let level = Level::ALL[setting.random.index(4)];
        judge.flush_and_judge(&setting.pool, report, shown(gva, level), user, 0);
        // Another page, written through the recursive slot.
        let page = pages.after(setting.random.below(512)).address();
        let clear =
            [0, bits::A, bits::D, bits::A | bits::D, bits::W, bits::U][setting.random.index(6)];
        judge.flush_and_judge(
            &setting.pool,
            report,
            shown(gva, Level::L1),
            write,
            page | PAGE & !clear,
        );
        let access = if setting.random.one_in(2) { user } else { write };
        judge.flush_and_judge(&setting.pool, report, gva, access, round);
        if round % 50 == 0 {
            cpu::reload_cr3();
        }
    }
}

/// A page table whose entry `at` maps the table itself at `gva`.
fn own_table(setting: &mut Setting, space: &Space, gva: Gva) -> Frame {
    let table = space.table(&mut setting.pool, gva, Level::L1);
    table.write(gva.index(Level::L1), table.address() | PAGE);
    cpu::invlpg(gva);
    table
}

/// Where in the table the code stands, in bytes.
const CODE: usize = 0xe00;

/// Code in a page table that writes the entries of the page that it runs from.
pub fn own_code(setting: &mut Setting, space: &Space, report: &mut Report) {
    setting.judge(space, true, false, false, true);
    // mov %rsi, (%rdi); mov (%rdx), %rax; int $0x80
    const PROGRAM: [u8; 8] = [0x48, 0x89, 0x37, 0x48, 0x8b, 0x02, 0xcd, 0x80];
    for round in 0..setting.times(200) {
        let slot = space::slot(8 + round % 64);
        let gva = Gva::new(slot.raw() + 4096 * setting.random.below(256));
        let table = own_table(setting, space, gva);
        table.write_bytes(CODE, &PROGRAM);
        let user = setting.random.one_in(2);
        let mut context = if user { Context::user(0) } else { Context::kernel(0) };
        let (own, data) = (gva.index(Level::L1), setting.pool.frame());
        data.write(0, round);
        let other = 256 + setting.random.index(64);
        context.rip = gva.raw() + CODE as u64;
        context.rdx = Gva::new(slot.raw() + 4096 * other as u64).raw();
        table.write(other, 0);
        cpu::invlpg(Gva::new(context.rdx));
        // Another page appears: no flush is due, so the read must see it.
        (context.rdi, context.rsi) = (gva.raw() + 8 * other as u64, data.address() | PAGE);
        let trap = traps::run(&context);
        check!(
            report,
            trap.is_stop() && trap.context.rax == round,
            "the page made by its own table's code: {trap:x?}, RAX {:#x}",
            trap.context.rax
        );
        // The same entry once more, or with less.
        let clear = [0, bits::A, bits::D, bits::W, bits::P, bits::U][setting.random.index(6)];
        context.rdi = gva.raw() + 8 * own as u64;
        context.rsi = table.address() | PAGE & !clear;
        cpu::invlpg(Gva::new(context.rdx));
        let trap = traps::run(&context);
        let next = context.rip + 3;
        // The old translation may serve on until a flush, or not: then the next fetch faults.
        let gone = clear == bits::P || (clear == bits::U && user);
        let error_code = u64::from(clear != bits::P) | u64::from(user) << 2 | 1 << 4;
        let refetched = gone
            && trap.vector == vector::PF
            && trap.error_code == error_code
            && (next..next + 3).contains(&trap.cr2);
        check!(
            report,
            (trap.is_stop() && trap.context.rax == round) || refetched,
            "code that clears {clear:#x} in its own entry, user {user}: {trap:x?}"
        );
        let found = table.read(own) & !(bits::A | bits::D);
        let expected = context.rsi & !(bits::A | bits::D);
        check!(
            report,
            found == expected,
            "the code's own entry is {found:#x} instead of {expected:#x}"
        );
    }
}

/// A stack in a page table: pushes rewrite the table that maps the stack.
pub fn own_stack(setting: &mut Setting, space: &Space, report: &mut Report) {
    setting.judge(space, true, false, false, true);
    for round in 0..setting.times(200) {
        let slot = space::slot(8 + round % 64);
        // The kit's handler, too, runs on that stack, below the entry.
        let gva = Gva::new(slot.raw() + 4096 * (320 + setting.random.below(190)));
        let own = gva.index(Level::L1);
        let table = own_table(setting, space, gva);
        let user = setting.random.one_in(2);
        // The push writes the entry that maps the stack: with the same page, and the bits that the
        // CPU may set again.
        let clear = [0, bits::A, bits::D, bits::A | bits::D][setting.random.index(4)];
        let entry = table.address() | PAGE & !clear;
        let mut context = snippets::push_there().in_ring(user);
        (context.rdi, context.rsi) = (gva.raw() + 8 * (own as u64 + 1), entry);
        let trap = traps::run(&context);
        check!(
            report,
            trap.is_stop() && trap.context.rsp == gva.raw() + 8 * own as u64,
            "a push to the stack's own entry, user {user}: {trap:x?}, RSP {:#x}",
            trap.context.rsp
        );
        let found = table.read(own);
        let may = if user { 0 } else { bits::A | bits::D };
        check!(
            report,
            found & !may == entry & !may,
            "the pushed entry is {found:#x} instead of {entry:#x}"
        );
        if !user {
            // INT 0x80 pushed its frame below it, into the table, aligned down to 16 bytes (SDM,
            // "64-Bit Mode Stack Frame").
            let top = own & !1;
            let frame: [u64; 5] = core::array::from_fn(|n| table.read(top - 5 + n));
            let expected = [
                trap.context.rip,
                selector::CODE,
                trap.context.rflags,
                trap.context.rsp,
                selector::DATA,
            ];
            check!(
                report,
                frame == expected,
                "the interrupt frame in the table is {frame:x?} instead of {expected:x?}"
            );
        }
        table.fill(0);
        cpu::flush_all();
    }
}
