//! Which page faults go straight to the guest, and what the shadow must be like for that (I4).
//!
//! [`GuestFaults::User`] lets protection faults of user mode through. That is right only while
//! every page that user mode can use has the guest's own rights in the shadow: while no entry is
//! narrow (see [`View::is_narrow`]). So while that filter is in force, what would be narrow is
//! Trapping. If the guest reads there, so that it must be Mapped, the filter falls back to
//! [`GuestFaults::Present`]. The narrow entries of that time are remembered; to turn the filter on
//! again, they become Trapping and everything is flushed.
//!
//! While CR0.WP is clear on any vCPU, paging is off, or a page table is unsync, the filter is
//! `Present`, and nothing is learned. What an unsync page table maps may be older than the table. So
//! a protection fault may come from an old entry, and the CPU would deliver it again and again. A
//! not-present fault comes from a table that is followed: an unsync one has no NotPresent entry.
//! While a table of another level is unsync, every fault exits.
//!
//! [`View::is_narrow`]: crate::derive::View::is_narrow

use alloc::vec::Vec;

use umbra_paging::{Mode, Paging};

use super::Entries;
use crate::derive::Target;
use crate::guest::GuestFrames;
use crate::roots::Roots;
use crate::tables::{Slot, Tables};
use crate::{Env, Event, FilterPolicy, GuestFaults};

/// How many narrow entries there may be at a time.
const MAX_NARROW: usize = 64;

/// The filter that the guest would run on if nothing stood against it, and what it depends on.
pub(crate) struct FaultFilter {
    filter: GuestFaults,
    /// Narrow entries since the filter was last `User`; some are not any more.
    narrow: Vec<Slot>,
    /// The one to give way to the next.
    oldest: usize,
}

impl FaultFilter {
    pub(crate) fn new(policy: FilterPolicy) -> FaultFilter {
        FaultFilter {
            filter: if policy == FilterPolicy::User {
                GuestFaults::User
            } else {
                GuestFaults::Present
            },
            narrow: Vec::with_capacity(MAX_NARROW),
            oldest: 0,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.narrow.capacity() * size_of::<Slot>()
    }

    /// Whether entries must not be narrow now.
    pub(crate) fn is_user(&self) -> bool {
        self.filter == GuestFaults::User
    }

    /// Which page faults must exit when the guest runs next.
    pub(crate) fn guest_faults(
        &self,
        tables: &Tables,
        guest: &GuestFrames,
        roots: &Roots,
    ) -> GuestFaults {
        let filter = self.without_unsync(tables, roots);
        if guest.has_unsync_above_leaves() {
            GuestFaults::Trap
        } else if filter == GuestFaults::User && guest.has_unsync() {
            GuestFaults::Present
        } else {
            filter
        }
    }

    /// Whether the filter that is chosen decides which page faults exit.
    pub(crate) fn decides(tables: &Tables, guest: &GuestFrames, roots: &Roots) -> bool {
        tables.encodings().separates_guest_faults()
            && !guest.has_unsync()
            && roots.pagings().all(is_plain)
    }

    /// Which page faults must exit while no table is unsync.
    pub(crate) fn without_unsync(&self, tables: &Tables, roots: &Roots) -> GuestFaults {
        if !tables.encodings().separates_guest_faults() {
            GuestFaults::Trap
        } else if self.is_user() && !roots.pagings().all(is_plain) {
            GuestFaults::Present
        } else {
            self.filter
        }
    }

    /// Remembers a narrow entry; the oldest gives way if there are too many.
    fn remember(&mut self, slot: Slot) -> Option<Slot> {
        if self.narrow.contains(&slot) {
            return None;
        }
        if self.narrow.len() < MAX_NARROW {
            self.narrow.push(slot);
            return None;
        }
        self.oldest = (self.oldest + 1) % MAX_NARROW;
        Some(core::mem::replace(&mut self.narrow[self.oldest], slot))
    }
}

/// Whether user mode may have its protection faults in this paging state.
fn is_plain(paging: &Paging) -> bool {
    paging.mode != Mode::Off && paging.wp
}

impl<E: Env> Entries<'_, E> {
    /// Changes the filter.
    pub(crate) fn choose(&mut self, filter: GuestFaults) {
        self.filter.filter = filter;
        // A narrow entry may follow. Another vCPU would go on with the filter of its last entry.
        if filter != GuestFaults::User && self.basis.config().vcpus > 1 {
            self.env.kick();
        }
        if filter == GuestFaults::User {
            while let Some(slot) = self.filter.narrow.pop() {
                self.look_if_narrow(slot);
            }
            self.basis.tables_mut().flush(self.env);
        }
        self.basis.tables_mut().happened(self.env, Event::Filter(filter));
    }

    fn look_if_narrow(&mut self, slot: Slot) {
        let Some(key) = self.basis.tables().pool().live_key(slot.frame()) else { return };
        // What the guest's entry says now need not be what the entry was made from, and comes back
        // to.
        let detached = self.basis.guest().is_detached(key)
            && self.basis.tables().is_mapped(self.basis.tables().read(self.env, slot));
        if detached || self.view().is_narrow(slot) {
            self.basis.tables_mut().look(self.env, slot);
        }
    }

    /// What an entry is set to that nobody needs Mapped right now: no narrow one while the filter
    /// forbids it.
    pub(super) fn without_narrow(&mut self, slot: Slot, target: Target) -> Target {
        if !self.view().would_be_narrow(slot, target) {
            return target;
        }
        let FaultFilter { filter, narrow, .. } = &mut *self.filter;
        if narrow.contains(&slot) && *filter != GuestFaults::User {
            return target;
        }
        if *filter == GuestFaults::User || narrow.len() == MAX_NARROW {
            return Target::Trap;
        }
        narrow.push(slot);
        target
    }

    /// The guest needs this entry Mapped. If it is narrow, the filter falls back.
    pub(super) fn admit_narrow(&mut self, slot: Slot, target: Target) {
        if !self.view().would_be_narrow(slot, target) {
            return;
        }
        if self.filter.is_user() {
            self.choose(GuestFaults::Present);
        }
        if let Some(old) = self.filter.remember(slot) {
            self.look_if_narrow(old);
        }
    }
}
