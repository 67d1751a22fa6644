//! The walk: reads only, from the root or from what a paging-structure cache holds.

use arrayvec::ArrayVec;
use umbra_paging::Gva;

use super::format::{D, G, P, Rights, Width, address, has_reserved};
use super::{Control, PagingMode};
use crate::memory::{PhysAddr, PhysicalMemory};

/// Where a walk begins: at the root, or below a cached entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// The structure to read first.
    pub table: PhysAddr,
    /// Its level: 1 for a page table, 4 for a PML4 table.
    pub level: u8,
    /// The rights that the entries above it leave.
    pub rights: Rights,
}

/// An entry that a walk went through: present, no reserved bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Where it stands.
    pub at: PhysAddr,
    /// The level of its structure.
    pub level: u8,
    /// Its value.
    pub entry: u64,
    /// The rights below it.
    pub rights: Rights,
    /// The width of the entries of its structure.
    pub width: Width,
}

impl Visit {
    /// The word of memory that has these bits of the entry, and the bits there.
    pub fn in_word(&self, bits: u64) -> (PhysAddr, u64) {
        self.width.in_word(self.at, bits)
    }

    /// Where a walk goes on that takes this entry from a paging-structure cache.
    pub fn next(&self) -> Start {
        Start {
            table: PhysAddr::new(address(self.entry, 12)),
            level: self.level - 1,
            rights: self.rights,
        }
    }

    /// The page that this entry maps, if it maps one.
    pub fn page(&self) -> Option<Page> {
        self.width.maps_page(self.entry, self.level).then(|| Page {
            base: PhysAddr::new(self.width.page(self.entry, self.level)),
            level: self.level,
            width: self.width,
            rights: self.rights,
            dirty: self.entry & D != 0,
            global: self.entry & G != 0,
        })
    }
}

/// A page that a walk ended at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// Its first byte.
    pub base: PhysAddr,
    /// The level of the entry that maps it: 1 for 4 KiB, 2 for 2 MiB (4 MiB in 32-bit paging), 3
    /// for 1 GiB.
    pub level: u8,
    /// The width of that entry.
    pub width: Width,
    /// Its rights.
    pub rights: Rights,
    /// D in the entry that maps it.
    pub dirty: bool,
    /// G in the entry that maps it.
    pub global: bool,
}

impl Page {
    /// Bits of a linear address that are an offset in it.
    pub fn shift(&self) -> u32 {
        self.width.shift(self.level)
    }

    /// Where in this page a linear address goes.
    pub fn place(&self, gva: Gva) -> PhysAddr {
        PhysAddr::new(self.base.raw() + (gva.raw() & ((1 << self.shift()) - 1)))
    }
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At an entry with P = 0.
    NotPresent,
    /// At an entry with P = 1 and a reserved bit set.
    Reserved,
    /// At a page. Its rights are not checked yet.
    Page(Page),
}

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The entries it went through, in order. The last one maps the page, if there is one.
    pub visits: ArrayVec<Visit, 4>,
    /// How it ended.
    pub end: End,
}

/// Walks from the root.
///
/// # Panics
/// If paging is off.
pub fn walk(memory: &impl PhysicalMemory, control: &Control, gva: Gva) -> Walk {
    match root(control, gva) {
        Some(start) => walk_from(memory, control, gva, start),
        None => Walk { visits: ArrayVec::new(), end: End::NotPresent },
    }
}

/// Where a walk of `gva` begins without caches; `None` if the PDPTE register for it is not present.
pub(crate) fn root(control: &Control, gva: Gva) -> Option<Start> {
    match control.mode {
        PagingMode::Off => panic!("no walk takes place while paging is off"),
        PagingMode::Long4 { root } => Some(Start { table: root, level: 4, rights: Rights::FULL }),
        PagingMode::Legacy32 { root, .. } => {
            Some(Start { table: root, level: 2, rights: Rights::FULL })
        }
        PagingMode::Pae { pdptes } => {
            let pdpte = pdptes[(gva.raw() >> 30) as usize & 3];
            let table = PhysAddr::new(address(pdpte, 12));
            (pdpte & P != 0).then_some(Start { table, level: 2, rights: Rights::FULL })
        }
    }
}

/// Walks from `start`.
pub fn walk_from(memory: &impl PhysicalMemory, control: &Control, gva: Gva, start: Start) -> Walk {
    let mut visits = ArrayVec::new();
    let mut from = start;
    let end = loop {
        match step(memory, control, gva, from) {
            Err(end) => break end,
            Ok(visit) => {
                visits.push(visit);
                match visit.page() {
                    Some(page) => break End::Page(page),
                    None => from = visit.next(),
                }
            }
        }
    };
    Walk { visits, end }
}

/// Reads one entry on the way.
pub(crate) fn step(
    memory: &impl PhysicalMemory,
    control: &Control,
    gva: Gva,
    from: Start,
) -> Result<Visit, End> {
    step_to(memory, control, Width::of(control).place(from.table, gva, from.level), from)
}

/// Reads the entry of this index.
pub(crate) fn step_at(
    memory: &impl PhysicalMemory,
    control: &Control,
    index: u64,
    from: Start,
) -> Result<Visit, End> {
    step_to(memory, control, Width::of(control).at(from.table, index), from)
}

fn step_to(
    memory: &impl PhysicalMemory,
    control: &Control,
    at: PhysAddr,
    from: Start,
) -> Result<Visit, End> {
    let width = Width::of(control);
    let entry = width.read(memory, at);
    if entry & P == 0 {
        return Err(End::NotPresent);
    }
    if has_reserved(entry, from.level, control) {
        return Err(End::Reserved);
    }
    Ok(Visit { at, level: from.level, entry, rights: from.rights.below(entry), width })
}
