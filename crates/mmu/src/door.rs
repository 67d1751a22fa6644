//! The one door through which the hypervisor itself writes guest memory, so that shadows follow.

use core::ops::RangeInclusive;

use umbra_paging::{ENTRIES, Gfn, Gpa, GuestEntry, Level, PAGE_SIZE};

use crate::format::State;
use crate::format::{Role, Source, Wp};
use crate::guest::Tracking;
use crate::sabotage::Rule;
use crate::tables::OwedFlush;
use crate::tables::PageId;
use crate::tables::Slot;
use crate::{Backing, Env, Mmu};

impl<P> Mmu<P> {
    /// Writes guest memory: for emulated instructions, and for whatever a device model stores. Bytes that go
    /// to no memory, or to memory that is not writable, are dropped. May cross pages.
    pub fn write_guest(&mut self, env: &mut impl Env, gpa: Gpa, bytes: &[u8]) {
        let (mut gpa, mut bytes) = (gpa, bytes);
        while !bytes.is_empty() {
            let room = (PAGE_SIZE - gpa.page_offset()) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.write_in_page(env, gpa, now);
            bytes = rest;
            gpa = Gpa::new(gpa.raw().wrapping_add(now.len() as u64));
        }
    }

    fn write_in_page(&mut self, env: &mut impl Env, gpa: Gpa, bytes: &[u8]) {
        let gfn = gpa.gfn();
        if !matches!(env.backing(gfn), Backing::Ram { writable: true, .. }) {
            return;
        }
        if self.guest.first(gfn).is_none() || self.guest.tracking(gfn) == Tracking::Detached {
            env.write(gpa, bytes);
            return;
        }
        if self.write_leaf(env, gpa, bytes) {
            return;
        }
        let first = gpa.page_offset() / 8;
        let last = (gpa.page_offset() + bytes.len() as u64 - 1) / 8;
        let entries = first as usize..=last as usize;
        let child = if first == last { self.lone_child(env, gfn, first as usize) } else { None };
        let split = self.suspend(env, gfn, entries.clone());
        env.write(gpa, bytes);
        self.resume(env, gfn, entries).and(split).pay(&mut self.tables, env);
        if let Some(child) = child {
            self.let_go(env, child);
        }
    }

    /// The page that the only shadow of an entry links.
    fn lone_child(&self, env: &impl Env, gfn: Gfn, index: usize) -> Option<PageId> {
        let frame = self.guest.first(gfn)?;
        let lone = self.tables.pool().next_of_gfn(frame).is_none();
        lone.then(|| self.tables.child(env, Slot::new(frame, index)))
            .flatten()
            .map(|child| self.tables.pool().id(child))
    }

    /// Detaches a guest table that nothing leads to any more: most likely it is about to be freed, and what it is used for
    /// next need not exit.
    fn let_go(&mut self, env: &mut impl Env, child: PageId) {
        let Some(frame) = self.tables.pool().frame_of(child) else { return };
        let gfn = self.tables.source(frame).gfn;
        let dead =
            matches!(self.tables.source(frame).role, Role::Guest { .. }) && !self.view(env).is_reachable(gfn);
        if dead && self.can_detach(gfn) && !self.guest.has_loose() {
            self.detach(env, &[gfn]);
            self.age_shadows(gfn);
        }
    }

    /// Sets accessed or dirty bits in a guest entry that was `old` when it was walked.
    ///
    /// # Errors
    /// It is something else by now: walk again.
    pub(crate) fn update_entry(
        &mut self,
        env: &mut impl Env,
        at: Gpa,
        old: u64,
        new: u64,
    ) -> Result<(), u64> {
        let (gfn, index) = (at.gfn(), at.page_offset() as usize / 8);
        if env.backing(gfn) == Backing::None {
            return Ok(());
        }
        let owed = self.suspend(env, gfn, index..=index);
        owed.ignore("setting A or D widens: whatever is cached from before stays right");
        let done = env.compare_exchange_entry(at, old, new);
        self.resume(env, gfn, index..=index).pay(&mut self.tables, env);
        done
    }

