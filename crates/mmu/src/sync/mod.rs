//! Keeping entries in step with the guest's: refresh, fill, protect and unprotect, and every write
//! of the hypervisor to guest memory.
//!
//! Pages are neither built nor taken away here: an entry that needs a page which is not there is
//! Trapping.

mod fill;
mod filter;
mod guest_write;
mod protect;
#[cfg(test)]
mod tests;

pub(crate) use filter::FaultFilter;
pub(crate) use guest_write::Resynced;

use umbra_paging::Gfn;

use crate::derive::{Basis, Target, View};
use crate::tables::{OwedFlush, Slot};
use crate::{Env, ShadowFrame};

/// The entries of the shadow pages there are, with what they depend on.
pub(crate) struct Entries<'a, E> {
    basis: &'a mut Basis,
    filter: &'a mut FaultFilter,
    env: &'a mut E,
}

impl<'a, E: Env> Entries<'a, E> {
    #[inline]
    pub(crate) fn new(basis: &'a mut Basis, filter: &'a mut FaultFilter, env: &'a mut E) -> Self {
        Entries { basis, filter, env }
    }

    #[inline]
    pub(crate) fn view(&self) -> View<'_, E> {
        self.basis.view(self.env)
    }

    fn pay(&mut self, owed: OwedFlush) {
        owed.pay(self.basis.tables_mut(), self.env);
    }

    /// Makes the entry at `slot` what it should be.
    pub(crate) fn refresh(&mut self, slot: Slot) -> OwedFlush {
        let view = self.view();
        let target = view.target(slot, false);
        let target = match target {
            // Only a fault leads there anew: see `Entries::refresh_unsync`.
            Target::Link(child, _)
                if !view.is_current(child) && view.child(slot) != Some(child) =>
            {
                Target::Trap
            }
            _ => self.without_narrow(slot, target),
        };
        let (entry, list) = self.view().encode(slot, target);
        self.basis.tables_mut().set(self.env, slot, entry, list)
    }

    /// Makes the entry at `slot` what it should be, and pays.
    pub(crate) fn refresh_now(&mut self, slot: Slot) {
        let owed = self.refresh(slot);
        self.pay(owed);
    }

    /// Makes the entry at `slot` carry out this target, which the guest needs there. False if it
    /// did already.
    pub(crate) fn install(&mut self, slot: Slot, target: Target) -> bool {
        self.admit_narrow(slot, target);
        let (entry, list) = self.view().encode(slot, target);
        let changes = self.view().read(slot) != entry;
        if changes {
            let owed = self.basis.tables_mut().set(self.env, slot, entry, list);
            self.pay(owed);
        }
        changes
    }

    /// The shadows of a guest frame, one after the other.
    fn first_shadow(&self, gfn: Gfn) -> Option<ShadowFrame> {
        self.basis.guest().first(gfn)
    }

    fn next_shadow(&self, frame: ShadowFrame) -> Option<ShadowFrame> {
        self.basis.tables().pool().next_of_gfn(frame)
    }
}
