//! The memory of programs, and the tables that map it.

use guest_kernels::entries::TABLE;
use guest_kernels::kit::apic::{self, register};
use guest_kernels::kit::boot::image;
use guest_kernels::kit::frames::{Frame, Pool};
use guest_kernels::kit::observe::Observer;
use guest_kernels::kit::space::Space;
use umbra_forms::program::{
    ARENA, HIGH_ARENA, LOW_ARENA, PAGES, Page, Program, Target, World, page,
};
use umbra_paging::{Gva, Level, bits};

/// What the page table in use maps.
const MAPPED_BY_TABLE: u64 = 0x9800_0000;
/// The word of its one entry in use. As two entries of 32 bits, the first is in use.
const ENTRY: usize = 256;
/// An address without memory.
const HOLE: u64 = 0xd000_0000;
/// A bit that is reserved in entries of 8 bytes.
const RESERVED: u64 = 1 << 51;
/// What TPR is before each program.
const PRIORITY: u32 = 0x20;
/// Where the kit's memory ends.
const IDENTITY: u64 = 64 << 20;
/// Identity, for ring 0.
const KIT: u64 = bits::P | bits::W | bits::A | bits::D;

/// Word `index` of memory before each program.
fn pattern(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Word `index` of the page table in use before each program.
fn table_word(behind: Frame, index: usize) -> u64 {
    if index == ENTRY { behind.address() | KIT } else { pattern(index) }
}

/// Tables of one kind of paging.
struct Map {
    root: Frame,
    /// What maps the arena.
    arena: Frame,
    /// What maps the arena once more, and at which entry.
    again: (Frame, usize),
}

/// Frames and tables.
pub struct Arena {
    frames: Frame,
    table: Frame,
    /// What the entry in use leads to.
    behind: Frame,
    long: Map,
    pae: Map,
    bits32: Map,
    no_execute: bool,
}

impl Arena {
    pub fn new(pool: &mut Pool, no_execute: bool) -> Arena {
        let frames = pool.frames(PAGES as u64, 4096);
        let (table, behind) = (pool.frame(), pool.frame());
        for index in 0..PAGES as u64 {
            (0..512).for_each(|word| frames.after(index).write(word, pattern(word)));
        }
        (0..512).for_each(|word| table.write(word, table_word(behind, word)));
        Arena {
            frames,
            table,
            behind,
            long: long(pool, table),
            pae: pae(pool, table),
            bits32: bits32(pool, table),
            no_execute,
        }
    }

    fn map(&self, world: World) -> &Map {
        match world {
            World::Long => &self.long,
            World::Pae => &self.pae,
            World::Bits32 => &self.bits32,
        }
    }

    /// CR3 for a program.
    pub fn root(&self, world: World) -> u64 {
        self.map(world).root.address()
    }

    /// An address that is translated by the table in use.
    pub fn touch(&self, world: World) -> u64 {
        let entries = if world == World::Bits32 { 2 } else { 1 };
        MAPPED_BY_TABLE + (entries * ENTRY * 4096) as u64
    }

    fn entry(&self, index: usize, page: Page, world: World) -> u64 {
        let address = match page.target {
            Target::Ram => self.frames.after(index as u64).address(),
            Target::Table => self.table.address(),
            Target::Hole => HOLE + 4096 * index as u64,
            Target::Apic => apic::BASE,
        };
        let wide = world != World::Bits32;
        let no_execute = if wide && self.no_execute { bits::NX } else { 0 };
        [
            (page::PRESENT, bits::P),
            (page::WRITABLE, bits::W),
            (page::USER, bits::U),
            (page::ACCESSED, bits::A),
            (page::DIRTY, bits::D),
            (page::NO_EXECUTE, no_execute),
            (page::RESERVED, if wide { RESERVED } else { 0 }),
        ]
        .into_iter()
        .filter(|(bit, _)| page.bits & bit != 0)
        .fold(address, |entry, (_, bit)| entry | bit)
    }

    /// Maps the arena and puts the code there.
    pub fn set(&self, program: &Program) {
        let (setting, world) = (&program.setting, program.setting.world);
        let map = self.map(world);
        let entries: [u64; PAGES] =
            core::array::from_fn(|index| self.entry(index, setting.pages[index], world));
        // Changes of the table that maps the kit itself are the dearest to a hypervisor.
        let again = if setting.is_elsewhere() { entries } else { [0; PAGES] };
        for ((table, first), entries) in [((map.arena, 0), entries), (map.again, again)] {
            if world == World::Bits32 {
                for (index, pair) in entries.chunks(2).enumerate() {
                    table.update(first / 2 + index, pair[0] | pair[1] << 32);
                }
            } else {
                entries
                    .into_iter()
                    .enumerate()
                    .for_each(|(at, entry)| table.update(first + at, entry));
            }
        }
        for (index, &byte) in program.code().iter().enumerate() {
            let at = setting.origin + index as u64;
            self.frames.after(at / 4096 % PAGES as u64).write_bytes(at as usize % 4096, &[byte]);
        }
    }

    /// Tells what a program has changed, and takes it back.
    pub fn restore(&self, world: World, observer: &mut Observer) {
        for index in 0..PAGES {
            restore("memory", index << 12, self.frames.after(index as u64), pattern, observer);
        }
        // The entry in use, too: without it no later program gets to its first instruction.
        restore("table", 0, self.table, |word| table_word(self.behind, word), observer);
        let map = self.map(world);
        let words = if world == World::Bits32 { PAGES / 2 } else { PAGES };
        for (table, first) in [(map.arena, 0), map.again] {
            let first = if world == World::Bits32 { first / 2 } else { first };
            let dirty = if world == World::Bits32 { bits::D | bits::D << 32 } else { bits::D };
            for index in first..first + words {
                observer.see("dirty", index, table.read(index) & dirty);
            }
        }
    }
}

/// Sets TPR.
pub fn set_priority() {
    apic::write(register::TPR, PRIORITY);
}

/// Tells whether a program has changed TPR, and takes it back.
pub fn restore_priority(observer: &mut Observer) {
    let priority = apic::read(register::TPR);
    if priority != PRIORITY {
        observer.see("tpr", 0, priority.into());
        set_priority();
    }
}

fn restore(
    name: &str,
    first: usize,
    frame: Frame,
    right: impl Fn(usize) -> u64,
    observer: &mut Observer,
) {
    for index in 0..512 {
        let value = frame.read(index);
        if value != right(index) {
            observer.see(name, first + index * 8, value);
            frame.write(index, right(index));
        }
    }
}

/// Four levels. The first MiB has no memory: what firmware left there is the machine's own.
fn long(pool: &mut Pool, table: Frame) -> Map {
    let space = Space::new(pool);
    space.open_low(pool);
    let [kit, low] = core::array::from_fn(|_| pool.frame());
    image().for_each(|page| low.write(page as usize, (page * 4096) | KIT));
    kit.write(0, low.address() | TABLE);
    (1..IDENTITY >> 21).for_each(|index| kit.write(index as usize, index << 21 | bits::PS | KIT));
    let gigabytes = space.table(pool, Gva::new(0), Level::L3);
    [kit.address() | TABLE, 0]
        .into_iter()
        .enumerate()
        .for_each(|(at, entry)| gigabytes.write(at, entry));
    gigabytes.write(3, 0);
    let arena = space.table(pool, Gva::new(ARENA), Level::L1);
    space.map(pool, Gva::new(MAPPED_BY_TABLE), Level::L2, table.address() | TABLE);
    let again = space.table(pool, Gva::new(HIGH_ARENA), Level::L1);
    let first = Gva::new(HIGH_ARENA).index(Level::L1);
    Map { root: space.root(), arena, again: (again, first) }
}

/// Three levels.
fn pae(pool: &mut Pool, table: Frame) -> Map {
    let [root, kit, upper, low, arena] = core::array::from_fn(|_| pool.frame());
    root.write(0, kit.address() | bits::P);
    root.write(2, upper.address() | bits::P);
    image().for_each(|page| low.write(page as usize, (page * 4096) | KIT));
    kit.write(0, low.address() | TABLE);
    let large = bits::PS | KIT;
    (1..IDENTITY >> 21).for_each(|index| kit.write(index as usize, index << 21 | large));
    for (address, below) in [(ARENA, arena), (MAPPED_BY_TABLE, table)] {
        upper.write((address >> 21) as usize % 512, below.address() | TABLE);
    }
    Map { root, arena, again: (low, LOW_ARENA as usize / 4096) }
}

/// Two levels, of entries of 32 bits.
fn bits32(pool: &mut Pool, table: Frame) -> Map {
    let [root, low, arena] = core::array::from_fn(|_| pool.frame());
    let put = |frame: Frame, index: u64, entry: u64| {
        frame.write_bytes(4 * index as usize, &(entry as u32).to_le_bytes());
    };
    image().for_each(|page| put(low, page, (page * 4096) | KIT));
    put(root, 0, low.address() | TABLE);
    (1..IDENTITY >> 22).for_each(|index| put(root, index, index << 22 | bits::PS | KIT));
    for (address, below) in [(ARENA, arena), (MAPPED_BY_TABLE, table)] {
        put(root, address >> 22, below.address() | TABLE);
    }
    Map { root, arena, again: (low, LOW_ARENA as usize / 4096) }
}
