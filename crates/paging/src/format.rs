//! The paging formats: what a walk has to know of each beside the bits that all entries share.
//!
//! One enum rather than a type per format: a walk is one function, which the compiler specializes
//! for each variant, and a shadow page can say at run time which format its guest table has.

use crate::{Features, Gfn, Gpa, GuestEntry, Gva, Level, PAGE_SIZE, Tables, bits};

/// A paging format (SDM, "Hierarchical Paging Structures: an Overview").
///
/// | | entry | index | levels | large pages | NX | always reserved |
/// |---|---|---|---|---|---|---|
/// | 32-bit | 4 bytes | 10 bits | 2 | 4 MiB, under CR4.PSE | no | bit 21 of a 4 MiB page |
/// | PAE | 8 bytes | 9 bits | 2, below four registers | 2 MiB | yes | bits 52 to 62 |
/// | 4-level | 8 bytes | 9 bits | 4 | 2 MiB, 1 GiB | yes | bit 7 of a PML4E |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit paging.
    Legacy32 {
        /// CR4.PSE: PDEs with PS map 4 MiB pages. Without it PS is ignored.
        pse: bool,
    },
    /// PAE paging: page directories, which the four PDPTE registers reference, and page tables.
    Pae,
    /// 4-level paging of IA-32e mode.
    Long4,
}

impl Format {
    /// The level of the topmost structure in memory that every walk reads.
    pub const fn top(self) -> Level {
        match self {
            Format::Legacy32 { .. } | Format::Pae => Level::L2,
            Format::Long4 => Level::L4,
        }
    }

    /// Bytes in an entry.
    pub const fn entry_bytes(self) -> u64 {
        match self {
            Format::Legacy32 { .. } => 4,
            Format::Pae | Format::Long4 => 8,
        }
    }

    /// Whether entries have an execute-disable bit.
    pub const fn has_nx(self) -> bool {
        !matches!(self, Format::Legacy32 { .. })
    }

    /// Bits of a linear address that select an entry.
    const fn index_bits(self) -> u32 {
        match self {
            Format::Legacy32 { .. } => 10,
            Format::Pae | Format::Long4 => 9,
        }
    }

    /// log2 of the bytes that one entry of `level` covers.
    pub const fn shift(self, level: Level) -> u32 {
        12 + self.index_bits() * (level as u32 - 1)
    }

    /// The index into the paging structure of `level`.
    pub const fn index(self, gva: Gva, level: Level) -> usize {
        (gva.raw() >> self.shift(level)) as usize & ((1 << self.index_bits()) - 1)
    }

    /// Where the entry `index` of the structure in this frame stands.
    pub const fn entry_at(self, table: Gfn, index: usize) -> Gpa {
        Gpa::new(table.base().raw() + index as u64 * self.entry_bytes())
    }

    /// The linear address that the CPU means: it has 32 bits outside IA-32e mode.
    pub const fn linear(self, gva: Gva) -> Gva {
        match self {
            Format::Legacy32 { .. } | Format::Pae => Gva::new(gva.raw() & 0xffff_ffff),
            Format::Long4 => gva,
        }
    }

    /// The entry at `at`, read at once. One of 4 bytes is the low half of what comes back.
    #[inline]
    pub fn read(self, tables: &impl Tables, at: Gpa) -> GuestEntry {
        match self {
            Format::Legacy32 { .. } => {
                let word = tables.read_entry(Gpa::new(at.raw() & !7));
                GuestEntry::new(word >> (8 * (at.raw() & 4)) & 0xffff_ffff)
            }
            Format::Pae | Format::Long4 => GuestEntry::new(tables.read_entry(at)),
        }
    }

    /// Whether an entry, at `level`, maps a page rather than referencing a structure.
    pub const fn is_leaf(self, entry: GuestEntry, level: Level) -> bool {
        match self {
            Format::Legacy32 { pse: false } => matches!(level, Level::L1),
            _ => entry.is_leaf(level),
        }
    }

    /// The first frame of the page that this leaf of `level` maps.
    pub const fn leaf_frame(self, entry: GuestEntry, level: Level) -> Gfn {
        match (self, level) {
            (Format::Legacy32 { .. }, Level::L2) => {
                // PSE-36: SDM, "32-Bit Paging", "Format of a 32-Bit Page-Directory Entry that Maps
                // a 4-MByte Page".
                let high = entry.raw() >> 13 & 0xff;
                Gfn::new(high << 20 | (entry.raw() >> 22 & 0x3ff) << 10)
            }
            _ => entry.leaf_frame(level),
        }
    }

