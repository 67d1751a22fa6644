//! What is known of each guest frame: its shadows, whether writes to it are seen, and what lies
//! behind it and its neighbours.

mod backing;
mod pdptes;
mod tracking;

pub(crate) use backing::RegionBacking;
pub(crate) use tracking::Tracking;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use umbra_paging::{Gfn, Level};

use crate::format::{GENERATIONS, Role, ShadowKey};
use crate::tables::{Pool, Tables};
use crate::{Backing, GuestMemory, ShadowFrame, VcpuId};

use backing::Remembered;
use pdptes::PdpteRegisters;
use tracking::Shadows;

/// Frames in a 2 MiB region.
pub(crate) const REGION: u64 = Level::L2.pages();
/// Frames that a `Direct` page of `L2` covers.
const GIB: u64 = Level::L3.pages();
/// How many frames may be unsync at a time: all of them are looked at when the guest flushes.
const MAX_UNSYNC: usize = 8;

#[derive(Default)]
struct Region {
    /// Tracked frames inside.
    tracked: u16,
    /// The `Direct` page that maps it by 4 KiB pages.
    direct: Option<ShadowFrame>,
    /// Nothing until asked for, and after a change.
    backing: Remembered,
}

pub(crate) struct GuestFrames {
    frames: Vec<Shadows>,
    regions: Vec<Region>,
    /// The `Direct` page of each GiB, at least the four that PAE paging can address.
    gibs: Vec<Option<ShadowFrame>>,
    /// The PDPTE registers of each vCPU.
    pdptes: Vec<PdpteRegisters>,
    /// The page of [`Role::Nowhere`].
    nowhere: Option<ShadowFrame>,
    /// The frames that are [`Tracking::Unsync`], the first of them first.
    unsync_frames: Vec<Gfn>,
    /// All shadows of all of these are of the lowest level: see `lifecycle/unsync.rs`.
    only_leaves: bool,
    /// How many pages of [`Role::PaeRoot`] there are.
    pae_roots: u32,
    /// Of the gpa->hpa map: MMIO entries of another generation count as Trap.
    generation: u32,
}

impl GuestFrames {
    pub(crate) fn new(end: Gfn, vcpus: usize) -> GuestFrames {
        let end = end.raw();
        GuestFrames {
            frames: vec![Shadows::UNTRACKED; end as usize],
            regions: (0..end.div_ceil(REGION)).map(|_| Region::default()).collect(),
            gibs: vec![None; end.div_ceil(GIB).max(4) as usize],
            pdptes: (0..vcpus).map(|_| PdpteRegisters::default()).collect(),
            nowhere: None,
            unsync_frames: Vec::with_capacity(MAX_UNSYNC),
            only_leaves: true,
            pae_roots: 0,
            generation: 0,
        }
    }

    /// The bytes that this takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.frames) + size_of_val(&*self.regions) + size_of_val(&*self.gibs)
    }

    /// Whether `gfn` is a frame that can be RAM at all.
    pub(crate) fn knows(&self, gfn: Gfn) -> bool {
        gfn.raw() < self.frames.len() as u64
    }

    /// Whether the shadow of a table in this frame can follow it: not if the frame is no memory.
    pub(crate) fn can_hold_table(&self, memory: &impl GuestMemory, gfn: Gfn) -> bool {
        self.knows(gfn) && memory.backing(gfn) != Backing::None
    }
}

/// Tracking.
impl GuestFrames {
    fn shadows_of(&self, gfn: Gfn) -> Shadows {
        self.frames.get(gfn.raw() as usize).copied().unwrap_or(Shadows::UNTRACKED)
    }

    /// Whether writes to `gfn` are seen.
    pub(crate) fn tracking(&self, gfn: Gfn) -> Tracking {
        self.shadows_of(gfn).tracking()
    }

    /// Whether guest writes to `gfn` must be seen.
    pub(crate) fn is_tracked(&self, gfn: Gfn) -> bool {
        self.tracking(gfn) == Tracking::Tracked
    }

    /// Whether the page is a shadow of a detached frame.
    pub(crate) fn is_detached(&self, key: ShadowKey) -> bool {
        key.role.is_of_frame() && self.tracking(key.gfn) == Tracking::Detached
    }

