//! What the MMU tells of its own doings, and counts.

use umbra_paging::{Gfn, Level};

use crate::GuestFaults;
use crate::format::{Role, ShadowKey};

/// Something that the MMU did: for the embedder's trace
/// ([`ShadowFrames::observe`](crate::ShadowFrames::observe)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A shadow page was built.
    Built(Shadowed),
    /// A shadow page was zapped.
    Zapped(Shadowed),
    /// The shadow page that is zapped next makes room for another.
    Reclaimed,
    /// A large guest page at `gfn` had to be mapped by smaller ones.
    Split {
        /// Its first frame.
        gfn: Gfn,
    },
    /// Everything that the CPUs had cached was flushed.
    Flushed,
    /// Nothing leads to the shadows of this guest table any more, so that the guest may write it.
    Detached(Gfn),
    /// A detached guest table is used again.
    Attached {
        /// Its frame.
        gfn: Gfn,
        /// Its level.
        level: Level,
        /// How many shadow entries had to be changed.
        changed: u32,
    },
    /// The shadow of this root was moved to where the guest's own CR3 points, or back.
    RootMoved(Gfn),
    /// This page-fault filter is in force from now on.
    Filter(GuestFaults),
    /// Writes to this guest table are not seen from now on, until it is [`Event::Resynced`]: at a
    /// flush of the guest, which the policy may let pass.
    Unsynced(Gfn),
    /// Writes to this guest table are seen again.
    Resynced(Gfn),
}

/// What a shadow page is a shadow of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadowed {
    /// A table of the guest.
    Table {
        /// The frame of the table.
        gfn: Gfn,
        /// Its level.
        level: Level,
    },
    /// None: the page maps a stretch of guest-physical memory, or holds PDPTE registers (level 3).
    Identity {
        /// The first frame.
        gfn: Gfn,
        /// The level of the page.
        level: Level,
    },
}

impl From<ShadowKey> for Shadowed {
    fn from(key: ShadowKey) -> Shadowed {
        let (gfn, level) = (key.gfn, key.role.level());
        match key.role {
            Role::Guest { .. } | Role::PaeRoot { .. } => Shadowed::Table { gfn, level },
            Role::Direct { .. } | Role::Pdptes { .. } | Role::Nowhere => {
                Shadowed::Identity { gfn, level }
            }
        }
    }
}

/// What the MMU did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Shadow pages built.
    pub built: u64,
    /// Shadow pages zapped, for whatever reason.
    pub zapped: u64,
    /// Of these, zapped to make room.
    pub reclaimed: u64,
    /// Large guest pages that had to be mapped by smaller ones.
    pub splits: u64,
    /// Full TLB flushes.
    pub flushes: u64,
    /// Guest tables detached.
    pub detached: u64,
    /// Guest tables attached again.
    pub attached: u64,
    /// Roots moved to where the guest's CR3 points, and back.
    pub roots_moved: u64,
    /// Changes between [`GuestFaults::Present`] and [`GuestFaults::User`].
    pub filter_switches: u64,
    /// Guest tables whose writes were not seen for a while.
    pub unsynced: u64,
}

impl Counters {
    pub(crate) fn count(&mut self, event: Event) {
        match event {
            Event::Built(_) => self.built += 1,
            Event::Zapped(_) => self.zapped += 1,
            Event::Reclaimed => self.reclaimed += 1,
            Event::Split { .. } => self.splits += 1,
            Event::Flushed => self.flushes += 1,
            Event::Detached(_) => self.detached += 1,
            Event::Attached { .. } => self.attached += 1,
            Event::RootMoved(_) => self.roots_moved += 1,
            Event::Filter(_) => self.filter_switches += 1,
            Event::Unsynced(_) => self.unsynced += 1,
            Event::Resynced(_) => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_counted_once() {
        let (gfn, level) = (Gfn::new(1), Level::L1);
        let table = Shadowed::Table { gfn, level };
        let twice = |event| {
            let mut counters = Counters::default();
            (0..2).for_each(|_| counters.count(event));
            counters
        };
        let none = Counters::default();
        assert_eq!(twice(Event::Built(table)), Counters { built: 2, ..none });
        assert_eq!(twice(Event::Zapped(table)), Counters { zapped: 2, ..none });
        assert_eq!(twice(Event::Reclaimed), Counters { reclaimed: 2, ..none });
        assert_eq!(twice(Event::Split { gfn }), Counters { splits: 2, ..none });
        assert_eq!(twice(Event::Flushed), Counters { flushes: 2, ..none });
        assert_eq!(twice(Event::Detached(gfn)), Counters { detached: 2, ..none });
        let attached = Event::Attached { gfn, level, changed: 5 };
        assert_eq!(twice(attached), Counters { attached: 2, ..none });
        assert_eq!(twice(Event::RootMoved(gfn)), Counters { roots_moved: 2, ..none });
        let filter = Event::Filter(GuestFaults::User);
        assert_eq!(twice(filter), Counters { filter_switches: 2, ..none });
        assert_eq!(twice(Event::Unsynced(gfn)), Counters { unsynced: 2, ..none });
        assert_eq!(twice(Event::Resynced(gfn)), none);
    }
}
