//! Entries of guest paging structures.

use crate::{Features, Gfn};

/// Entries in a paging structure.
pub const ENTRIES: usize = 512;

/// Bit positions shared by all levels (SDM, "4-Level Paging", formats of entries).
pub mod bits {
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// User.
    pub const U: u64 = 1 << 2;
    /// Page-level write-through.
    pub const PWT: u64 = 1 << 3;
    /// Page-level cache disable.
    pub const PCD: u64 = 1 << 4;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty (leaf entries).
    pub const D: u64 = 1 << 6;
    /// Page size (PDPTE and PDE); the PAT bit in a PTE; reserved in a PML4E.
    pub const PS: u64 = 1 << 7;
    /// Global (leaf entries).
    pub const G: u64 = 1 << 8;
    /// Execute-disable if EFER.NXE, else reserved.
    pub const NX: u64 = 1 << 63;
    /// Where a physical address may stand, whatever MAXPHYADDR is.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// The level of a paging structure: `L1` is a page table, `L4` a PML4 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Page table (PTEs).
    L1 = 1,
    /// Page directory (PDEs).
    L2 = 2,
    /// Page-directory-pointer table (PDPTEs).
    L3 = 3,
    /// PML4 table (PML4Es).
    L4 = 4,
}

impl Level {
    /// All levels, from the leaf up.
    pub const ALL: [Level; 4] = [Level::L1, Level::L2, Level::L3, Level::L4];

    /// The level of the structure that an entry of this level may reference.
    pub const fn below(self) -> Option<Level> {
        match self {
            Level::L1 => None,
            Level::L2 => Some(Level::L1),
            Level::L3 => Some(Level::L2),
            Level::L4 => Some(Level::L3),
        }
    }

    /// log2 of the bytes that one entry of this level covers.
    pub const fn shift(self) -> u32 {
        3 + 9 * self as u32
    }

    /// Pages of 4 KiB that one entry of this level covers.
    pub const fn pages(self) -> u64 {
        1 << (self.shift() - 12)
    }
}

/// An entry of a guest paging structure, as the guest wrote it: nothing about it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GuestEntry(u64);

impl GuestEntry {
    /// Wraps what was read from guest memory.
    pub const fn new(raw: u64) -> GuestEntry {
        GuestEntry(raw)
    }

    /// The raw value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// P.
    pub const fn present(self) -> bool {
        self.has(bits::P)
    }

    /// W.
    pub const fn writable(self) -> bool {
        self.has(bits::W)
    }

    /// U.
    pub const fn user(self) -> bool {
        self.has(bits::U)
    }

    /// A.
    pub const fn accessed(self) -> bool {
        self.has(bits::A)
    }

    /// D: only means something in a leaf.
    pub const fn dirty(self) -> bool {
        self.has(bits::D)
    }

    /// G: only means something in a leaf.
    pub const fn global(self) -> bool {
        self.has(bits::G)
    }

    /// NX: only means something if EFER.NXE.
    pub const fn nx(self) -> bool {
        self.has(bits::NX)
    }

    /// Whether this entry, at `level`, maps a page rather than referencing a structure. Reserved
    /// bits are not looked at: see [`GuestEntry::reserved`].
    pub const fn is_leaf(self, level: Level) -> bool {
        match level {
            Level::L1 => true,
            Level::L2 | Level::L3 => self.has(bits::PS),
            Level::L4 => false,
        }
    }

    /// The frame of the structure that this entry references, or of the 4 KiB page that it maps.
    pub const fn frame(self) -> Gfn {
        Gfn::new((self.0 & bits::ADDRESS) >> 12)
    }

    /// The first frame of the page that this leaf of `level` maps.
    pub const fn leaf_frame(self, level: Level) -> Gfn {
        Gfn::new(self.frame().raw() & !(level.pages() - 1))
    }

    /// The reserved bits that are set (SDM, "4-Level Paging", "Reserved Bits" in the formats): a
    /// walk that meets a present entry with one raises a reserved-bit fault.
    pub const fn reserved(self, level: Level, nxe: bool, features: &Features) -> u64 {
        let mut reserved = features.address_reserved();
        if !nxe {
            reserved |= bits::NX;
        }
        match level {
            Level::L4 => reserved |= bits::PS,
            Level::L3 if !features.gib_pages => reserved |= bits::PS,
            // A large page's address is aligned; bit 12 is its PAT bit.
            Level::L3 | Level::L2 if self.has(bits::PS) => reserved |= (level.pages() - 2) << 12,
            _ => (),
        }
        self.0 & reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_bits_of_each_level() {
        let features = Features::new(40, true);
        let of = |raw, level| GuestEntry::new(raw).reserved(level, true, &features);
        for level in Level::ALL {
            for bit in 0..64 {
                let expected = (40..52).contains(&bit) || (level == Level::L4 && bit == 7);
                assert_eq!(of(1 << bit, level) != 0, expected, "bit {bit} at {level:?}");
            }
        }
        for bit in 12..40 {
            assert_eq!(
                of(bits::PS | 1 << bit, Level::L2) != 0,
                (13..21).contains(&bit),
                "PDE bit {bit}"
            );
            assert_eq!(
                of(bits::PS | 1 << bit, Level::L3) != 0,
                (13..30).contains(&bit),
                "PDPTE bit {bit}"
            );
        }
        assert_ne!(
            GuestEntry::new(bits::PS).reserved(Level::L3, true, &Features::new(40, false)),
            0
        );
        assert_ne!(GuestEntry::new(bits::NX).reserved(Level::L1, false, &features), 0);
        assert_eq!(GuestEntry::new(1 << 51).reserved(Level::L1, true, &Features::new(52, true)), 0);
    }
}
