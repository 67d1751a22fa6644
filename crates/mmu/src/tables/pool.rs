//! Shadow pages: who owns each frame of the pool, and what for.
//!
//! A frame is free, or it holds a live page, or it is in *quarantine*: its page is gone, but the
//! hardware may still have cached something of it. Only a flush moves it from there to the free
//! ones (invariant I5).

use alloc::vec::Vec;

use umbra_paging::{Gfn, Level};

use crate::ShadowFrame;
use crate::format::ShadowKey;

/// A live page. The generation makes a handle to a page that has been zapped useless, also when its
/// frame holds another page by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageId {
    frame: ShadowFrame,
    generation: u32,
}

impl PageId {
    /// Its frame, or that of its successor there.
    pub(crate) fn frame(self) -> ShadowFrame {
        self.frame
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameState {
    Free,
    /// Waits for a flush. The guest frame, if it was tracked, must stay protected until then.
    Quarantine(Option<Gfn>),
    Live(ShadowKey),
}

#[derive(Clone, Copy)]
struct Frame {
    state: FrameState,
    generation: u32,
    /// vCPUs that have it loaded or may load it, and roots that refer to it by an entry that cannot
    /// be Trapping.
    pins: u32,
    /// A bit for each eight entries: set if one of them may be anything but NotPresent.
    busy: u64,
    /// Its entries may refer to other shadow pages.
    refers: bool,
    /// The copy of its guest table: see [`super::snapshot`].
    copy: Option<u8>,
    /// It lies where its guest frame lay: see [`crate::ShadowFrames::swap_frames`].
    moved: bool,
    /// The number of the flush that will be the first after a reference to it was last removed:
    /// before that flush, the CPU may hold the reference.
    cached_until: u64,
    /// Other shadows of the same guest frame.
    next_of_gfn: Option<ShadowFrame>,
    /// Live pages: the order in which they were last linked. Free and quarantine frames: `newer`
    /// chains them.
    older: Option<ShadowFrame>,
    newer: Option<ShadowFrame>,
}

/// What storing an entry concerns beside it.
pub(super) struct Stored {
    /// References to other shadow pages: the entry may refer to one, or did so.
    pub(super) refers: bool,
    /// The copy of the guest table.
    pub(super) copy: Option<u8>,
}

pub(crate) struct Pool {
    frames: Vec<Frame>,
    free: Option<ShadowFrame>,
    quarantine: Option<ShadowFrame>,
    oldest: Option<ShadowFrame>,
    newest: Option<ShadowFrame>,
    live: u32,
    /// Flushes so far.
    flushes: u64,
}

impl Pool {
    pub(super) fn new(count: u32) -> Pool {
        let frame = |n: u32| Frame {
            state: FrameState::Free,
            generation: 0,
            pins: 0,
            busy: 0,
            refers: false,
            copy: None,
            moved: false,
            cached_until: 0,
            next_of_gfn: None,
            older: None,
            newer: n.checked_sub(1).map(ShadowFrame::new),
        };
        Pool {
            frames: (0..count).map(frame).collect(),
            free: count.checked_sub(1).map(ShadowFrame::new),
            quarantine: None,
            oldest: None,
            newest: None,
            live: 0,
            flushes: 0,
        }
    }

    /// The bytes that this takes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.frames)
    }

    pub(crate) fn count(&self) -> u32 {
        self.frames.len() as u32
    }

    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    /// The id of the live page in `frame`.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn id(&self, frame: ShadowFrame) -> PageId {
        self.key(frame);
        PageId { frame, generation: self.frames[frame.index()].generation }
    }

    /// The frame of a page, if it still lives.
    pub(crate) fn frame_of(&self, id: PageId) -> Option<ShadowFrame> {
        let frame = &self.frames[id.frame.index()];
        (matches!(frame.state, FrameState::Live(_)) && frame.generation == id.generation)
            .then_some(id.frame)
    }

    pub(crate) fn live_key(&self, frame: ShadowFrame) -> Option<ShadowKey> {
        match self.frames[frame.index()].state {
            FrameState::Live(key) => Some(key),
            FrameState::Free | FrameState::Quarantine(_) => None,
        }
    }

    /// What the page in `frame` is built from.
    ///
    /// # Panics
    /// If no live page is there.
    pub(crate) fn key(&self, frame: ShadowFrame) -> ShadowKey {
        self.live_key(frame).expect("a shadow frame that is linked or listed holds a live page")
    }

    pub(crate) fn has_quarantine(&self) -> bool {
        self.quarantine.is_some()
    }

    /// Takes a free frame for a new page; it becomes the newest.
    pub(super) fn allocate(&mut self, key: ShadowKey) -> Option<PageId> {
        let frame = self.free?;
        let slot = &mut self.frames[frame.index()];
        self.free = slot.newer.take();
        debug_assert!(slot.state == FrameState::Free && slot.pins == 0 && !slot.moved);
        debug_assert!(
            slot.cached_until <= self.flushes,
            "a frame that may be cached is not used again"
        );
        slot.state = FrameState::Live(key);
        slot.cached_until = 0;
        slot.refers = key.role.level() != Level::L1;
        self.live += 1;
        self.push_newest(frame);
        Some(self.id(frame))
    }