    /// The reserved bits that are set in an entry of `level` (SDM, "Reserved Bits" in the formats):
    /// a walk that meets a present entry with one raises a reserved-bit fault.
    #[inline]
    pub const fn reserved(
        self,
        entry: GuestEntry,
        level: Level,
        nxe: bool,
        features: &Features,
    ) -> u64 {
        match self {
            Format::Legacy32 { .. } => {
                if matches!(level, Level::L1) || !self.is_leaf(entry, level) {
                    return 0;
                }
                // Bits 13 to 20 are bits 32 to 39 of the address, as far as there are such.
                let width = if features.maxphyaddr < 40 { features.maxphyaddr } else { 40 };
                entry.raw() & ((1 << 22) - (1 << (width - 19)))
            }
            Format::Pae => entry.reserved(level, nxe, features) | entry.raw() & PAE_RESERVED,
            Format::Long4 => entry.reserved(level, nxe, features),
        }
    }

    /// An entry of 32-bit paging as an entry of PAE paging, for whoever shadows the first by the
    /// second. A 4 MiB page is two of 2 MiB, of which `upper` selects one. Reserved bits become one
    /// that PAE paging reserves. Entries of the other formats stay as they are.
    #[inline]
    pub const fn as_pae(
        self,
        entry: GuestEntry,
        level: Level,
        upper: bool,
        features: &Features,
    ) -> GuestEntry {
        if !matches!(self, Format::Legacy32 { .. }) {
            return entry;
        }
        // What remains of the bits below the address, and of the address in all but 4 MiB pages.
        const FLAGS: u64 = 0xfff;
        if self.reserved(entry, level, false, features) != 0 {
            return GuestEntry::new(entry.raw() & FLAGS | 1 << 62);
        }
        match (level, self.is_leaf(entry, level)) {
            (Level::L1, _) => entry,
            (_, false) => GuestEntry::new(entry.raw() & !bits::PS),
            (_, true) => {
                let half = if upper { Level::L2.pages() * PAGE_SIZE } else { 0 };
                let page = self.leaf_frame(entry, level).base().raw() + half;
                // Bit 12 is the page's PAT bit in both formats.
                GuestEntry::new(page | entry.raw() & (FLAGS | 1 << 12))
            }
        }
    }
}

