//! An address space that maps pages of its own, and nothing else.

use alloc::vec::Vec;

use umbra_mmu::RootFormat;
use umbra_paging::{ENTRIES, Hpa, PAGE_SIZE};

/// P, R/W, U/S, A and D.
mod bits {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
}

/// A page that serves as table or as memory.
pub trait Page {
    /// Where the CPU finds it.
    fn hpa(&self) -> Hpa;
    /// Its bytes.
    fn bytes(&self) -> &[u8; PAGE_SIZE as usize];
    /// Its bytes.
    fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE as usize];
}

/// Rights of a mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// It may be written.
    pub write: bool,
    /// It is one of user mode.
    pub user: bool,
}

/// Paging structures and pages, all of them taken from one set. No entry ever names anything else:
/// that is what makes it safe to run a guest's instruction on them.
#[derive(Debug)]
pub struct Space<P> {
    pages: Vec<P>,
    /// Pages in use, from the first on; the first is the root.
    used: usize,
    format: RootFormat,
    /// What is mapped: the linear address of each page, and its number.
    mapped: Vec<(u64, usize)>,
}

impl<P: Page> Space<P> {
    /// An empty one that can use these pages. Their number bounds what can be mapped.
    pub fn new(pages: Vec<P>) -> Space<P> {
        Space { pages, used: 0, format: RootFormat::Long4, mapped: Vec::with_capacity(8) }
    }

    /// Unmaps everything. From now on the tables have this format.
    pub fn reset(&mut self, format: RootFormat) {
        self.mapped.clear();
        self.used = 0;
        self.format = format;
        self.take().expect("there is a page for the root");
    }

    /// What CR3 is to be.
    pub fn root(&self) -> Hpa {
        self.pages[0].hpa()
    }

    /// The bytes of the page at `gva`, if it is mapped.
    pub fn bytes(&self, gva: u64) -> Option<&[u8; PAGE_SIZE as usize]> {
        Some(self.pages[self.find(gva)?].bytes())
    }

    /// The same, to be changed.
    pub fn bytes_mut(&mut self, gva: u64) -> Option<&mut [u8; PAGE_SIZE as usize]> {
        let number = self.find(gva)?;
        Some(self.pages[number].bytes_mut())
    }

    fn find(&self, gva: u64) -> Option<usize> {
        let page = gva & !(PAGE_SIZE - 1);
        self.mapped.iter().find(|(at, _)| *at == page).map(|(_, number)| *number)
    }

    /// Maps a page of zeros at `gva`, or gives the one that is mapped there these rights. False if
    /// there are no pages left.
    pub fn map(&mut self, gva: u64, rights: Rights) -> bool {
        let page = gva & !(PAGE_SIZE - 1);
        let number = match self.find(gva) {
            Some(number) => number,
            None => {
                let Some(number) = self.take() else { return false };
                self.mapped.push((page, number));
                number
            }
        };
        let mut leaf =
            self.pages[number].hpa().raw() | bits::PRESENT | bits::ACCESSED | bits::DIRTY;
        for (right, bit) in [(rights.write, bits::WRITABLE), (rights.user, bits::USER)] {
            leaf |= if right { bit } else { 0 };
        }
        let Some(table) = self.table(page) else { return false };
        self.set_entry(table, index(page, 1), leaf);
        true
    }

    /// The page table above `gva`, which is made if there is none.
    fn table(&mut self, gva: u64) -> Option<usize> {
        let (top, link) = match self.format {
            RootFormat::Long4 => (4, bits::PRESENT | bits::WRITABLE | bits::USER | bits::ACCESSED),
            RootFormat::Pae => (3, bits::PRESENT),
        };
        let mut table = 0;
        for level in (2..=top).rev() {
            // PDPTEs of PAE paging have no rights (SDM, "PAE Paging").
            let link = if level == top {
                link
            } else {
                link | bits::WRITABLE | bits::USER | bits::ACCESSED
            };
            let entry = self.entry(table, index(gva, level));
            table = if entry & bits::PRESENT != 0 {
                let hpa = Hpa::new(entry & !(PAGE_SIZE - 1));
                self.pages.iter().position(|page| page.hpa() == hpa)?
            } else {
                let new = self.take()?;
                let entry = self.pages[new].hpa().raw() | link;
                self.set_entry(table, index(gva, level), entry);
                new
            };
        }
        Some(table)
    }

    /// Takes another page, filled with zeros.
    fn take(&mut self) -> Option<usize> {
        let number = self.used;
        self.pages.get_mut(number)?.bytes_mut().fill(0);
        self.used += 1;
        Some(number)
    }