    /// Ends a page. Its frame goes to quarantine if anything of it may be cached, else it is free
    /// at once. `protected` is the guest frame whose writes were seen as long as the page lived.
    pub(super) fn retire(&mut self, frame: ShadowFrame, cached: bool, protected: Option<Gfn>) {
        self.key(frame);
        self.unchain(frame);
        let list = if cached { &mut self.quarantine } else { &mut self.free };
        let next = list.replace(frame);
        let slot = &mut self.frames[frame.index()];
        assert!(slot.pins == 0, "a shadow page in use is never retired");
        slot.state = if cached { FrameState::Quarantine(protected) } else { FrameState::Free };
        slot.generation = slot.generation.wrapping_add(1);
        slot.newer = next;
        self.live -= 1;
    }

    /// The guest frames that must stay protected until the next flush: for the auditor.
    pub(crate) fn quarantined_frames(&self) -> impl Iterator<Item = Gfn> + '_ {
        let waiting =
            core::iter::successors(self.quarantine, |&frame| self.frames[frame.index()].newer);
        waiting.filter_map(|frame| match self.frames[frame.index()].state {
            FrameState::Quarantine(protected) => protected,
            FrameState::Free | FrameState::Live(_) => None,
        })
    }

    /// Notes a full flush: nothing is cached any more.
    pub(super) fn flushed(&mut self) {
        self.flushes += 1;
        while let Some(frame) = self.quarantine {
            let slot = &mut self.frames[frame.index()];
            self.quarantine = slot.newer;
            slot.newer = self.free;
            slot.state = FrameState::Free;
            self.free = Some(frame);
        }
    }

    /// Notes that a reference to the page was removed which the CPU may have cached.
    pub(super) fn unreferenced(&mut self, frame: ShadowFrame) {
        self.frames[frame.index()].cached_until = self.flushes + 1;
    }

    /// Whether the CPU may hold a reference to the page that is no longer in memory.
    pub(crate) fn may_be_cached(&self, frame: ShadowFrame) -> bool {
        self.frames[frame.index()].cached_until > self.flushes
    }

    pub(super) fn pin(&mut self, frame: ShadowFrame) {
        self.frames[frame.index()].pins += 1;
    }

    pub(super) fn unpin(&mut self, frame: ShadowFrame) {
        self.frames[frame.index()].pins -= 1;
    }

    pub(crate) fn is_pinned(&self, frame: ShadowFrame) -> bool {
        self.frames[frame.index()].pins != 0
    }

    /// Whether any of the entries `8 * group..` may be anything but NotPresent.
    pub(crate) fn is_busy(&self, frame: ShadowFrame, group: usize) -> bool {
        self.busy(frame) & 1 << group != 0
    }

    /// The groups that [`Pool::is_busy`] is true of: a bit for each.
    pub(crate) fn busy(&self, frame: ShadowFrame) -> u64 {
        self.frames[frame.index()].busy
    }

    /// Notes that one of the entries `8 * group..` was stored.
    pub(super) fn stored(&mut self, frame: ShadowFrame, group: usize) -> Stored {
        let slot = &mut self.frames[frame.index()];
        slot.busy |= 1 << group;
        Stored { refers: slot.refers, copy: slot.copy }
    }

    /// Notes which copy of the page's guest table there is.
    pub(super) fn set_copy(&mut self, frame: ShadowFrame, copy: Option<u8>) {
        self.frames[frame.index()].copy = copy;
    }

    pub(super) fn copy(&self, frame: ShadowFrame) -> Option<u8> {
        self.frames[frame.index()].copy
    }

    /// Notes that the entries `8 * group..` are NotPresent.
    pub(super) fn emptied(&mut self, frame: ShadowFrame, group: usize) {
        self.frames[frame.index()].busy &= !(1 << group);
    }

    /// Notes that all entries are NotPresent, or that they may be anything.
    pub(super) fn set_all_busy(&mut self, frame: ShadowFrame, busy: bool) {
        self.frames[frame.index()].busy = if busy { u64::MAX } else { 0 };
    }

    /// Whether the page lies where its guest frame lay.
    pub(crate) fn is_moved(&self, frame: ShadowFrame) -> bool {
        self.frames[frame.index()].moved
    }

    pub(super) fn set_moved(&mut self, frame: ShadowFrame, moved: bool) {
        self.frames[frame.index()].moved = moved;
    }

    /// The next older shadow of the same guest frame.
    pub(crate) fn next_of_gfn(&self, frame: ShadowFrame) -> Option<ShadowFrame> {
        self.frames[frame.index()].next_of_gfn
    }

    pub(super) fn set_next_of_gfn(&mut self, frame: ShadowFrame, next: Option<ShadowFrame>) {
        self.frames[frame.index()].next_of_gfn = next;
    }

    /// Makes the page the newest: it will be the last to be reclaimed.
    pub(super) fn touch(&mut self, frame: ShadowFrame) {
        if self.newest != Some(frame) {
            self.unchain(frame);
            self.push_newest(frame);
        }
    }

    /// Makes the page the oldest: it will be the first to be reclaimed.
    pub(super) fn age(&mut self, frame: ShadowFrame) {
        if self.oldest != Some(frame) {
            self.unchain(frame);
            let after = self.oldest.replace(frame);
            let slot = &mut self.frames[frame.index()];
            (slot.older, slot.newer) = (None, after);
            match after {
                Some(after) => self.frames[after.index()].older = Some(frame),
                None => self.newest = Some(frame),
            }
        }
    }

    /// The page that was linked longest ago, of those that are not pinned.
    pub(crate) fn victim(&self) -> Option<ShadowFrame> {
        let newer = |&frame: &ShadowFrame| self.frames[frame.index()].newer;
        core::iter::successors(self.oldest, newer).find(|&frame| !self.is_pinned(frame))
    }

    /// All frames.
    pub(crate) fn frames(&self) -> impl Iterator<Item = ShadowFrame> + use<> {
        (0..self.count()).map(ShadowFrame::new)
    }

    /// Frames with live pages.
    pub(crate) fn live_frames(&self) -> impl Iterator<Item = ShadowFrame> + '_ {
        self.frames().filter(|&frame| self.live_key(frame).is_some())
    }

    fn push_newest(&mut self, frame: ShadowFrame) {
        let before = self.newest.replace(frame);
        let slot = &mut self.frames[frame.index()];
        (slot.older, slot.newer) = (before, None);
        match before {
            Some(before) => self.frames[before.index()].newer = Some(frame),
            None => self.oldest = Some(frame),
        }
    }

    fn unchain(&mut self, frame: ShadowFrame) {
        let Frame { older, newer, .. } = self.frames[frame.index()];
        match older {
            Some(older) => self.frames[older.index()].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.frames[newer.index()].older = older,
            None => self.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one frame of a pool of one.
    const FRAME: ShadowFrame = ShadowFrame::new(0);

    fn key(n: u64) -> ShadowKey {
        ShadowKey::direct(Level::L1, Gfn::new(n * 512))
    }

    #[test]
    fn a_handle_does_not_outlive_its_page() {
        let mut pool = Pool::new(1);
        let first = pool.allocate(key(1)).unwrap();
        assert_eq!(pool.frame_of(first), Some(FRAME));
        pool.retire(FRAME, false, None);
        assert_eq!(pool.frame_of(first), None);
        let second = pool.allocate(key(1)).unwrap();
        assert_eq!((pool.frame_of(first), pool.frame_of(second)), (None, Some(FRAME)));
    }

    #[test]
    fn a_frame_that_may_be_cached_waits_for_a_flush() {
        let mut pool = Pool::new(1);
        pool.allocate(key(1)).unwrap();
        pool.unreferenced(FRAME);
        assert!(pool.may_be_cached(FRAME));
        pool.retire(FRAME, true, None);
        assert!(pool.allocate(key(2)).is_none());
        pool.flushed();
        assert!(pool.allocate(key(2)).is_some());
    }

    #[test]
    fn the_page_linked_longest_ago_goes_first() {
        let mut pool = Pool::new(3);
        let frames = [1, 2, 3].map(|n| pool.allocate(key(n)).unwrap().frame);
        pool.touch(frames[0]);
        assert_eq!(pool.victim(), Some(frames[1]));
        pool.pin(frames[1]);
        assert_eq!(pool.victim(), Some(frames[2]));
        pool.retire(frames[2], false, None);
        assert_eq!(pool.victim(), Some(frames[0]));
    }

    #[test]
    fn a_group_is_busy_from_a_store_until_it_is_emptied() {
        let mut pool = Pool::new(1);
        pool.allocate(key(1)).unwrap();
        pool.set_all_busy(FRAME, true);
        pool.emptied(FRAME, 3);
        assert_eq!(pool.busy(FRAME), !(1 << 3));
        pool.stored(FRAME, 3);
        assert_eq!(pool.busy(FRAME), u64::MAX);
        pool.set_all_busy(FRAME, false);
        assert_eq!(pool.busy(FRAME), 0);
    }

    #[test]
    fn an_aged_page_goes_before_all_others() {
        let mut pool = Pool::new(3);
        let frames = [1, 2, 3].map(|n| pool.allocate(key(n)).unwrap().frame);
        for frame in [frames[2], frames[1], frames[1]] {
            pool.age(frame);
            assert_eq!(pool.victim(), Some(frame));
        }
        pool.touch(frames[1]);
        pool.age(frames[0]);
        pool.retire(frames[0], false, None);
        assert_eq!(pool.victim(), Some(frames[2]));
    }

    #[test]
    #[should_panic(expected = "in use is never retired")]
    fn a_root_in_use_stays() {
        let mut pool = Pool::new(1);
        let page = pool.allocate(key(1)).unwrap();
        pool.pin(page.frame);
        pool.retire(page.frame, false, None);
    }
}
