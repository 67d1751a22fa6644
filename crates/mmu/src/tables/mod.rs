//! The shadow pages: the only place that stores to shadow memory.
//!
//! [`Tables`] keeps five things in step with what it stores. They are the owner of each frame
//! ([`Pool`]), the reverse map ([`Rmap`]), the copies of guest tables, the log of changes and the
//! number of changes of references. It knows nothing of the guest's tables: the layers above say
//! what an entry should be.

mod log;
mod pool;
mod rmap;
mod snapshot;

pub(crate) use pool::{PageId, Pool};
pub(crate) use rmap::{List, Rmap, Slot};
pub(crate) use snapshot::{GROUP, has_present};

use umbra_paging::{ENTRIES, Gfn, Level};

use crate::format::{Encodings, Role, ShadowEntry, ShadowKey, State};
use crate::{Config, Counters, Env, Event, ShadowFrame};

use log::ChangeLog;
use pool::Stored;
use snapshot::Copies;

/// A full flush that may be owed: because rights were taken away that something is going to rely on
/// being gone, or because the size of a page changed.
#[must_use = "what the CPU has cached is still in force until the flush that is owed is paid"]
pub(crate) struct OwedFlush(bool);

impl OwedFlush {
    pub(crate) const NONE: OwedFlush = OwedFlush(false);

    #[inline]
    pub(crate) const fn when(owed: bool) -> OwedFlush {
        OwedFlush(owed)
    }

    /// Both debts, paid by one flush.
    #[inline]
    pub(crate) fn and(self, other: OwedFlush) -> OwedFlush {
        OwedFlush(self.0 || other.0)
    }

    /// Flushes, if that is owed.
    #[inline]
    pub(crate) fn pay(self, tables: &mut Tables, env: &mut impl Env) {
        if self.0 {
            tables.flush(env);
        }
    }

    /// Nothing relies on this flush, for the reason given.
    #[inline]
    pub(crate) fn ignore(self, _reason: &str) {}
}

pub(crate) struct Tables {
    encodings: Encodings,
    pool: Pool,
    rmap: Rmap,
    copies: Copies,
    /// Changes of references between shadow pages so far.
    links: u64,
    log: ChangeLog,
    counters: Counters,
}

/// What is there.
impl Tables {
    /// The tables of a pool of so many frames, for a guest whose memory ends at `end`. So many
    /// pages can live whatever becomes of the heap.
    pub(crate) fn new(config: &Config, frames: u32, end: Gfn, reserve: usize) -> Tables {
        let gfns = end.raw() as usize;
        Tables {
            encodings: config.encodings,
            pool: Pool::new(frames),
            rmap: Rmap::new(frames, gfns, gfns.div_ceil(Level::L2.pages() as usize), reserve),
            copies: Copies::new(),
            links: 0,
            log: ChangeLog::new(config.log_changes),
            counters: Counters::default(),
        }
    }

    /// The bytes that this takes now.
    pub(crate) fn bytes(&self) -> usize {
        self.pool.bytes() + self.rmap.bytes() + self.copies.bytes()
    }