    /// Whether the page is a shadow of an unsync frame.
    pub(crate) fn is_unsync(&self, key: ShadowKey) -> bool {
        matches!(key.role, Role::Guest { .. }) && self.tracking(key.gfn) == Tracking::Unsync
    }

    /// Whether every write to the page's guest table is seen, so that its entries may be
    /// NotPresent.
    pub(crate) fn is_seen(&self, memory: &impl GuestMemory, key: ShadowKey) -> bool {
        matches!(key.role, Role::Guest { .. })
            && self.is_tracked(key.gfn)
            && memory.backing(key.gfn) != Backing::None
    }

    /// Ends the tracking of a frame; its shadows stay listed, but nothing leads to them.
    pub(crate) fn detach(&mut self, gfn: Gfn) {
        self.change(gfn, Tracking::Tracked, Tracking::Detached);
    }

    /// The opposite of [`GuestFrames::detach`].
    pub(crate) fn attach(&mut self, gfn: Gfn) {
        self.change(gfn, Tracking::Detached, Tracking::Tracked);
    }

    /// Ends the tracking of a frame; its shadows stay listed. `leaf` tells whether all of them are
    /// of the lowest level: frames of both kinds do not go together.
    pub(crate) fn unsync(&mut self, gfn: Gfn, leaf: bool) {
        debug_assert!(self.unsync_frames.is_empty() || self.only_leaves == leaf);
        self.change(gfn, Tracking::Tracked, Tracking::Unsync);
        self.unsync_frames.push(gfn);
        self.only_leaves = leaf;
    }

    /// The opposite of [`GuestFrames::unsync`]: without shadows there is nothing to track.
    pub(crate) fn resync(&mut self, gfn: Gfn) {
        self.unsync_frames.retain(|&other| other != gfn);
        let tracked = self.first(gfn).is_some();
        self.change(
            gfn,
            Tracking::Unsync,
            if tracked { Tracking::Tracked } else { Tracking::Untracked },
        );
    }

    fn change(&mut self, gfn: Gfn, from: Tracking, to: Tracking) {
        let word = &mut self.frames[gfn.raw() as usize];
        debug_assert_eq!(word.tracking(), from);
        *word = word.with_tracking(to);
        let region = self.region_mut(gfn);
        region.tracked -= u16::from(from == Tracking::Tracked);
        region.tracked += u16::from(to == Tracking::Tracked);
    }

    /// The unsync frames, the first of them first.
    pub(crate) fn unsync_frames(&self) -> &[Gfn] {
        &self.unsync_frames
    }

    pub(crate) fn has_unsync(&self) -> bool {
        !self.unsync_frames.is_empty()
    }

    /// Whether what leads to the leaf tables may be out of date, too.
    pub(crate) fn has_unsync_above_leaves(&self) -> bool {
        self.has_unsync() && !self.only_leaves
    }

    /// Whether the frame is an unsync one of which all shadows are leaf tables.
    pub(crate) fn is_unsync_leaf(&self, gfn: Gfn) -> bool {
        self.only_leaves && self.tracking(gfn) == Tracking::Unsync
    }

    pub(crate) fn unsync_is_full(&self) -> bool {
        self.unsync_frames.len() == MAX_UNSYNC
    }

    /// Whether any frame of the region is tracked: then no large page may map it.
    pub(crate) fn region_is_tracked(&self, region: u32) -> bool {
        self.regions[region as usize].tracked != 0
    }
}

/// The PDPTE registers.
impl GuestFrames {
    /// What a PDPTE of a vCPU references.
    pub(crate) fn directory(&self, vcpu: VcpuId, index: usize) -> Option<ShadowKey> {
        self.pdptes[vcpu.index()].directory(index)
    }

    /// The vCPU has loaded its PDPTE registers.
    pub(crate) fn set_directories(&mut self, vcpu: VcpuId, directories: [Option<ShadowKey>; 4]) {
        self.pdptes[vcpu.index()].load(directories);
    }
}

/// The gpa->hpa map.
impl GuestFrames {
    /// The generation of the map.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The map is about to change. True if the generations begin anew.
    pub(crate) fn next_generation(&mut self) -> bool {
        self.generation = (self.generation + 1) % GENERATIONS;
        self.generation == 0
    }

