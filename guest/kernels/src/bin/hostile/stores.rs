//! Writes to tables by every instruction form: what an instruction does to a table, and to the
//! registers, must be what it does to a plain page; and the table counts as it then is.

use guest_kernels::check;
use guest_kernels::entries::{KERNEL_PAGE, PAGE, TABLE};
use guest_kernels::kit::cpu;
use guest_kernels::kit::frames::Frame;
use guest_kernels::kit::oracle::Judge;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::stores::{self, Store};
use guest_kernels::kit::traps::{self, Trap};
use guest_kernels::random::Random;
use umbra_paging::{Access, AccessKind, Gva, Level, bits};

use crate::setting::Setting;

/// The pages that instructions write to: two in a row.
const TARGET: Gva = space::slot(2);
/// What the two tables translate: 4 MiB.
const TRANSLATED: Gva = space::slot(3);

/// Room for what one instruction writes, on both sides.
const REACH: u64 = 1024;

/// Frames that entries map.
const DATA: u64 = 16;

struct Arena {
    plain: Frame,
    tables: Frame,
    data: Frame,
    target: Frame,
}

impl Arena {
    fn new(setting: &mut Setting, space: &Space) -> Arena {
        let pool = &mut setting.pool;
        let arena = Arena {
            plain: pool.frames(2, 4096),
            tables: pool.frames(2, 4096),
            data: pool.frames(DATA, 4096),
            target: space.table(pool, TARGET, Level::L1),
        };
        for index in 0..DATA {
            arena.data.after(index).fill(index << 32);
        }
        let directory = space.table(pool, TRANSLATED, Level::L2);
        for index in 0..2 {
            let table = arena.tables.after(index).address();
            directory.write(TRANSLATED.index(Level::L2) + index as usize, table | TABLE);
        }
        arena
    }

    /// An entry that maps a page of data, or none, or is anything.
    fn entry(&self, random: &mut Random) -> u64 {
        let page = self.data.after(random.below(DATA)).address();
        match random.below(8) {
            0 => 0,
            1 => random.number(),
            2 => page | random.number() & 0xfff,
            _ => page | PAGE & !(random.number() & (bits::W | bits::U | bits::A | bits::D)),
        }
    }

    fn point_at(&self, first: Frame, flags: u64) {
        for index in 0..2 {
            let page = first.after(index).address();
            self.target.update(TARGET.index(Level::L1) + index as usize, page | flags);
            cpu::invlpg(Gva::new(TARGET.raw() + 4096 * index));
        }
    }

    fn is_data(&self, frame: Frame) -> bool {
        (self.data.address()..self.data.after(DATA).address()).contains(&frame.address())
    }

    fn read(&self, index: usize) -> u64 {
        self.tables.after(index as u64 / 512).read(index % 512)
    }

    fn translated(index: usize) -> Gva {
        Gva::new(TRANSLATED.raw() + 4096 * index as u64)
    }
}

/// Each form at many places of one or two tables.
pub fn stores(setting: &mut Setting, space: &Space, report: &mut Report) {
    let arena = Arena::new(setting, space);
    let cpu = setting.cpu;
    for store in stores::all().filter(|store| store.exists(&cpu)) {
        for _ in 0..setting.times(6) {
            let wp = setting.random.one_in(2);
            let judge = setting.judge(space, wp, false, false, true);
            let offset = match setting.random.below(3) {
                0 => REACH + 8 * setting.random.below((4096 - 2 * REACH) / 8),
                1 => 4096 - setting.random.below(16),
                _ => REACH + setting.random.below(2 * 4096 - 2 * REACH),
            };
            one(setting, &arena, &judge, report, &store, offset / store.align * store.align, PAGE);
        }
    }
}

/// Forms that cross into the second page, and pages that refuse one or the other half.
pub fn crossing(setting: &mut Setting, space: &Space, report: &mut Report) {
    let arena = Arena::new(setting, space);
    let cpu = setting.cpu;
    for store in stores::all().filter(|store| store.exists(&cpu)) {
        let kinds = [PAGE & !bits::W, KERNEL_PAGE, PAGE & !bits::D, PAGE & !bits::A];
        for number in 0..setting.times(4) {
            // All of them, or some.
            let kind =
                if setting.times(4) < 4 { setting.random.index(4) } else { number as usize % 4 };
            let flags = kinds[kind];
            let wp = setting.random.one_in(2);
            let judge = setting.judge(space, wp, false, false, true);
            let offset = 4096 - setting.random.below(10);
            one(setting, &arena, &judge, report, &store, offset / store.align * store.align, flags);
        }
    }
}

