//! The format of a guest table, and how its entries become those of a shadow page.
//!
//! A guest with 32-bit paging runs on PAE shadow tables. The CPU stays in one paging mode, entries
//! have room for reserved bits and NX, and everything but this file sees PAE entries. So a shadow
//! page of such a guest covers a *part* of its table: a half of a page table, a quarter of a page
//! directory. (KVM has quadrants in its role for the same reason.)

use core::fmt;
use core::ops::Range;

use umbra_paging::{ENTRIES, Features, Format, Gfn, Gpa, GuestEntry, Level, Tables};

/// The format of a guest table, and of 32-bit paging CR4.PSE and the part that a shadow page
/// covers. One byte, because shadow pages are found by comparing it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableFormat(u8);

const LEGACY: u8 = 1 << 7;
const PSE: u8 = 1 << 6;
const PART: u8 = 3;

impl fmt::Debug for TableFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.format())?;
        if self.is_legacy() { write!(f, " part {}", self.part()) } else { Ok(()) }
    }
}

impl TableFormat {
    pub(crate) const LONG4: TableFormat = TableFormat(0);
    pub(crate) const PAE: TableFormat = TableFormat(1);

    /// A part of a table of 32-bit paging: of two in a page table, of four in a page directory.
    pub(crate) fn legacy32(pse: bool, part: usize) -> TableFormat {
        debug_assert!(part <= usize::from(PART));
        TableFormat(LEGACY | if pse { PSE } else { 0 } | part as u8)
    }

    #[inline]
    pub(crate) const fn is_legacy(self) -> bool {
        self.0 & LEGACY != 0
    }

    pub(crate) const fn format(self) -> Format {
        match self {
            TableFormat::LONG4 => Format::Long4,
            TableFormat::PAE => Format::Pae,
            TableFormat(raw) => Format::Legacy32 { pse: raw & PSE != 0 },
        }
    }

    fn part(self) -> usize {
        usize::from(self.0 & PART)
    }

    /// Whether shadows of one table with these formats are parts of one whole.
    pub(crate) fn is_sibling(self, other: TableFormat) -> bool {
        self == other || self.is_legacy() && self.0 & !PART == other.0 & !PART
    }

    /// The format of the page below the shadow entry `index` of a page directory or higher table.
    pub(crate) fn below(self, index: usize) -> TableFormat {
        if self.is_legacy() { TableFormat(self.0 & !PART | (index & 1) as u8) } else { self }
    }

    /// The reserved bits of an entry as [`TableFormat::read`] gives it.
    #[inline]
    pub(crate) fn reserved(
        self,
        entry: GuestEntry,
        level: Level,
        nxe: bool,
        features: &Features,
    ) -> u64 {
        match self {
            TableFormat::LONG4 => entry.reserved(level, nxe, features),
            _ => Format::Pae.reserved(entry, level, nxe, features),
        }
    }

    /// How many shadow entries one guest entry of this level has.
    pub(crate) fn shadows_of_entry(self, level: Level) -> usize {
        if self.is_legacy() && level == Level::L2 { 2 } else { 1 }
    }

    /// Guest entries in a part.
    fn entries_of_part(self, level: Level) -> usize {
        ENTRIES / self.shadows_of_entry(level)
    }

    /// Where the guest entry stands that the shadow entry `index` is a shadow of.
    #[inline]
    pub(crate) fn place(self, table: Gfn, level: Level, index: usize) -> Gpa {
        if !self.is_legacy() {
            return table.entry(index);
        }
        let first = self.part() * self.entries_of_part(level);
        self.format().entry_at(table, first + index / self.shadows_of_entry(level))
    }

    /// The guest entry of the shadow entry `index`, as PAE paging (or 4-level paging) would say it.
    #[inline]
    pub(crate) fn read(
        self,
        tables: &impl Tables,
        table: Gfn,
        level: Level,
        index: usize,
        features: &Features,
    ) -> GuestEntry {
        let at = self.place(table, level, index);
        if !self.is_legacy() {
            return GuestEntry::new(tables.read_entry(at));
        }
        let format = self.format();
        format.as_pae(format.read(tables, at), level, index & 1 != 0, features)
    }

    /// The entries of this page that are shadows of the bytes at these offsets of the table.
    #[inline]
    pub(crate) fn indexes(self, level: Level, bytes: Range<usize>) -> Range<usize> {
        let width = self.format().entry_bytes() as usize;
        let entries = bytes.start / width..(bytes.end - 1) / width + 1;
        if !self.is_legacy() {
            return entries;
        }
        let (count, each) = (self.entries_of_part(level), self.shadows_of_entry(level));
        let first = self.part() * count;
        let inside = |entry: usize| entry.clamp(first, first + count) - first;
        inside(entries.start) * each..inside(entries.end) * each
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every word is its own address, with P in both halves.
    struct Addresses;

    impl Tables for Addresses {
        fn read_entry(&self, gpa: Gpa) -> u64 {
            assert_eq!(gpa.raw() % 8, 0);
            gpa.raw() << 12 | 1 | (gpa.raw() + 4) << 44 | 1 << 32
        }
    }

    fn formats(level: Level) -> impl Iterator<Item = TableFormat> {
        let parts = if level == Level::L1 { 0..2 } else { 0..4 };
        parts
            .flat_map(|part| {
                [TableFormat::legacy32(false, part), TableFormat::legacy32(true, part)]
            })
            .chain([TableFormat::LONG4, TableFormat::PAE])
    }

    #[test]
    fn parts_cover_a_table_of_32_bit_paging_once() {
        let features = Features::new(40, false);
        for (level, each) in [(Level::L1, 1), (Level::L2, 2)] {
            let mut seen = [0; 1024];
            for part in 0..2 * each {
                let format = TableFormat::legacy32(false, part);
                for index in 0..ENTRIES {
                    let at = format.place(Gfn::new(3), level, index).raw() - 0x3000;
                    seen[at as usize / 4] += 1;
                    let entry = format.read(&Addresses, Gfn::new(3), level, index, &features);
                    assert_eq!(entry.raw(), (0x3000 + at) << 12 | 1);
                }
            }
            assert_eq!(seen, [each; 1024]);
        }
    }

    #[test]
    fn written_bytes_concern_the_entries_that_read_them() {
        for level in [Level::L1, Level::L2] {
            for format in formats(level) {
                let width = format.format().entry_bytes();
                for start in
                    (0..4096).step_by(1).filter(|start| start % 512 < 24 || start % 512 > 490)
                {
                    for end in start + 1..=(start + 9).min(4096) {
                        let indexes = format.indexes(level, start..end);
                        for index in 0..ENTRIES {
                            let at = format.place(Gfn::new(0), level, index).raw();
                            let read = at < end as u64 && at + width > start as u64;
                            assert_eq!(
                                indexes.contains(&index),
                                read,
                                "{format:?} {start}..{end} {index}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn formats_are_told_apart() {
        for level in [Level::L1, Level::L2] {
            for (n, one) in formats(level).enumerate() {
                for (m, other) in formats(level).enumerate() {
                    assert_eq!(one == other, n == m);
                    let siblings = one.format() == other.format();
                    assert_eq!(one.is_sibling(other), siblings, "{one:?} {other:?}");
                }
            }
        }
        let directory = TableFormat::legacy32(true, 3);
        let tables = [6, 7].map(|index| directory.below(index));
        assert_eq!(tables, [0, 1].map(|part| TableFormat::legacy32(true, part)));
        assert_eq!(TableFormat::PAE.below(7), TableFormat::PAE);
    }
}
