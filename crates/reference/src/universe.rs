//! The small world that random programs live in: few frames and few linear addresses, so that
//! things collide.

use std::ops::Range;

use umbra_paging::{Gfn, Gpa, Gva};

use crate::hardware::shift;

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

/// The linear pages of a program and their prefixes.
#[derive(Debug)]
pub struct Universe {
    pages: Vec<Gva>,
    nodes: Vec<Node>,
    /// For each page its nodes, from level 4 down.
    paths: Vec<[usize; 4]>,
}

impl Universe {
    /// The pages of random programs: both choices of index at each level, some of their neighbours,
    /// and the window onto [`HOT`] and [`HIGH`].
    pub fn of_programs() -> Universe {
        let tree = (0..16).map(tree_page).chain((0..ADJACENT).map(adjacent_page));
        let window = HOT.iter().chain(&HIGH).map(|gfn| Gva::new(WINDOW + gfn * 4096));
        Universe::new(tree.chain(window).collect())
    }

    /// A universe of these pages.
    pub fn new(mut pages: Vec<Gva>) -> Universe {
        pages.sort();
        pages.dedup();
        let mut nodes: Vec<Node> = Vec::new();
        let mut paths = Vec::new();
        for &gva in &pages {
            let mut parent = None;
            paths.push([4u8, 3, 2, 1].map(|level| {
                let same = |node: &Node| {
                    node.level == level
                        && node.gva.raw() >> shift(level) == gva.raw() >> shift(level)
                };
                let at = nodes.iter().position(same).unwrap_or_else(|| {
                    nodes.push(Node { level, gva, parent });
                    nodes.len() - 1
                });
                parent = Some(at);
                at
            }));
        }
        Universe { pages, nodes, paths }
    }

    /// The pages, sorted.
    pub fn pages(&self) -> &[Gva] {
        &self.pages
    }

    /// Parents stand before their children.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The prefixes of all pages, from level 4 down.
    pub(crate) fn paths(&self) -> &[[usize; 4]] {
        &self.paths
    }

    /// The prefixes of an address, from level 4 down; `None` if its page is not of this universe.
    pub(crate) fn path(&self, gva: Gva) -> Option<&[usize; 4]> {
        let page = Gva::new(gva.raw() & !0xfff);
        self.pages.binary_search(&page).ok().map(|at| &self.paths[at])
    }

    /// Whether the page of an address is of this universe.
    pub fn contains(&self, gva: Gva) -> bool {
        self.path(gva).is_some()
    }
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