    pub(crate) fn encodings(&self) -> &Encodings {
        &self.encodings
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn rmap(&self) -> &Rmap {
        &self.rmap
    }

    /// A number that changes whenever a reference between shadow pages may have changed.
    pub(crate) fn links(&self) -> u64 {
        self.links
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What the page in `frame` is built from.
    ///
    /// # Panics
    /// If no live page is there.
    pub(crate) fn key(&self, frame: ShadowFrame) -> ShadowKey {
        self.pool.key(frame)
    }

    #[inline]
    pub(crate) fn read(&self, env: &impl Env, slot: Slot) -> ShadowEntry {
        ShadowEntry::new(env.read_shadow(slot.frame(), slot.index()))
    }

    #[inline(always)]
    pub(crate) fn state(&self, entry: ShadowEntry) -> State {
        self.encodings.state(entry)
    }

    #[inline]
    pub(crate) fn is_mapped(&self, entry: ShadowEntry) -> bool {
        self.encodings.is_mapped(entry)
    }

    /// The frame of the shadow page that the entry at `slot` references, if it does.
    pub(crate) fn child(&self, env: &impl Env, slot: Slot) -> Option<ShadowFrame> {
        let entry = self.read(env, slot);
        let is_table = self.key(slot.frame()).role.level() != Level::L1;
        (is_table && self.is_mapped(entry) && !entry.is_large()).then(|| env.frame(entry.hpa()))
    }

    /// The entries that reference the page in `frame`.
    pub(crate) fn parents(&self, frame: ShadowFrame) -> impl Iterator<Item = Slot> + '_ {
        self.rmap.iter(List::Parents(frame))
    }

    /// The next of these groups of a page in which some entries are as wanted, and a bit for each
    /// of those. What was looked at leaves `groups`.
    #[inline]
    pub(crate) fn next_of(
        &self,
        env: &impl Env,
        frame: ShadowFrame,
        groups: &mut u64,
        wanted: impl Fn(ShadowEntry) -> bool,
    ) -> Option<(usize, u8)> {
        while *groups != 0 {
            let group = groups.trailing_zeros() as usize;
            *groups &= *groups - 1;
            let entries = env.read_shadow_entries(frame, group * GROUP);
            let found = (0..GROUP)
                .fold(0, |all, n| all | u8::from(wanted(ShadowEntry::new(entries[n]))) << n);
            if found != 0 {
                return Some((group, found));
            }
        }
        None
    }
}

/// Entries.
impl Tables {
    /// Stores an entry and keeps the reverse map in step: `list` is where it belongs, if it is
    /// Mapped.
    ///
    /// A large page owes a flush: smaller translations of the same addresses may be cached, which
    /// the guest's own INVLPG would drop one by one only, and which some CPUs must never hold
    /// beside a larger one (CVE-2018-12207).
    pub(crate) fn set(
        &mut self,
        env: &mut impl Env,
        slot: Slot,
        entry: ShadowEntry,
        list: Option<List>,
    ) -> OwedFlush {
        let old = self.read(env, slot);
        if self.is_mapped(old) {
            if let Some(child) = self.child(env, slot) {
                self.pool.unreferenced(child);
            }
            self.rmap.remove(slot);
        }
        debug_assert_eq!(list.is_some(), self.is_mapped(entry));
        if let Some(list) = list {
            let level = |frame| self.key(frame).role.level();
            // Or a walk of the shadow would never end.
            debug_assert!(
                !matches!(list, List::Parents(child) if level(child) >= level(slot.frame())),
                "references lead down a level"
            );
            self.rmap.insert(list, slot);
        }
        if old == entry {
            return OwedFlush::NONE;
        }
        self.store(env, slot, entry);
        OwedFlush(matches!(list, Some(List::Region(_))))
    }

    /// Stores an entry that stays in its list.
    pub(crate) fn store(&mut self, env: &mut impl Env, slot: Slot, entry: ShadowEntry) {
        self.put(env, slot, entry);
        self.stored(slot.frame(), slot.index() / GROUP);
    }

    /// Stores an entry; [`Tables::stored`] follows.
    #[inline]
    pub(crate) fn put(&mut self, env: &mut impl Env, slot: Slot, entry: ShadowEntry) {
        env.write_shadow(slot.frame(), slot.index(), entry.raw());
        self.log.push(slot);
    }

    /// Notes that entries of this group of a page were stored.
    #[inline]
    pub(crate) fn stored(&mut self, frame: ShadowFrame, group: usize) {
        let Stored { refers, copy } = self.pool.stored(frame, group);
        self.links += u64::from(refers);
        if let Some(copy) = copy {
            self.copies.stored(copy, group);
        }
    }

    /// Keeps the reverse map in step with an entry that is `old` now and about to be `new`, which
    /// is no large page.
    #[inline(always)]
    pub(crate) fn relist(
        &mut self,
        env: &impl Env,
        slot: Slot,
        old: ShadowEntry,
        new: ShadowEntry,
        list: Option<List>,
    ) {
        let (was, is) = (self.is_mapped(old), list.is_some());
        // The same page with other rights stays in its list.
        if !was || !is || old.hpa() != new.hpa() {
            if was {
                // It was a link, if the page is of a higher level.
                if let Some(child) = self.child(env, slot) {
                    self.pool.unreferenced(child);
                }
                self.rmap.remove(slot);
            }
            if let Some(list) = list {
                self.rmap.insert(list, slot);
            }
        }
    }

    /// Makes an entry Trapping for the moment in which the guest's entry changes; it stays in its
    /// list for so long. [`Tables::store`] follows.
    #[inline]
    pub(crate) fn hide(&self, env: &mut impl Env, slot: Slot) {
        env.write_shadow(slot.frame(), slot.index(), self.encodings.trap_entry().raw());
    }

