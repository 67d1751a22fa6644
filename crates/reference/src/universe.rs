//! The small world that random programs live in: few frames and few linear addresses, so that
//! things collide.

use std::ops::Range;

use arrayvec::ArrayVec;
use umbra_paging::{Gfn, Gpa, Gva};

use crate::hardware::{PagingMode, Width};

/// Frames that programs use as tables and as data. There is more RAM, but only
/// these frames are touched. The last ones lie in other 2 MiB regions.
pub const HOT: [u64; 16] = [
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x210, 0x211, 0x410,
    0x411,
];

/// One past the highest frame of the guest RAM that every program has: three regions of 2 MiB.
pub const END: u64 = 0x600;

/// Frames above 4 GiB that are used as those in [`HOT`]: memory in some programs.
pub const HIGH: [u64; 2] = [0x10_0000, 0x10_0001];

/// The frames above 4 GiB that are memory in some programs: a region of 2 MiB.
pub const HIGH_FRAMES: Range<u64> = 0x10_0000..0x10_0200;

/// A frame below [`END`] with a device in place of memory.
pub const HOLE: u64 = 0x251;

/// The PML4 slot of the *window*, through which programs normally reach their tables: gpa 0 stands
/// at [`WINDOW`].
pub const WINDOW_SLOT: usize = 256;

/// Where the window begins.
pub const WINDOW: u64 = 0xffff_8000_0000_0000;

/// Where entries of tables are mostly written: the slots on the way to the linear pages.
pub const SLOTS: [u64; 8] = [0, 1, 0, 1, 511, WINDOW_SLOT as u64, 0, 2];

/// The same in 32-bit and PAE paging, in words of 8 bytes: those of the first entries, of each of
/// the four GiB, of the second half of a 4 MiB page, and of the window.
pub const NARROW_SLOTS: [u64; 8] = [0, 1, 0, 256, 128, 384, 416, 3];

/// Where the window begins in the 4 GiB of linear addresses that 32-bit and PAE paging have.
pub const NARROW_WINDOW: u64 = 0xd000_0000;

/// Where the window shows [`HIGH_FRAMES`] there.
pub const NARROW_HIGH: u64 = 0xd080_0000;

/// A place in the tree of linear prefixes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    /// The level of the entry that decides here: 4 for a PML4E.
    pub level: u8,
    /// Any address below this prefix.
    pub gva: Gva,
    /// The prefix one level up.
    pub parent: Option<usize>,
}

/// The prefixes of a page, from the highest level down.
pub(crate) type Path = ArrayVec<usize, 4>;

/// Linear pages and their prefixes, as the tables of one format divide them.
#[derive(Debug)]
pub(crate) struct Tree {
    pages: Vec<Gva>,
    nodes: Vec<Node>,
    /// For each page its nodes.
    paths: Vec<Path>,
}

impl Tree {
    /// Of these pages, sorted, in this format.
    fn new(pages: Vec<Gva>, highest: u8, width: Width) -> Tree {
        let mut nodes: Vec<Node> = Vec::new();
        let mut paths = Vec::new();
        for &gva in &pages {
            let mut parent = None;
            let path = (1..=highest).rev().map(|level| {
                let number = |gva: Gva| gva.raw() >> width.shift(level);
                let same = |node: &Node| node.level == level && number(node.gva) == number(gva);
                let at = nodes.iter().position(same).unwrap_or_else(|| {
                    nodes.push(Node { level, gva, parent });
                    nodes.len() - 1
                });
                parent = Some(at);
                at
            });
            paths.push(path.collect());
        }
        Tree { pages, nodes, paths }
    }

    /// Parents stand before their children.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The prefixes of all pages.
    pub(crate) fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// Whether the page of an address is among these.
    pub(crate) fn contains(&self, gva: Gva) -> bool {
        self.path(gva).is_some()
    }

    /// The prefixes of an address; `None` if its page is not among these.
    pub(crate) fn path(&self, gva: Gva) -> Option<&Path> {
        let page = Gva::new(gva.raw() & !0xfff);
        self.pages.binary_search(&page).ok().map(|at| &self.paths[at])
    }
}

/// The linear pages of a program and their prefixes.
#[derive(Debug)]
pub struct Universe {
    long: Tree,
    pae: Tree,
    legacy: Tree,
}

impl Universe {
    /// The pages of random programs: both choices of index at each level, some of their neighbours,
    /// and the window onto [`HOT`] and [`HIGH`].
    pub fn of_programs() -> Universe {
        let tree = (0..16).map(tree_page).chain((0..ADJACENT).map(adjacent_page));
        let window = HOT.iter().chain(&HIGH).map(|gfn| Gva::new(WINDOW + gfn * 4096));
        let pages: Vec<Gva> = tree.chain(window).collect();
        let narrow = pages.iter().copied().map(narrow).collect();
        Universe::with_narrow(pages, narrow)
    }