    /// The region number of `gfn`, if any of it can be RAM.
    pub(crate) fn region(&self, gfn: Gfn) -> Option<u32> {
        let region = gfn.raw() / REGION;
        (region < self.regions.len() as u64).then_some(region as u32)
    }

    fn region_mut(&mut self, gfn: Gfn) -> &mut Region {
        &mut self.regions[(gfn.raw() / REGION) as usize]
    }

    pub(crate) fn region_backing(&self, memory: &impl GuestMemory, region: u32) -> RegionBacking {
        let remembered = &self.regions[region as usize].backing;
        remembered.get().unwrap_or_else(|| {
            let backing = RegionBacking::ask(memory, Gfn::new(u64::from(region) * REGION));
            remembered.set(backing);
            backing
        })
    }

    /// Notes that a frame lies elsewhere now than its neighbours.
    pub(crate) fn is_in_pieces(&mut self, gfn: Gfn) {
        self.region_mut(gfn).backing.set(RegionBacking::Pieces);
    }

    /// Forgets what lay behind the region of `gfn`.
    pub(crate) fn forget_backing(&mut self, gfn: Gfn) {
        self.region_mut(gfn).backing.forget();
    }
}

/// The shadows.
impl GuestFrames {
    /// The first of the shadows of `gfn`: the others follow by [`Pool::next_of_gfn`].
    pub(crate) fn first(&self, gfn: Gfn) -> Option<ShadowFrame> {
        self.shadows_of(gfn).first()
    }

    /// The shadows of `gfn`.
    pub(crate) fn shadows<'a>(
        &'a self,
        pool: &'a Pool,
        gfn: Gfn,
    ) -> impl Iterator<Item = ShadowFrame> + 'a {
        core::iter::successors(self.first(gfn), |&frame| pool.next_of_gfn(frame))
    }

    /// A page for the PDPTEs in a frame.
    #[inline]
    pub(crate) fn pae_root(&self, pool: &Pool, gfn: Gfn) -> Option<ShadowFrame> {
        if self.pae_roots == 0 {
            return None;
        }
        self.shadows(pool, gfn).find(|&frame| matches!(pool.key(frame).role, Role::PaeRoot { .. }))
    }

    /// The live page of exactly this key.
    pub(crate) fn find(&self, tables: &Tables, key: ShadowKey) -> Option<ShadowFrame> {
        match key.role {
            Role::Guest { .. } | Role::PaeRoot { .. } => {
                self.shadows(tables.pool(), key.gfn).find(|&frame| tables.key(frame) == key)
            }
            Role::Direct { .. } | Role::Pdptes { .. } | Role::Nowhere => self.identity(key),
        }
    }

    fn identity(&self, key: ShadowKey) -> Option<ShadowFrame> {
        let gfn = key.gfn.raw();
        match key.role {
            Role::Direct { level: Level::L1 } => self.regions.get((gfn / REGION) as usize)?.direct,
            Role::Direct { .. } => *self.gibs.get((gfn / GIB) as usize)?,
            Role::Pdptes { vcpu } => self.pdptes[vcpu.index()].page(),
            Role::Nowhere => self.nowhere,
            Role::Guest { .. } | Role::PaeRoot { .. } => None,
        }
    }

    fn set_identity(&mut self, key: ShadowKey, frame: Option<ShadowFrame>) -> Option<ShadowFrame> {
        let gfn = key.gfn.raw();
        let place = match key.role {
            Role::Direct { level: Level::L1 } => &mut self.regions[(gfn / REGION) as usize].direct,
            Role::Direct { .. } => &mut self.gibs[(gfn / GIB) as usize],
            Role::Pdptes { vcpu } => self.pdptes[vcpu.index()].page_mut(),
            Role::Nowhere => &mut self.nowhere,
            Role::Guest { .. } | Role::PaeRoot { .. } => {
                unreachable!("shadows of guest tables are listed by frame")
            }
        };
        core::mem::replace(place, frame)
    }

    /// Whether a search for this key finds the page in `frame`: for the auditor.
    pub(crate) fn is_listed(&self, pool: &Pool, key: ShadowKey, frame: ShadowFrame) -> bool {
        let found = match key.role {
            Role::Guest { .. } | Role::PaeRoot { .. } => {
                self.shadows(pool, key.gfn).find(|&at| pool.key(at) == key)
            }
            Role::Direct { .. } | Role::Pdptes { .. } | Role::Nowhere => self.identity(key),
        };
        found == Some(frame)
    }

    /// Whether pages of this key are listed, so that [`GuestFrames::find`] finds them. A root
    /// that is no memory is not: there is nothing to follow.
    pub(crate) fn lists(&self, key: ShadowKey) -> bool {
        !key.role.is_of_frame() || self.knows(key.gfn)
    }

    /// Lists a new page under its key. True if its guest frame is tracked only from now on.
    pub(crate) fn insert(
        &mut self,
        tables: &mut Tables,
        key: ShadowKey,
        frame: ShadowFrame,
    ) -> bool {
        if !self.lists(key) {
            return false;
        }
        if !key.role.is_of_frame() {
            let before = self.set_identity(key, Some(frame));
            debug_assert!(before.is_none());
            return false;
        }
        debug_assert!(!self.is_detached(key));
        self.pae_roots += u32::from(matches!(key.role, Role::PaeRoot { .. }));
        let word = &mut self.frames[key.gfn.raw() as usize];
        tables.set_next_of_gfn(frame, word.first());
        *word = word.with_first(Some(frame));
        let newly_tracked = word.tracking() == Tracking::Untracked;
        if newly_tracked {
            self.change(key.gfn, Tracking::Untracked, Tracking::Tracked);
        }
        newly_tracked
    }

    /// Takes a page off the list of its key. True if its guest frame is no longer tracked from
    /// now on.
    pub(crate) fn remove(
        &mut self,
        tables: &mut Tables,
        key: ShadowKey,
        frame: ShadowFrame,
    ) -> bool {
        if !self.lists(key) {
            return false;
        }
        if !key.role.is_of_frame() {
            self.set_identity(key, None);
            return false;
        }
        self.pae_roots -= u32::from(matches!(key.role, Role::PaeRoot { .. }));
        let next = tables.pool().next_of_gfn(frame);
        tables.set_next_of_gfn(frame, None);
        let word = &mut self.frames[key.gfn.raw() as usize];
        let first = word.first().expect("a shadow page is listed under its guest frame");
        if first == frame {
            *word = word.with_first(next);
        } else {
            let mut before = first;
            while tables.pool().next_of_gfn(before) != Some(frame) {
                before = tables
                    .pool()
                    .next_of_gfn(before)
                    .expect("a shadow page is listed under its guest frame");
            }
            tables.set_next_of_gfn(before, next);
        }
        let tracking = word.tracking();
        if word.first().is_some() {
            return false;
        }
        if tracking == Tracking::Unsync {
            // It stays unsync without shadows: the write that it was released for is yet to come.
            // One of leaf tables is writable already.
            if !self.only_leaves {
                return false;
            }
            self.unsync_frames.retain(|&other| other != key.gfn);
        }
        self.change(key.gfn, tracking, Tracking::Untracked);
        tracking == Tracking::Tracked
    }
}

