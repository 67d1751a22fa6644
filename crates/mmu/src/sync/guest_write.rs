//! The one door through which the hypervisor itself writes guest memory, so that shadows follow.

use core::ops::RangeInclusive;

use umbra_paging::{ENTRIES, Gfn, Gpa, GuestEntry, Level};

use super::Entries;
use crate::format::{Role, Source, Wp};
use crate::guest::Tracking;
use crate::tables::{OwedFlush, PageId, Slot};
use crate::{Backing, Env};

impl<E: Env> Entries<'_, E> {
    /// Writes bytes that do not cross a page. What they referenced may have lost its last parent:
    /// that page, if the write was to an entry with one shadow.
    #[inline]
    pub(crate) fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Option<PageId> {
        let gfn = gpa.gfn();
        if !matches!(self.env.backing(gfn), Backing::Ram { writable: true, .. }) {
            return None;
        }
        if self.basis.guest().first(gfn).is_none() || self.basis.guest().tracking(gfn) == Tracking::Detached {
            self.env.write(gpa, bytes);
            return None;
        }
        if self.write_leaf(gpa, bytes) {
            return None;
        }
        self.write_followed(gpa, bytes)
    }

    /// The general way of [`Entries::write`].
    pub(super) fn write_followed(&mut self, gpa: Gpa, bytes: &[u8]) -> Option<PageId> {
        let gfn = gpa.gfn();
        let first = gpa.page_offset() / 8;
        let last = (gpa.page_offset() + bytes.len() as u64 - 1) / 8;
        let entries = first as usize..=last as usize;
        let child = if first == last { self.lone_child(gfn, first as usize) } else { None };
        // Before the write: another vCPU that sees it may count on its own INVLPG at once.
        let split = self.suspend(gfn, entries.clone());
        self.pay(split);
        self.env.write(gpa, bytes);
        let owed = self.resume(gfn, entries);
        self.pay(owed);
        child
    }

    /// A write of a whole entry to a table that has one shadow, of the lowest level: the short way
    /// of [`Entries::write`]. False if it is not that.
    #[inline(always)]
    pub(super) fn write_leaf(&mut self, gpa: Gpa, bytes: &[u8]) -> bool {
        let (Ok(value), Some(frame)) =
            (bytes.try_into().map(u64::from_le_bytes), self.basis.guest().first(gpa.gfn()))
        else {
            return false;
        };
        let source = self.basis.tables().source(frame);
        let Source { role: Role::Guest { level: Level::L1, wp: Wp::On, .. }, gfn } = source else {
            return false;
        };
        let lone = self.next_shadow(frame).is_none();
        if gpa.raw() % 8 != 0 || !lone || !self.basis.guest().is_tracked(gfn) {
            return false;
        }
        let Some((new, list)) = self.view().plain(source.role, GuestEntry::new(value)) else { return false };
        let slot = Slot::new(frame, gpa.page_offset() as usize / 8);
        let old = self.basis.tables().read(self.env, slot);
        let absent = self.basis.tables().encodings().absent();
        // Another vCPU that sees what is written must not find the entry Absent any more (I1).
        let becomes_present = self.basis.config().vcpus > 1 && absent != new;
        if old != absent || becomes_present {
            self.basis.tables().hide(self.env, slot);
        }
        self.env.write(gpa, bytes);
        if old != new {
            self.basis.tables_mut().relist(self.env, slot, old, new, list);
            self.basis.tables_mut().store(self.env, slot, new);
        } else if new != absent {
            self.basis.tables_mut().store(self.env, slot, new);
        }
        true
    }

    /// The page that the only shadow of an entry links.
    fn lone_child(&self, gfn: Gfn, index: usize) -> Option<PageId> {
        let frame = self.first_shadow(gfn)?;
        let lone = self.next_shadow(frame).is_none();
        lone.then(|| self.view().child(Slot::new(frame, index)))
            .flatten()
            .map(|child| self.basis.tables().pool().id(child))
    }

    /// Sets accessed or dirty bits in a guest entry that was `old` when it was walked.
    ///
    /// # Errors
    /// It is something else by now: walk again.
    pub(crate) fn update_entry(&mut self, at: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let (gfn, index) = (at.gfn(), at.page_offset() as usize / 8);
        if self.env.backing(gfn) == Backing::None {
            return Ok(());
        }
        let owed = self.suspend(gfn, index..=index);
        owed.ignore("setting A or D widens: whatever is cached from before stays right");
        let done = self.env.compare_exchange_entry(at, old, new);
        let owed = self.resume(gfn, index..=index);
        self.pay(owed);
        done
    }

    /// Before a write: the shadows of the entries become Pending, so that no vCPU acts on the old
    /// ones once the new are visible. A flush is owed if a large page may be cached by smaller ones
    /// at or below one of them: the guest's own INVLPG drops only one of those, while the guest may
    /// count on all.
    fn suspend(&mut self, gfn: Gfn, entries: RangeInclusive<usize>) -> OwedFlush {
        let mut split = false;
        self.each_shadow(gfn, entries, |this, slot| {
            split |= this.view().may_be_split(slot);
            this.basis.tables_mut().look(this.env, slot);
        });
        OwedFlush::when(split)
    }

    /// After a write: the shadows of the entries become what they should be.
    fn resume(&mut self, gfn: Gfn, entries: RangeInclusive<usize>) -> OwedFlush {
        let mut owed = OwedFlush::NONE;
        self.each_shadow(gfn, entries, |this, slot| {
            let before = core::mem::replace(&mut owed, OwedFlush::NONE);
            owed = before.and(this.refresh(slot));
        });
        owed
    }

    fn each_shadow(
        &mut self,
        gfn: Gfn,
        entries: RangeInclusive<usize>,
        mut action: impl FnMut(&mut Self, Slot),
    ) {
        debug_assert!(*entries.end() < ENTRIES);
        let mut next = self.first_shadow(gfn);
        while let Some(frame) = next {
            next = self.next_shadow(frame);
            for index in entries.clone() {
                action(self, Slot::new(frame, index));
            }
        }
    }
}
