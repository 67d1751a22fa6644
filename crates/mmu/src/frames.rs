//! What is known of each guest frame: its shadows, and what lies behind it and its neighbours.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use umbra_paging::{Gfn, Hfn, Level};

use crate::format::{Role, Source};
use crate::tables::{Pool, Tables};
use crate::{Backing, GuestMemory};

/// Frames in a 2 MiB region.
pub(crate) const REGION: u64 = Level::L2.pages();
/// Frames that a `Direct` page of `L2` covers.
const GIB: u64 = Level::L3.pages();
/// How many frames may be loose at a time. Only writes that cannot be emulated need any.
const MAX_LOOSE: usize = 8;

/// No shadow page.
const NONE: u32 = u32::MAX;
/// Set beside the first shadow page of a detached frame.
const DETACHED: u32 = 1 << 31;

/// What lies behind a 2 MiB region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionBacking {
    /// One aligned piece of host memory, writable or not throughout.
    Whole { hfn: Hfn, writable: bool },
    /// Several pieces, or holes.
    Pieces,
    /// No memory at all.
    Empty,
}

struct Region {
    /// Tracked frames inside.
    tracked: u16,
    /// The `Direct` page that maps it by 4 KiB pages.
    direct: u32,
    /// `None` until asked for, and after a change.
    backing: Option<RegionBacking>,
}

pub(crate) struct Frames {
    /// The first shadow page built from each frame; with [`DETACHED`] if it is detached.
    tables: Vec<u32>,
    regions: Vec<Region>,
    /// The `Direct` page of each GiB, at least the four that PAE paging can address.
    gibs: Vec<u32>,
    pae_root: u32,
    /// Frames with shadows whose writes are not seen: see [`crate::loose`].
    loose: Vec<Gfn>,
}

fn some(frame: u32) -> Option<u32> {
    (frame != NONE).then_some(frame)
}

impl Frames {
    pub(crate) fn new(end: Gfn) -> Frames {
        let end = end.raw();
        let region = || Region { tracked: 0, direct: NONE, backing: None };
        Frames {
            tables: vec![NONE; end as usize],
            regions: (0..end.div_ceil(REGION)).map(|_| region()).collect(),
            gibs: vec![NONE; end.div_ceil(GIB).max(4) as usize],
            pae_root: NONE,
            loose: Vec::with_capacity(MAX_LOOSE),
        }
    }