    /// A universe of these pages. Those below 4 GiB are there in every format.
    pub fn new(pages: Vec<Gva>) -> Universe {
        let narrow = pages.iter().copied().filter(|gva| gva.raw() >> 32 == 0).collect();
        Universe::with_narrow(pages, narrow)
    }

    fn with_narrow(mut pages: Vec<Gva>, mut narrow: Vec<Gva>) -> Universe {
        for pages in [&mut pages, &mut narrow] {
            pages.sort();
            pages.dedup();
        }
        Universe {
            long: Tree::new(pages, 4, Width::Eight),
            pae: Tree::new(narrow.clone(), 2, Width::Eight),
            legacy: Tree::new(narrow, 2, Width::Four { pse: true }),
        }
    }

    /// The pages of 4-level paging, sorted.
    pub fn pages(&self) -> &[Gva] {
        &self.long.pages
    }

    /// The pages that a CPU accesses in this mode, sorted.
    pub fn pages_in(&self, mode: &PagingMode) -> &[Gva] {
        &self.tree(mode).pages
    }

    /// What a CPU's tables divide in this mode.
    pub(crate) fn tree(&self, mode: &PagingMode) -> &Tree {
        match mode {
            PagingMode::Off | PagingMode::Long4 { .. } => &self.long,
            PagingMode::Pae { .. } => &self.pae,
            PagingMode::Legacy32 { .. } => &self.legacy,
        }
    }

    /// How many nodes the largest tree has.
    pub(crate) fn most_nodes(&self) -> usize {
        [&self.long, &self.pae, &self.legacy]
            .map(|tree| tree.nodes.len())
            .into_iter()
            .max()
            .unwrap_or(0)
    }

    /// Whether the page of an address is accessed in 4-level paging.
    pub fn contains(&self, gva: Gva) -> bool {
        self.long.contains(gva)
    }
}

/// The linear address of 32 bits that stands for one of a program: in 32-bit and PAE paging.
pub fn narrow(gva: Gva) -> Gva {
    let raw = gva.raw();
    let high = WINDOW + (HIGH_FRAMES.start << 12);
    Gva::new(match raw {
        0..0x1_0000_0000 => raw,
        _ if (WINDOW..WINDOW + (END << 12)).contains(&raw) => raw - WINDOW + NARROW_WINDOW,
        _ if (high..high + (512 << 12)).contains(&raw) => raw - high + NARROW_HIGH,
        _ => raw >> 63 << 31 | raw & 0x7fff_ffff,
    })
}

/// One of the 16 pages whose index is one of two at each level.
pub fn tree_page(n: u64) -> Gva {
    let bit = |i: u64| n >> i & 1;
    let top = if bit(3) == 0 { 0 } else { 0xffff_ff80_0000_0000 };
    Gva::new(top | bit(2) << 30 | bit(1) << 21 | bit(0) << 12)
}

/// How many pages there are that lie side by side.
pub const ADJACENT: u64 = 12;

/// One of the pages that lie side by side: the first eight of a page table, then the first of each
/// of the next page tables.
pub fn adjacent_page(n: u64) -> Gva {
    let n = n % ADJACENT;
    Gva::new(if n < 8 { n << 12 } else { (n - 7) << 21 })
}

/// Where the window shows a guest-physical address.
pub fn window(gpa: Gpa) -> Gva {
    Gva::new(WINDOW + gpa.raw())
}

/// The hot frame of this number.
pub fn hot(n: usize) -> Gfn {
    Gfn::new(HOT[n % HOT.len()])
}

/// All frames that programs use.
pub fn used() -> impl Iterator<Item = Gfn> {
    HOT.into_iter().chain(HIGH).map(Gfn::new)
}

/// All other frames that may be memory.
pub fn unused() -> impl Iterator<Item = Gfn> {
    let used = |gfn: &u64| HOT.contains(gfn) || HIGH.contains(gfn);
    (0..END).chain(HIGH_FRAMES).filter(move |gfn| !used(gfn)).map(Gfn::new)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pages_of_programs_stay_apart_in_32_bits() {
        let universe = Universe::of_programs();
        let narrow: BTreeSet<Gva> = universe.pages().iter().copied().map(narrow).collect();
        assert_eq!(narrow.len(), universe.pages().len());
        assert!(narrow.iter().all(|gva| gva.raw() >> 32 == 0));
        // The tree takes every PDPTE, both halves of a 4 MiB page, and neighbours in a table.
        let of_tree: BTreeSet<Gva> = (0..16).map(tree_page).map(super::narrow).collect();
        let numbers = |shift: u32| {
            of_tree.iter().map(|gva| gva.raw() >> shift).collect::<BTreeSet<_>>().len()
        };
        assert_eq!([30, 22, 21, 12].map(numbers), [4, 4, 8, 16]);
    }
}