/// Runs `store` at `offset` of two plain pages, then of the tables, and compares.
fn one(
    setting: &mut Setting,
    arena: &Arena,
    judge: &Judge,
    report: &mut Report,
    store: &Store,
    offset: u64,
    flags: u64,
) {
    let user = !store.kernel_only && setting.random.one_in(2);
    let random = &mut setting.random;
    // Only what the instruction can reach changes.
    let near =
        (offset.saturating_sub(REACH) / 8) as usize..((offset + REACH) / 8).min(1024) as usize;
    for index in near.clone() {
        let entry = arena.entry(random);
        arena.tables.after(index as u64 / 512).update(index % 512, entry);
    }
    // Some translations are in use.
    for index in near.clone().step_by(7) {
        cpu::invlpg(Arena::translated(index));
        touch(setting, arena, judge, report, index);
    }
    for index in near.clone() {
        arena.plain.after(index as u64 / 512).update(index % 512, arena.read(index));
    }
    let random = &mut setting.random;
    let mut context = store.context(user);
    context.rdi = TARGET.raw() + offset;
    for register in
        [&mut context.rsi, &mut context.rax, &mut context.rbx, &mut context.rcx, &mut context.rdx]
    {
        *register = arena.entry(random);
    }
    let first = (offset as usize / 8).saturating_sub(4);

    arena.point_at(arena.plain, flags);
    let on_plain = traps::run(&context);
    let plain_target =
        [0, 1].map(|index| arena.target.read(TARGET.index(Level::L1) + index) & 0xfff);
    arena.point_at(arena.tables, flags);
    let on_tables = traps::run(&context);
    let tables_target =
        [0, 1].map(|index| arena.target.read(TARGET.index(Level::L1) + index) & 0xfff);
    let name = store.name;
    let same = |a: &Trap, b: &Trap| {
        let mut b = *b;
        let undefined = cpu::rflags::STATUS & !store.defined_flags();
        b.context.rflags = b.context.rflags & !undefined | a.context.rflags & undefined;
        *a == b
    };
    check!(
        report,
        same(&on_plain, &on_tables),
        "{name} at {offset:#x}, user {user}: {on_tables:?} on a table, {on_plain:?} on a page\n{:x?}\n{:x?}",
        on_tables.context,
        on_plain.context
    );
    check!(
        report,
        plain_target == tables_target,
        "{name} at {offset:#x}: its pages' entries are {tables_target:x?} for tables, {plain_target:x?} for pages"
    );
    for index in near.clone() {
        let (plain, table) =
            (arena.plain.after(index as u64 / 512).read(index % 512), arena.read(index));
        check!(
            report,
            plain == table,
            "{name} at {offset:#x}, user {user}: word {index:#x} is {table:#x} in the table, {plain:#x} in the page"
        );
    }
    // The table is what it says.
    for index in first..(first + 8).min(1024) {
        cpu::invlpg(Arena::translated(index));
        touch(setting, arena, judge, report, index);
    }
}

fn touch(setting: &mut Setting, arena: &Arena, judge: &Judge, report: &mut Report, index: usize) {
    let user = setting.random.one_in(2);
    let write = Access { kind: AccessKind::Write, user, smap_override: false };
    let gva = Arena::translated(index);
    // An entry made of what an instruction left there may name any frame: only the data's are
    // written to.
    let elsewhere = match judge.walk(&setting.pool, gva, write) {
        Ok(frame) => !frame.is_some_and(|frame| arena.is_data(frame)),
        Err(_) => false,
    };
    let access = if elsewhere || setting.random.one_in(2) {
        write.with_kind(AccessKind::Read)
    } else {
        write
    };
    let value = setting.random.number();
    judge.judge(&setting.pool, report, gva, access, value);
}