    /// The bytes that this takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.tables) + size_of_val(&*self.regions) + size_of_val(&*self.gibs)
    }

    /// Whether `gfn` is a frame that can be RAM at all.
    pub(crate) fn knows(&self, gfn: Gfn) -> bool {
        gfn.raw() < self.tables.len() as u64
    }

    /// The region number of `gfn`, if any of it can be RAM.
    pub(crate) fn region(&self, gfn: Gfn) -> Option<u32> {
        let region = gfn.raw() / REGION;
        (region < self.regions.len() as u64).then_some(region as u32)
    }

    /// The first of the shadows of `gfn`: the others follow by [`Pool::next_of_gfn`].
    pub(crate) fn tables(&self, gfn: Gfn) -> Option<u32> {
        self.tables.get(gfn.raw() as usize).copied().and_then(some).map(|first| first & !DETACHED)
    }

    /// Whether guest writes to `gfn` must be seen.
    pub(crate) fn is_tracked(&self, gfn: Gfn) -> bool {
        // Neither without shadows nor detached: both have the bit.
        self.tables.get(gfn.raw() as usize).is_some_and(|first| first & DETACHED == 0) && !self.is_loose(gfn)
    }

    pub(crate) fn is_loose(&self, gfn: Gfn) -> bool {
        !self.loose.is_empty() && self.loose.contains(&gfn)
    }

    /// Whether `gfn` has shadows that nothing leads to, so that the guest may write it: see [`crate::detach`].
    pub(crate) fn is_detached(&self, gfn: Gfn) -> bool {
        self.tables.get(gfn.raw() as usize).is_some_and(|&first| first != NONE && first & DETACHED != 0)
    }

    /// Ends the tracking of a frame; its shadows stay listed.
    pub(crate) fn detach(&mut self, gfn: Gfn) {
        debug_assert!(self.is_tracked(gfn));
        self.tables[gfn.raw() as usize] |= DETACHED;
        self.region_mut(gfn).tracked -= 1;
    }

    /// The opposite of [`Frames::detach`].
    pub(crate) fn attach(&mut self, gfn: Gfn) {
        debug_assert!(self.is_detached(gfn));
        self.tables[gfn.raw() as usize] &= !DETACHED;
        self.region_mut(gfn).tracked += 1;
    }

    pub(crate) fn loose(&self) -> &[Gfn] {
        &self.loose
    }

    pub(crate) fn loose_is_full(&self) -> bool {
        self.loose.len() == MAX_LOOSE
    }

    /// Marks a tracked frame as loose: its tracking ends, its shadows stay listed.
    pub(crate) fn loosen(&mut self, gfn: Gfn) {
        debug_assert!(self.is_tracked(gfn));
        self.region_mut(gfn).tracked -= 1;
        self.loose.push(gfn);
    }

    /// The opposite of [`Frames::loosen`]: without shadows there is nothing to track.
    pub(crate) fn tighten(&mut self, gfn: Gfn) {
        self.loose.retain(|&other| other != gfn);
        if self.tables(gfn).is_some() {
            self.region_mut(gfn).tracked += 1;
        }
    }

    /// Whether any frame of the region is tracked: then no large page may map it.
    pub(crate) fn region_is_tracked(&self, region: u32) -> bool {
        self.regions[region as usize].tracked != 0
    }

    fn region_mut(&mut self, gfn: Gfn) -> &mut Region {
        &mut self.regions[(gfn.raw() / REGION) as usize]
    }

    pub(crate) fn region_backing(&mut self, memory: &impl GuestMemory, region: u32) -> RegionBacking {
        let first = Gfn::new(u64::from(region) * REGION);
        *self.regions[region as usize].backing.get_or_insert_with(|| region_backing(memory, first))
    }

    /// Notes that a frame lies elsewhere now than its neighbours.
    pub(crate) fn is_in_pieces(&mut self, gfn: Gfn) {
        self.region_mut(gfn).backing = Some(RegionBacking::Pieces);
    }

    /// Forgets what lay behind the region of `gfn`.
    pub(crate) fn forget_backing(&mut self, gfn: Gfn) {
        self.region_mut(gfn).backing = None;
    }

    /// The live page of a source, among shadows of the same guest frame the one that is `same`.
    pub(crate) fn find(&self, pool: &Pool, source: Source, same: impl Fn(Source) -> bool) -> Option<u32> {
        match source.role {
            Role::Guest { .. } => {
                core::iter::successors(self.tables(source.gfn), |&frame| pool.next_of_gfn(frame))
                    .find(|&frame| same(pool.source(frame)))
            }
            Role::Direct { .. } | Role::PaeRoot => self.place(source).copied().and_then(some),
        }
    }

    fn place(&self, source: Source) -> Option<&u32> {
        let gfn = source.gfn.raw();
        match source.role {
            Role::Direct { level: Level::L1 } => {
                self.regions.get((gfn / REGION) as usize).map(|region| &region.direct)
            }
            Role::Direct { .. } => self.gibs.get((gfn / GIB) as usize),
            Role::PaeRoot => Some(&self.pae_root),
            Role::Guest { .. } => None,
        }
    }

    fn place_mut(&mut self, source: Source) -> &mut u32 {
        let gfn = source.gfn.raw();
        match source.role {
            Role::Direct { level: Level::L1 } => &mut self.regions[(gfn / REGION) as usize].direct,
            Role::Direct { .. } => &mut self.gibs[(gfn / GIB) as usize],
            Role::PaeRoot => &mut self.pae_root,
            Role::Guest { .. } => &mut self.tables[gfn as usize],
        }
    }

    /// Whether pages of this source are listed, so that [`Frames::find`] finds them. A root that is no memory
    /// is not: there is nothing to follow.
    pub(crate) fn lists(&self, source: Source) -> bool {
        !matches!(source.role, Role::Guest { .. }) || self.knows(source.gfn)
    }

    /// Lists a new page under its source. True if its guest frame is tracked only from now on.
    pub(crate) fn insert(&mut self, tables: &mut Tables, source: Source, frame: u32) -> bool {
        if !self.lists(source) {
            return false;
        }
        debug_assert!(!self.is_detached(source.gfn) || !matches!(source.role, Role::Guest { .. }));
        let before = core::mem::replace(self.place_mut(source), frame);
        if !matches!(source.role, Role::Guest { .. }) {
            debug_assert!(before == NONE);
            return false;
        }
        tables.set_next_of_gfn(frame, some(before));
        let newly_tracked = before == NONE && !self.is_loose(source.gfn);
        if newly_tracked {
            self.region_mut(source.gfn).tracked += 1;
        }
        newly_tracked
    }

    /// Takes a page off the list of its source. True if its guest frame is no longer tracked from now on.
    pub(crate) fn remove(&mut self, tables: &mut Tables, source: Source, frame: u32) -> bool {
        if !self.lists(source) {
            return false;
        }
        if !matches!(source.role, Role::Guest { .. }) {
            *self.place_mut(source) = NONE;
            return false;
        }
        let next = tables.pool().next_of_gfn(frame);
        tables.set_next_of_gfn(frame, None);
        let detached = self.is_detached(source.gfn);
        let first = self.place_mut(source);
        if *first & !DETACHED == frame {
            *first = next.map_or(NONE, |next| next | (*first & DETACHED));
        } else {
            let mut before = *first & !DETACHED;
            while tables.pool().next_of_gfn(before) != Some(frame) {
                before =
                    tables.pool().next_of_gfn(before).expect("a shadow page is listed under its guest frame");
            }
            tables.set_next_of_gfn(before, next);
        }
        // A loose frame stays loose without shadows: the write that it was released for is yet to come.
        if self.tables(source.gfn).is_some() || self.is_loose(source.gfn) || detached {
            return false;
        }
        self.region_mut(source.gfn).tracked -= 1;
        true
    }
}

