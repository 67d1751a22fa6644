//! What the MMU tells of its own doings.

use umbra_paging::{Gfn, Level};

use crate::GuestFaults;
use crate::format::{Role, Source};

/// Something that the MMU did: for the embedder's trace ([`ShadowFrames::observe`](crate::ShadowFrames::observe)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Writes to this guest table are not seen until the guest's next flush.
    Loosened(Gfn),
    /// Writes to this guest table are seen again.
    Tightened(Gfn),
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
    /// None: the page maps a stretch of guest-physical memory.
    Identity {
        /// The first frame.
        gfn: Gfn,
        /// The level of the page.
        level: Level,
    },
}

impl From<Source> for Shadowed {
    fn from(source: Source) -> Shadowed {
        let (gfn, level) = (source.gfn, source.role.level());
        match source.role {
            Role::Guest { .. } => Shadowed::Table { gfn, level },
            Role::Direct { .. } | Role::PaeRoot => Shadowed::Identity { gfn, level },
        }
    }
}