    /// Makes the entry at `slot` Trapping.
    pub(crate) fn look(&mut self, env: &mut impl Env, slot: Slot) {
        let OwedFlush(owed) = self.set(env, slot, self.encodings.trap_entry(), None);
        debug_assert!(!owed, "a Trapping entry is no large page");
    }

    /// Makes all entries of a list Trapping.
    pub(crate) fn look_all(&mut self, env: &mut impl Env, list: List) {
        while let Some(slot) = self.rmap.first(list) {
            self.look(env, slot);
        }
    }

    /// Makes every entry of a page Trapping.
    pub(crate) fn look_everywhere(&mut self, env: &mut impl Env, frame: ShadowFrame) {
        self.unlist_all(env, frame);
        env.fill_shadow(frame, self.encodings.trap_entry().raw());
        self.pool.set_all_busy(frame, true);
        self.forget_copy(frame);
        self.links += 1;
        self.log.push_all(frame);
    }

    /// Makes every NotPresent entry of a page Trapping.
    pub(crate) fn look_where_absent(&mut self, env: &mut impl Env, frame: ShadowFrame) {
        let (absent, look) = (self.encodings.not_present_entry(), self.encodings.trap_entry());
        for group in 0..ENTRIES / GROUP {
            let entries = env.read_shadow_entries(frame, group * GROUP);
            let found =
                (0..GROUP).fold(0, |all, n| all | u8::from(entries[n] == absent.raw()) << n);
            for slot in slots(frame, group, found) {
                self.put(env, slot, look);
            }
            if found != 0 {
                self.stored(frame, group);
            }
        }
    }

    /// Takes all entries of a page, which are about to go, out of their lists.
    fn unlist_all(&mut self, env: &impl Env, frame: ShadowFrame) {
        let links = self.key(frame).role.level() != Level::L1;
        let mut groups = self.pool.busy(frame);
        while let Some((group, mapped)) =
            self.next_of(env, frame, &mut groups, |entry| self.is_mapped(entry))
        {
            for slot in slots(frame, group, mapped) {
                let child = if links { self.child(env, slot) } else { None };
                if let Some(child) = child {
                    self.pool.unreferenced(child);
                }
                self.rmap.remove(slot);
            }
        }
    }

    /// Drops everything that the CPUs have cached.
    pub(crate) fn flush(&mut self, env: &mut impl Env) {
        env.flush();
        self.pool.flushed();
        self.happened(env, Event::Flushed);
    }

    /// Counts something, and tells the embedder.
    pub(crate) fn happened(&mut self, env: &mut impl Env, event: Event) {
        self.counters.count(event);
        env.observe(event);
    }
}

/// Pages.
impl Tables {
    /// Takes a free frame for a new page; it becomes the newest. `None` if no frame is free, or the
    /// heap has no memory for its links.
    pub(crate) fn allocate(&mut self, key: ShadowKey) -> Option<ShadowFrame> {
        if !self.has_links() {
            return None;
        }
        self.pool.allocate(key).map(|page| page.frame())
    }

    /// Whether there are links for one more page.
    pub(crate) fn has_links(&mut self) -> bool {
        self.rmap.has_room()
    }

    /// Gives a new page its entries: all NotPresent, or all Trapping.
    pub(crate) fn open(&mut self, env: &mut impl Env, frame: ShadowFrame, absent: bool) {
        self.rmap.open(frame);
        let empty =
            if absent { self.encodings.not_present_entry() } else { self.encodings.trap_entry() };
        env.fill_shadow(frame, empty.raw());
        // No link leads here yet: no walk that is remembered comes by.
        self.pool.set_all_busy(frame, !absent);
        self.log.push_all(frame);
    }

    /// Takes the entries of a page that is about to be retired out of their lists. What the CPU may
    /// still walk is Trapping until the flush; what it cannot is nothing any more.
    pub(crate) fn close(&mut self, env: &mut impl Env, frame: ShadowFrame) {
        if self.pool.may_be_cached(frame) {
            self.look_everywhere(env, frame);
        } else {
            self.unlist_all(env, frame);
            self.forget_copy(frame);
        }
        self.rmap.close(frame);
    }

    /// Ends a page that is [closed](Tables::close): see [`Pool::retire`].
    pub(crate) fn retire(&mut self, frame: ShadowFrame, cached: bool, protected: Option<Gfn>) {
        self.pool.retire(frame, cached, protected);
        self.links += 1;
        self.log.forget(frame);
    }