/// Bits 52 to 62: software may use them in 4-level paging, but not in PAE paging (SDM, "PAE
/// Paging").
const PAE_RESERVED: u64 = (1 << 63) - (1 << 52);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const FORMATS: [Format; 4] = [
        Format::Legacy32 { pse: false },
        Format::Legacy32 { pse: true },
        Format::Pae,
        Format::Long4,
    ];

    /// The reserved bits of a present entry with these of its bits set, as a list of ranges. They
    /// are typed in from the SDM's tables "Format of ...", and nowhere shared with the code.
    fn table(
        format: Format,
        level: u8,
        ps: bool,
        nxe: bool,
        width: u32,
        gib: bool,
    ) -> std::vec::Vec<(u32, u32)> {
        let mut ranges = std::vec![];
        match format {
            Format::Legacy32 { pse } => {
                if level == 2 && ps && pse {
                    ranges.push((std::cmp::min(width, 40) - 19, 21));
                }
                return ranges;
            }
            Format::Pae => ranges.push((52, 62)),
            Format::Long4 => (),
        }
        if width < 52 {
            ranges.push((width, 51));
        }
        if !nxe {
            ranges.push((63, 63));
        }
        match (level, ps) {
            (2, true) => ranges.push((13, 20)),
            (3, true) if gib => ranges.push((13, 29)),
            (3, true) | (4, true) => ranges.push((7, 7)),
            _ => (),
        }
        ranges
    }

    fn levels(format: Format) -> &'static [Level] {
        if format == Format::Long4 { &Level::ALL } else { &Level::ALL[..2] }
    }

    #[test]
    fn reserved_bits_of_every_format_are_those_of_the_sdm() {
        for format in FORMATS {
            for &level in levels(format) {
                for n in 0..8 * 21 {
                    let (ps, nxe, gib, width) = (n & 1 != 0, n & 2 != 0, n & 4 != 0, 32 + n / 8);
                    let features = Features::new(width as u8, gib);
                    let ranges = table(format, level as u8, ps, nxe, width, gib);
                    for bit in 0..8 * format.entry_bytes() as u32 {
                        let raw = 1 | u64::from(ps) << 7 | 1 << bit;
                        if bit == 7 && !ps {
                            continue;
                        }
                        let reserved =
                            format.reserved(GuestEntry::new(raw), level, nxe, &features) >> bit & 1;
                        let expected = ranges.iter().any(|&(low, high)| low <= bit && bit <= high);
                        assert_eq!(
                            reserved != 0,
                            expected,
                            "{format:?} {level:?} bit {bit}, width {width}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_large_page_lies_where_the_sdm_says() {
        let pse = Format::Legacy32 { pse: true };
        for high in 0..256u64 {
            let entry =
                GuestEntry::new(0x1234_5fff & !(0xff << 13) & 0xffc0_1fff | high << 13 | bits::PS);
            assert!(pse.is_leaf(entry, Level::L2));
            assert_eq!(pse.leaf_frame(entry, Level::L2).base().raw(), high << 32 | 0x1200_0000);
        }
        let entry = GuestEntry::new(0x1234_5fff);
        assert!(!Format::Legacy32 { pse: false }.is_leaf(entry, Level::L2));
        assert!(Format::Legacy32 { pse: false }.is_leaf(GuestEntry::new(0), Level::L1));
        assert_eq!(pse.leaf_frame(entry, Level::L1).raw(), 0x12345);
        assert_eq!(Format::Pae.leaf_frame(entry, Level::L2).raw(), 0x12200);
    }

    #[test]
    fn an_address_is_cut_into_the_indexes_of_its_format() {
        let gva = Gva::new(0xdead_beef);
        let legacy = Format::Legacy32 { pse: false };
        assert_eq!([Level::L2, Level::L1].map(|level| legacy.index(gva, level)), [0x37a, 0x2db]);
        assert_eq!([Level::L2, Level::L1].map(|level| Format::Pae.index(gva, level)), [0xf5, 0xdb]);
        for level in Level::ALL {
            assert_eq!(Format::Long4.index(gva, level), gva.index(level));
            assert_eq!(Format::Long4.shift(level), level.shift());
        }
        assert_eq!(legacy.entry_at(Gfn::new(2), 3), Gpa::new(0x200c));
        assert_eq!(Format::Pae.entry_at(Gfn::new(2), 3), Gpa::new(0x2018));
        assert_eq!(Format::Pae.linear(Gva::new(0x1_0000_1000)), Gva::new(0x1000));
    }

    #[test]
    fn an_entry_of_four_bytes_is_one_half_of_a_word() {
        struct Word;
        impl Tables for Word {
            fn read_entry(&self, gpa: Gpa) -> u64 {
                assert_eq!(gpa.raw() % 8, 0);
                0x1111_2222_3333_4444
            }
        }
        let legacy = Format::Legacy32 { pse: true };
        assert_eq!(legacy.read(&Word, Gpa::new(0x1000)).raw(), 0x3333_4444);
        assert_eq!(legacy.read(&Word, Gpa::new(0x1004)).raw(), 0x1111_2222);
        assert_eq!(Format::Pae.read(&Word, Gpa::new(0x1008)).raw(), 0x1111_2222_3333_4444);
    }

    /// Said in PAE's words, an entry still means the same: all 2^20 combinations of the bits that
    /// mean something, with a few of those that do not.
    #[test]
    fn an_entry_of_32_bit_paging_says_the_same_as_one_of_pae() {
        for pse in [false, true] {
            let format = Format::Legacy32 { pse };
            for (level, width) in [
                (Level::L1, 36),
                (Level::L2, 32),
                (Level::L2, 36),
                (Level::L2, 40),
                (Level::L2, 52),
            ] {
                let features = Features::new(width, false);
                for n in 0..1u64 << 20 {
                    let entry = GuestEntry::new(n & 0x1ff | n >> 9 << 12 | 0x8a40_0000);
                    for upper in [false, true] {
                        let pae = format.as_pae(entry, level, upper, &features);
                        let reserved = format.reserved(entry, level, false, &features) != 0;
                        assert_eq!(
                            Format::Pae.reserved(pae, level, false, &features) != 0,
                            reserved
                        );
                        assert_eq!(pae.present(), entry.present());
                        if reserved || !entry.present() {
                            continue;
                        }
                        let leaf = format.is_leaf(entry, level);
                        assert_eq!(Format::Pae.is_leaf(pae, level), leaf);
                        let meaning = |entry: GuestEntry| entry.raw() & 0x17f;
                        assert_eq!(meaning(pae), meaning(entry), "{entry:x?} {pae:x?}");
                        let half = if upper && level == Level::L2 && leaf { 512 } else { 0 };
                        let frame =
                            if leaf { format.leaf_frame(entry, level) } else { entry.frame() };
                        let found = if leaf { pae.leaf_frame(level) } else { pae.frame() };
                        assert_eq!(found.raw(), frame.raw() + half, "{entry:x?} {pae:x?}");
                    }
                }
            }
        }
        let entry = GuestEntry::new(u64::MAX);
        assert_eq!(Format::Long4.as_pae(entry, Level::L2, true, &Features::new(40, true)), entry);
    }
}