    fn entry(&self, page: usize, index: usize) -> u64 {
        let (entries, _) = self.pages[page].bytes().as_chunks();
        u64::from_le_bytes(entries[index])
    }

    fn set_entry(&mut self, page: usize, index: usize, value: u64) {
        let (entries, _) = self.pages[page].bytes_mut().as_chunks_mut();
        entries[index] = value.to_le_bytes();
    }
}

/// The index of `gva` in a table of this level.
fn index(gva: u64, level: u32) -> usize {
    (gva >> (12 + 9 * (level - 1))) as usize % ENTRIES
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;

    use super::*;

    /// A page at a place of its own.
    struct Memory(u64, Box<[u8; PAGE_SIZE as usize]>);

    impl Page for Memory {
        fn hpa(&self) -> Hpa {
            Hpa::new(self.0)
        }
        fn bytes(&self) -> &[u8; PAGE_SIZE as usize] {
            &self.1
        }
        fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE as usize] {
            &mut self.1
        }
    }

    fn space(pages: u64, format: RootFormat) -> Space<Memory> {
        let garbage = |n| Memory(0x10_0000 + n * 0x3000, Box::new([0xa5; PAGE_SIZE as usize]));
        let mut space = Space::new((0..pages).map(garbage).collect());
        space.reset(format);
        space
    }

    /// Follows the tables as the CPU does: where `gva` leads, and with which rights.
    fn follow(space: &Space<Memory>, gva: u64) -> Option<(u64, Rights)> {
        let top = if space.format == RootFormat::Pae { 3 } else { 4 };
        let (mut at, mut rights) = (space.root().raw(), Rights { write: true, user: true });
        for level in (1..=top).rev() {
            let page = space.pages.iter().position(|page| page.0 == at)?;
            let entry = space.entry(page, index(gva, level));
            if entry & bits::PRESENT == 0 {
                return None;
            }
            if level < 3 || space.format == RootFormat::Long4 {
                rights.write &= entry & bits::WRITABLE != 0;
                rights.user &= entry & bits::USER != 0;
            } else {
                assert_eq!(entry & 0x1e6, 0, "reserved bits of a PDPTE");
            }
            at = entry & 0xf_ffff_ffff_f000;
        }
        Some((at, rights))
    }

    #[test]
    fn only_what_was_mapped_is_reached_and_with_its_rights() {
        for format in [RootFormat::Long4, RootFormat::Pae] {
            let mut space = space(24, format);
            let far = if format == RootFormat::Pae { 0xffff_f000 } else { 0xffff_ffff_8000_0000 };
            let places = [(0x1000, true, false), (0x2000, false, true), (far, true, true)];
            for (gva, write, user) in places {
                assert!(space.map(gva + 0x123, Rights { write, user }));
                space.bytes_mut(gva).unwrap()[0] = gva as u8 ^ 0x5a;
            }
            for (gva, write, user) in places {
                let (hpa, rights) = follow(&space, gva).unwrap();
                assert_eq!(rights, Rights { write, user });
                assert!(
                    space.pages.iter().any(|page| page.0 == hpa && page.1[0] == gva as u8 ^ 0x5a)
                );
            }
            for gva in [0, 0x3000, 0x20_1000, 0x4000_1000, far - 0x1000] {
                assert_eq!(follow(&space, gva), None, "{gva:#x}");
            }
            space.reset(format);
            assert_eq!(follow(&space, 0x1000), None);
        }
    }

    #[test]
    fn rights_can_grow_and_the_bytes_stay() {
        let mut space = space(8, RootFormat::Long4);
        assert!(space.map(0x5000, Rights { write: false, user: false }));
        space.bytes_mut(0x5fff).unwrap()[9] = 77;
        assert!(space.map(0x5008, Rights { write: true, user: false }));
        assert_eq!(follow(&space, 0x5000).unwrap().1, Rights { write: true, user: false });
        assert_eq!(space.bytes(0x5000).unwrap()[9], 77);
        assert_eq!(space.used, 5, "no page is mapped twice");
    }

    #[test]
    fn when_the_pages_are_used_up_nothing_is_mapped() {
        let mut space = space(5, RootFormat::Long4);
        assert!(space.map(0x1000, Rights { write: true, user: true }));
        assert!(!space.map(0x2000, Rights { write: true, user: true }));
        assert_eq!(follow(&space, 0x2000), None);
        assert!(!space.map(1 << 40, Rights { write: true, user: true }));
        assert_eq!(follow(&space, 1 << 40), None);
    }
}