    /// A write of a whole entry to a table that has one shadow, of the lowest level: the short way of
    /// [`Mmu::write_guest`]. False if it is not that.
    fn write_leaf(&mut self, env: &mut impl Env, gpa: Gpa, bytes: &[u8]) -> bool {
        let (Ok(value), Some(frame)) =
            (bytes.try_into().map(u64::from_le_bytes), self.guest.first(gpa.gfn()))
        else {
            return false;
        };
        let source = self.tables.source(frame);
        let Source { role: Role::Guest { level: Level::L1, wp: Wp::On, .. }, gfn } = source else {
            return false;
        };
        let lone = self.tables.pool().next_of_gfn(frame).is_none();
        if !gpa.raw().is_multiple_of(8) || !lone || !self.guest.is_tracked(gfn) || self.is_sabotaged() {
            return false;
        }
        let Some((new, list)) = self.view(env).plain(source.role, GuestEntry::new(value)) else {
            return false;
        };
        let slot = Slot::new(frame, gpa.page_offset() as usize / 8);
        let old = self.tables.read(env, slot);
        // Pending while the guest's entry changes; it stays in its list for so long.
        if old != self.tables.encodings().absent() && self.keeps(Rule::PendingBeforeWrite) {
            self.tables.hide(env, slot);
        }
        env.write(gpa, bytes);
        if old != new {
            self.tables.relist(env, slot, old, new, list);
            self.tables.store(env, slot, new);
        } else if new != self.tables.encodings().absent() {
            self.tables.store(env, slot, new);
        }
        true
    }

    /// Before a write: the shadows of the entries become Pending, so that no vCPU acts on the old ones once
    /// the new are visible. A flush is owed if a large page may be cached by smaller ones at or below one of
    /// them: the guest's own INVLPG drops only one of those, while the guest may count on all.
    fn suspend(&mut self, env: &mut impl Env, gfn: Gfn, entries: RangeInclusive<usize>) -> OwedFlush {
        let mut split = false;
        self.each_shadow(env, gfn, entries, |mmu, env, slot| {
            split |= mmu.view(env).may_be_split(slot);
            if mmu.follows(env, slot) && mmu.keeps(Rule::PendingBeforeWrite) {
                mmu.tables.look(env, slot);
            }
        });
        OwedFlush::when(split && self.keeps(Rule::FlushAfterSplitChange))
    }

    /// After a write: the shadows of the entries become what they should be.
    fn resume(&mut self, env: &mut impl Env, gfn: Gfn, entries: RangeInclusive<usize>) -> OwedFlush {
        let mut owed = OwedFlush::NONE;
        self.each_shadow(env, gfn, entries, |mmu, env, slot| {
            if mmu.follows(env, slot) {
                let before = core::mem::replace(&mut owed, OwedFlush::NONE);
                owed = before.and(mmu.refresh(env, slot));
            }
        });
        owed
    }

    fn follows(&self, env: &impl Env, slot: Slot) -> bool {
        self.keeps(Rule::FollowPresent) || self.tables.state(self.tables.read(env, slot)) != State::Absent
    }

    fn each_shadow<E: Env>(
        &mut self,
        env: &mut E,
        gfn: Gfn,
        entries: RangeInclusive<usize>,
        mut action: impl FnMut(&mut Self, &mut E, Slot),
    ) {
        debug_assert!(*entries.end() < ENTRIES);
        let mut next = self.guest.first(gfn);
        while let Some(frame) = next {
            next = self.tables.pool().next_of_gfn(frame);
            for index in entries.clone() {
                action(self, env, Slot::new(frame, index));
                if !self.keeps(Rule::FollowEveryEntry) {
                    break;
                }
            }
            if !self.keeps(Rule::FollowInEveryShadow) {
                break;
            }
        }
    }
}
