//! The formats of paging-structure entries, as a CPU decodes them.

use umbra_paging::{Access, AccessKind, Gva};

use super::{Control, PagingMode};
use crate::memory::{PhysAddr, PhysicalMemory};

pub(crate) const P: u64 = 1 << 0;
pub(crate) const RW: u64 = 1 << 1;
pub(crate) const US: u64 = 1 << 2;
pub(crate) const A: u64 = 1 << 5;
pub(crate) const D: u64 = 1 << 6;
pub(crate) const PS: u64 = 1 << 7;
pub(crate) const G: u64 = 1 << 8;
pub(crate) const XD: u64 = 1 << 63;

/// Bits `low` to `high`, both included.
pub(crate) const fn span(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// The page or table address in an entry, whose lowest `shift` bits are not address.
pub(crate) const fn address(entry: u64, shift: u32) -> u64 {
    entry & span(51, shift)
}

/// Bits of a linear address below those that select the entry at `level` (1: page table, 4: PML4
/// table), where entries have 8 bytes.
pub(crate) const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// How wide entries are, and so how many a structure has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 512 entries of 8 bytes.
    Eight,
    /// 1024 entries of 4 bytes: 32-bit paging.
    Four {
        /// CR4.PSE.
        pse: bool,
    },
}

impl Width {
    pub(crate) fn of(control: &Control) -> Width {
        match control.mode {
            PagingMode::Legacy32 { pse, .. } => Width::Four { pse },
            _ => Width::Eight,
        }
    }

    /// As [`shift`].
    pub(crate) fn shift(self, level: u8) -> u32 {
        match (self, level) {
            (Width::Four { .. }, 2) => 22,
            (Width::Four { .. }, 3) => 32,
            _ => shift(level),
        }
    }

    /// How many entries a structure has.
    pub(crate) fn entries(self) -> u64 {
        match self {
            Width::Eight => 512,
            Width::Four { .. } => 1024,
        }
    }

    /// Where the entry of this index stands.
    pub(crate) fn at(self, table: PhysAddr, index: u64) -> PhysAddr {
        PhysAddr::new(table.raw() + index * (4096 / self.entries()))
    }

    /// Where the entry of this linear address stands.
    pub(crate) fn place(self, table: PhysAddr, gva: Gva, level: u8) -> PhysAddr {
        self.at(table, (gva.raw() >> self.shift(level)) % self.entries())
    }

    pub(crate) fn read(self, memory: &impl PhysicalMemory, at: PhysAddr) -> u64 {
        match (self, at.raw() % 8) {
            (Width::Eight, _) => memory.read(at),
            (Width::Four { .. }, 0) => memory.read(at) % (1 << 32),
            (Width::Four { .. }, _) => memory.read(at.word()) >> 32,
        }
    }

    /// The word to set these bits of an entry in, and the bits there.
    pub(crate) fn in_word(self, at: PhysAddr, bits: u64) -> (PhysAddr, u64) {
        if at == at.word() { (at, bits) } else { (at.word(), bits << 32) }
    }

    /// Whether an entry at `level` maps a page.
    pub(crate) fn maps_page(self, entry: u64, level: u8) -> bool {
        let large = entry & PS != 0 && self != Width::Four { pse: false };
        level == 1 || (level < 4 && large)
    }

    /// The address of the page that an entry maps.
    pub(crate) fn page(self, entry: u64, level: u8) -> u64 {
        match (self, level) {
            // Bits 31:22 and, in bits 20:13, bits 39:32.
            (Width::Four { .. }, 2) => entry & span(31, 22) | (entry & span(20, 13)) << 19,
            _ => address(entry, shift(level)),
        }
    }
}

/// Whether a present entry at `level` has a reserved bit set (SDM, tables "Format of ...").
pub(crate) fn has_reserved(entry: u64, level: u8, control: &Control) -> bool {
    if let PagingMode::Legacy32 { pse, .. } = control.mode {
        let unused = match control.maxphyaddr {
            32..40 => span(20, u32::from(control.maxphyaddr) - 19),
            _ => 0,
        };
        return level == 2 && pse && entry & PS != 0 && entry & (1 << 21 | unused) != 0;
    }
    let mut reserved = 0;
    if control.maxphyaddr < 52 {
        reserved |= span(51, u32::from(control.maxphyaddr));
    }
    if !control.nxe {
        reserved |= XD;
    }
    if let PagingMode::Pae { .. } = control.mode {
        // PAE entries keep nothing for software above the address.
        reserved |= span(62, 52);
    }
    match (level, entry & PS != 0) {
        (4, _) => reserved |= PS,
        (3, true) if control.gib_pages => reserved |= span(29, 13),
        (3, true) => reserved |= PS,
        (2, true) => reserved |= span(20, 13),
        _ => (),
    }
    entry & reserved != 0
}

/// What the entries of a translation have in common: the rights that a TLB or a paging-structure
/// cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    /// R/W is set in all.
    pub writable: bool,
    /// U/S is set in all.
    pub user: bool,
    /// XD is set in one.
    pub no_execute: bool,
}

impl Rights {
    /// The rights before the first entry.
    pub const FULL: Rights = Rights { writable: true, user: true, no_execute: false };

    /// These rights below `entry`.
    pub fn below(self, entry: u64) -> Rights {
        Rights {
            writable: self.writable && entry & RW != 0,
            user: self.user && entry & US != 0,
            no_execute: self.no_execute || entry & XD != 0,
        }
    }

    /// Whether the access may take place (SDM, "Determination of Access Rights", bullet by bullet).
    /// Control bits count with their current value, also for cached rights.
    pub fn permit(self, access: Access, control: &Control) -> bool {
        let executable = !control.nxe || !self.no_execute;
        // "Access to user-mode addresses" by supervisor-mode data accesses.
        let smap_passes = !control.smap || access.smap_override;
        match (access.user, self.user, access.kind) {
            (false, false, AccessKind::Read) => true,
            (false, true, AccessKind::Read) => smap_passes,
            (false, false, AccessKind::Write) => !control.wp || self.writable,
            (false, true, AccessKind::Write) => smap_passes && (!control.wp || self.writable),
            (false, false, AccessKind::Fetch) => executable,
            (false, true, AccessKind::Fetch) => !control.smep && executable,
            (true, false, _) => false,
            (true, true, AccessKind::Read) => true,
            (true, true, AccessKind::Write) => self.writable,
            (true, true, AccessKind::Fetch) => executable,
        }
    }
}
