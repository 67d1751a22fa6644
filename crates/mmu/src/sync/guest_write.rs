//! The one door through which the hypervisor itself writes guest memory, so that shadows follow.

use core::ops::Range;

use umbra_paging::{Format, Gfn, Gpa, GuestEntry, Level, PAGE_SIZE};

use super::Entries;
use crate::format::{Role, ShadowKey, Wp};
use crate::guest::Tracking;
use crate::tables::{OwedFlush, PageId, Slot};
use crate::{Backing, Env, ShadowFrame};

/// An entry of an unsync table that was brought up to date.
#[derive(Clone, Copy)]
pub(crate) struct Resynced {
    at: Gpa,
    changed: bool,
    is_zero: bool,
}

impl Resynced {
    /// Where the guest's entry lies.
    pub(crate) fn at(self) -> Gpa {
        self.at
    }

    /// Whether its shadow was another one.
    pub(crate) fn has_changed(self) -> bool {
        self.changed
    }

    /// Whether the guest's entry is zero now.
    pub(crate) fn is_zero(self) -> bool {
        self.is_zero
    }
}

impl<E: Env> Entries<'_, E> {
    /// Writes bytes that do not cross a page. What they referenced may have lost its last parent:
    /// that page, if the write was to an entry with one shadow.
    #[inline]
    pub(crate) fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Option<PageId> {
        let gfn = gpa.gfn();
        if !matches!(self.env.backing(gfn), Backing::Ram { writable: true, .. }) {
            return None;
        }
        if self.basis.guest().first(gfn).is_none()
            || self.basis.guest().tracking(gfn) == Tracking::Detached
        {
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
        let (gfn, first) = (gpa.gfn(), gpa.page_offset() as usize);
        let place = first..first + bytes.len();
        let child = self.lone_child(gfn, &place);
        // Before the write: another vCPU that sees it may count on its own INVLPG at once.
        let split = self.suspend(gfn, &place);
        self.pay(split);
        self.env.write(gpa, bytes);
        let owed = self.resume(gfn, &place);
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
        let key = self.basis.tables().key(frame);
        let ShadowKey { role: Role::Guest { level: Level::L1, format, wp: Wp::On, .. }, gfn } = key
        else {
            return false;
        };
        let lone = self.next_shadow(frame).is_none() && !format.is_legacy();
        if gpa.raw() % 8 != 0 || !lone || !self.basis.guest().is_tracked(gfn) {
            return false;
        }
        let Some((new, list)) = self.view().plain(key.role, GuestEntry::new(value)) else {
            return false;
        };
        let slot = Slot::new(frame, gpa.page_offset() as usize / 8);
        let old = self.basis.tables().read(self.env, slot);
        let absent = self.basis.tables().encodings().not_present_entry();
        let is_present = new != absent;
        // Another vCPU that sees what is written must not find the entry NotPresent any more (I1).
        let becomes_present = is_present && self.basis.config().vcpus > 1;
        if old != absent || becomes_present {
            self.basis.tables().hide(self.env, slot);
        }
        self.env.write(gpa, bytes);
        if old != new {
            self.basis.tables_mut().relist(self.env, slot, old, new, list);
            self.basis.tables_mut().store(self.env, slot, new);
        } else if is_present {
            self.basis.tables_mut().store(self.env, slot, new);
        }
        true
    }

    /// The page that the one entry at this place of a table links, if only one shadow page has that
    /// entry.
    fn lone_child(&self, gfn: Gfn, place: &Range<usize>) -> Option<PageId> {
        let mut found = None;
        for frame in self.view().shadows(gfn) {
            let (indexes, each) = self.indexes(frame, place);
            if indexes.is_empty() {
                continue;
            }
            if found.is_some() || indexes.len() > each {
                return None;
            }
            found = Some(Slot::new(frame, indexes.start));
        }
        self.view().child(found?).map(|child| self.basis.tables().pool().id(child))
    }

    /// The entries of a shadow page that these bytes of its guest table concern, and how many of
    /// them one guest entry has.
    fn indexes(&self, frame: ShadowFrame, place: &Range<usize>) -> (Range<usize>, usize) {
        match self.basis.tables().key(frame).role {
            Role::Guest { level, format, .. } => {
                (format.indexes(level, place.clone()), format.shadows_of_entry(level))
            }
            // What is written to a frame with PDPTEs ends their page first.
            Role::Direct { .. } | Role::Pdptes { .. } | Role::PaeRoot { .. } | Role::Nowhere => {
                (0..0, 1)
            }
        }
    }

    /// Sets accessed or dirty bits in a guest entry of this format that was `old` when it was
    /// walked.
    ///
    /// # Errors
    /// It is something else by now: walk again.
    pub(crate) fn update_entry(
        &mut self,
        format: Format,
        at: Gpa,
        old: u64,
        new: u64,
    ) -> Result<(), u64> {
        let (gfn, first) = (at.gfn(), at.page_offset() as usize);
        if self.env.backing(gfn) == Backing::None {
            return Ok(());
        }
        let place = first..first + format.entry_bytes() as usize;
        let owed = self.suspend(gfn, &place);
        owed.ignore("setting A or D widens: whatever is cached from before stays right");
        let done = match format.entry_bytes() {
            8 => self.env.compare_exchange_entry(at, old, new),
            _ => self.compare_exchange_half(at, old, new),
        };
        let owed = self.resume(gfn, &place);
        self.pay(owed);
        done
    }

    /// Makes the entry at `slot`, of an unsync leaf table, what it should be, as in all other
    /// shadows of the table.
    pub(crate) fn resync_entry(&mut self, slot: Slot) -> Resynced {
        let ShadowKey { role: Role::Guest { level, format, .. }, gfn } =
            self.basis.tables().key(slot.frame())
        else {
            unreachable!("only guest tables are unsync");
        };
        let at = format.place(gfn, level, slot.index());
        let before = self.view().read(slot);
        let first = at.page_offset() as usize;
        let owed = self.resume(gfn, &(first..first + format.format().entry_bytes() as usize));
        self.pay(owed);
        let is_zero = self.view().guest_entry(slot).is_some_and(|guest| guest.raw() == 0);
        Resynced { at, changed: self.view().read(slot) != before, is_zero }
    }

    /// Replaces an entry of 4 bytes, which is one half of what the embedder exchanges.
    fn compare_exchange_half(&mut self, at: Gpa, old: u64, new: u64) -> Result<(), u64> {
        const HALF: u64 = 0xffff_ffff;
        let (word, shift) = (Gpa::new(at.raw() & !7), 8 * (at.raw() & 4));
        loop {
            let both = self.env.read_entry(word);
            let now = both >> shift & HALF;
            if now != old {
                return Err(now);
            }
            // If another vCPU has changed the other half, only that has to be read again.
            let wanted = both & !(HALF << shift) | new << shift;
            if self.env.compare_exchange_entry(word, both, wanted).is_ok() {
                return Ok(());
            }
        }
    }

    /// Before a write: the shadows of the entries become Trapping, so that no vCPU acts on the old
    /// ones once the new are visible. A flush is owed if the CPU may cache one of them in pieces:
    /// the guest's own INVLPG, or a page fault, drops only one of those, while the guest may count
    /// on all.
    fn suspend(&mut self, gfn: Gfn, place: &Range<usize>) -> OwedFlush {
        let mut split = false;
        self.each_shadow(gfn, place, |this, slot| {
            split |= this.view().may_be_split(slot);
            this.basis.tables_mut().look(this.env, slot);
        });
        OwedFlush::when(split)
    }

    /// After a write: the shadows of the entries become what they should be.
    fn resume(&mut self, gfn: Gfn, place: &Range<usize>) -> OwedFlush {
        let mut owed = OwedFlush::NONE;
        self.each_shadow(gfn, place, |this, slot| {
            let before = core::mem::replace(&mut owed, OwedFlush::NONE);
            owed = before.and(this.refresh(slot));
        });
        owed
    }

    fn each_shadow(
        &mut self,
        gfn: Gfn,
        place: &Range<usize>,
        mut action: impl FnMut(&mut Self, Slot),
    ) {
        debug_assert!(place.end <= PAGE_SIZE as usize);
        let mut next = self.first_shadow(gfn);
        while let Some(frame) = next {
            next = self.next_shadow(frame);
            for index in self.indexes(frame, place).0 {
                action(self, Slot::new(frame, index));
            }
        }
    }
}