impl GuestFrames {
    /// What is wrong with the bookkeeping, in words: states of frames, the counts of tracked ones,
    /// and the backings that are remembered.
    pub(crate) fn audit(&self, memory: &impl GuestMemory, pool: &Pool) -> Option<String> {
        let mut tracked = vec![0; self.regions.len()];
        for (gfn, word) in self.frames.iter().enumerate() {
            let gfn = Gfn::new(gfn as u64);
            if word.first().is_some_and(|frame| pool.live_key(frame).is_none()) {
                return Some(alloc::format!("{gfn:?} lists a page that is gone"));
            }
            let tracking = word.tracking();
            let agrees = match tracking {
                Tracking::Untracked => word.first().is_none(),
                Tracking::Tracked | Tracking::Detached => word.first().is_some(),
                Tracking::Unsync => true,
            };
            if !agrees || self.unsync_frames.contains(&gfn) != (tracking == Tracking::Unsync) {
                return Some(alloc::format!("{gfn:?} is {tracking:?}"));
            }
            tracked[(gfn.raw() / REGION) as usize] += u16::from(tracking == Tracking::Tracked);
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
            let wrong = |&backing: &RegionBacking| backing != RegionBacking::ask(memory, first);
            let backing = region.backing.get().filter(wrong);
            backing.map(|backing| alloc::format!("{first:?}: {backing:?} is remembered"))
        })
    }
}