    pub(crate) fn pin(&mut self, frame: ShadowFrame) {
        self.pool.pin(frame);
    }

    /// No CR3 refers to the page any more, but the CPU may have cached that one did.
    pub(crate) fn unpin_root(&mut self, frame: ShadowFrame) {
        self.pool.unpin(frame);
        self.pool.unreferenced(frame);
    }

    /// Makes the page the last to be reclaimed.
    pub(crate) fn touch(&mut self, frame: ShadowFrame) {
        self.pool.touch(frame);
    }

    /// Makes the page the first to be reclaimed.
    pub(crate) fn age(&mut self, frame: ShadowFrame) {
        self.pool.age(frame);
    }

    /// Notes whether the page lies where its guest frame lay.
    pub(crate) fn set_moved(&mut self, frame: ShadowFrame, moved: bool) {
        self.pool.set_moved(frame, moved);
    }

    /// Notes the next older shadow of the same guest frame.
    pub(crate) fn set_next_of_gfn(&mut self, frame: ShadowFrame, next: Option<ShadowFrame>) {
        self.pool.set_next_of_gfn(frame, next);
    }
}

/// Copies of guest tables.
impl Tables {
    /// The groups of a page to look at, whose guest table is in the frame `gfn`: see
    /// [`Copies::changed`].
    pub(crate) fn changed(&self, env: &impl Env, frame: ShadowFrame, gfn: Gfn) -> u64 {
        if matches!(self.key(frame).role, Role::Guest { format, .. } if format.is_legacy()) {
            // Its entries are copied as PAE paging says them: each group has to be read.
            return u64::MAX;
        }
        self.copies.changed(self.pool.copy(frame), env, gfn, self.pool.busy(frame))
    }

    /// Which entries of a group are not those that their shadows were made from: a bit for each.
    #[inline]
    pub(crate) fn changed_in(&self, frame: ShadowFrame, group: usize, now: &[u64; GROUP]) -> u8 {
        self.copies.changed_in(self.pool.copy(frame), group, now)
    }

    /// All guest entries of the group are not present, and all of its shadow entries NotPresent.
    #[inline]
    pub(crate) fn emptied(&mut self, frame: ShadowFrame, group: usize) {
        self.pool.emptied(frame, group);
    }

    /// Notes what the shadows of a group were made from just now.
    #[inline]
    pub(crate) fn note(&mut self, frame: ShadowFrame, group: usize, now: &[u64; GROUP]) {
        if let Some(copy) = self.pool.copy(frame) {
            self.copies.note(copy, group, now);
        }
    }

    /// The guest table of the page is copied from now on, if it is not so empty that looking at it
    /// costs little.
    pub(crate) fn copy(&mut self, frame: ShadowFrame) {
        const WORTH: u32 = 2;
        let busy = self.pool.busy(frame);
        let full = busy.count_ones() >= WORTH;
        if !full || self.pool.copy(frame).is_some() {
            return;
        }
        let (copy, before) = self.copies.give(frame, busy);
        if let Some(before) = before {
            self.pool.set_copy(before, None);
        }
        self.pool.set_copy(frame, Some(copy));
    }

    /// Nothing is known any more of what the shadows of a page were made from.
    pub(crate) fn forget_copy(&mut self, frame: ShadowFrame) {
        if let Some(copy) = self.pool.copy(frame) {
            self.copies.take(copy);
            self.pool.set_copy(frame, None);
        }
    }
}

/// For the auditor.
impl Tables {
    /// Takes one of the entries that changed since they were last [seen](Tables::all_seen).
    pub(crate) fn take_changed(&mut self) -> Option<Slot> {
        self.log.pop()
    }

    /// More entries changed than the log holds.
    pub(crate) fn log_has_overflowed(&self) -> bool {
        self.log.has_overflowed()
    }

    /// All entries were looked at.
    pub(crate) fn all_seen(&mut self) {
        self.log.clear();
    }
}

/// The entries of a group for which there is a bit.
pub(crate) fn slots(frame: ShadowFrame, group: usize, bits: u8) -> impl Iterator<Item = Slot> {
    let mut left = bits;
    core::iter::from_fn(move || {
        let n = (left != 0).then(|| left.trailing_zeros() as usize)?;
        left &= left - 1;
        Some(Slot::new(frame, group * GROUP + n))
    })
}