impl Frames {
    /// What is wrong with the bookkeeping, in words: the counts of tracked frames, and the backings that are
    /// remembered.
    pub(crate) fn audit(&self, memory: &impl GuestMemory, pool: &Pool) -> Option<String> {
        let mut tracked = vec![0; self.regions.len()];
        for (gfn, _) in self.tables.iter().enumerate().filter(|&(_, &frame)| frame != NONE) {
            let gfn = Gfn::new(gfn as u64);
            if self.tables(gfn).is_some_and(|frame| pool.live_source(frame).is_none()) {
                return Some(alloc::format!("{gfn:?} lists a page that is gone"));
            }
            tracked[(gfn.raw() / REGION) as usize] += u16::from(self.is_tracked(gfn));
        }
        let mut regions = self.regions.iter().zip(tracked).enumerate();
        regions.find_map(|(n, (region, tracked))| {
            let first = Gfn::new(n as u64 * REGION);
            if region.tracked != tracked {
                return Some(alloc::format!(
                    "{first:?}: {} tracked frames, {tracked} counted",
                    region.tracked
                ));
            }
            let backing = region.backing.filter(|&backing| backing != region_backing(memory, first));
            backing.map(|backing| alloc::format!("{first:?}: {backing:?} is remembered"))
        })
    }
}

fn region_backing(memory: &impl GuestMemory, first: Gfn) -> RegionBacking {
    let start = memory.backing(first);
    let rest = (1..REGION).map(|n| (n, memory.backing(first.add(n))));
    match start {
        Backing::None if rest.clone().all(|(_, backing)| backing == Backing::None) => RegionBacking::Empty,
        Backing::Ram { hfn, writable }
            if hfn.raw().is_multiple_of(REGION)
                && rest.clone().all(|(n, backing)| backing == Backing::Ram { hfn: hfn.add(n), writable }) =>
        {
            RegionBacking::Whole { hfn, writable }
        }
        _ => RegionBacking::Pieces,
    }
}
