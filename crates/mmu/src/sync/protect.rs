//! The right to write a guest frame, taken away and given back.

use umbra_paging::Gfn;

use super::Entries;
use crate::format::ShadowEntry;
use crate::guest::REGION;
use crate::tables::{List, OwedFlush, Slot};
use crate::{Env, FilterPolicy};

impl<E: Env> Entries<'_, E> {
    /// Takes the right to write a frame away from all that maps it, because it has just become
    /// tracked. The flush is owed also where no entry changes: the CPU may hold a writable
    /// translation from an entry that lost W, or the page, before.
    pub(crate) fn protect(&mut self, gfn: Gfn) -> OwedFlush {
        let mut next = self.basis.tables().rmap().first(List::Gfn(gfn.raw() as u32));
        while let Some(slot) = next {
            next = self.basis.tables().rmap().next(slot);
            let entry = self.view().read(slot);
            if entry.rights().write {
                self.hold_write(slot, entry);
            }
        }
        // A large page cannot leave out one frame. What maps the region is linked to its identity
        // page, if that is there, or built on the next access.
        let region = List::Region((gfn.raw() / REGION) as u32);
        let mut owed = OwedFlush::when(true);
        while let Some(slot) = self.basis.tables().rmap().first(region) {
            owed = owed.and(self.refresh(slot));
        }
        owed
    }

    /// [`Entries::protect`], paid.
    pub(crate) fn protect_now(&mut self, gfn: Gfn) {
        let owed = self.protect(gfn);
        self.pay(owed);
    }

    fn hold_write(&mut self, slot: Slot, entry: ShadowEntry) {
        let narrow = entry.rights().user
            && self.view().is_guests(slot)
            && self.basis.config().filter != FilterPolicy::Present;
        if narrow {
            // It would be narrow: see `filter.rs`.
            self.basis.tables_mut().look(self.env, slot);
        } else {
            self.basis.tables_mut().store(self.env, slot, entry.protected());
        }
    }

    /// Gives the right to write a frame back where the guest's entries give it, because it is no
    /// longer tracked. What may be cached of its shadows must have been flushed. Only for the first
    /// few mappings: the others get it back on the next write.
    pub(crate) fn unprotect(&mut self, gfn: Gfn) {
        const EAGER: usize = 4;
        let mut next = self.basis.tables().rmap().first(List::Gfn(gfn.raw() as u32));
        for _ in 0..EAGER {
            let Some(slot) = next else { return };
            next = self.basis.tables().rmap().next(slot);
            self.widen(slot);
        }
    }

    fn widen(&mut self, slot: Slot) {
        let view = self.view();
        let (entry, _) = view.encode(slot, view.target(slot, false));
        let old = view.read(slot);
        // Only if nothing but the right to write differs: an entry in the form for a supervisor's
        // write stays.
        if entry.protected().without_hint() == old.without_hint() {
            self.basis.tables_mut().store(self.env, slot, entry);
        }
    }
}
