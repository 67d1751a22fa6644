//! What lies behind a 2 MiB region of the guest's memory.

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_paging::{Gfn, Hfn};

use super::REGION;
use crate::{Backing, GuestMemory};

/// What lies behind a 2 MiB region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionBacking {
    /// One aligned piece of host memory, writable or not throughout.
    Whole { hfn: Hfn, writable: bool },
    /// Several pieces, or holes.
    Pieces,
    /// No memory at all.
    Empty,
}

impl RegionBacking {
    /// Asks about each frame of the region from `first` on.
    pub(super) fn ask(memory: &impl GuestMemory, first: Gfn) -> RegionBacking {
        let start = memory.backing(first);
        let rest = (1..REGION).map(|n| (n, memory.backing(first + n)));
        match start {
            Backing::None if rest.clone().all(|(_, backing)| backing == Backing::None) => {
                RegionBacking::Empty
            }
            Backing::Ram { hfn, writable }
                if hfn.raw() % REGION == 0
                    && rest
                        .clone()
                        .all(|(n, backing)| backing == Backing::Ram { hfn: hfn + n, writable }) =>
            {
                RegionBacking::Whole { hfn, writable }
            }
            _ => RegionBacking::Pieces,
        }
    }
}

/// What was found out about a region. Atomic, because who only looks remembers it, too: whoever
/// asks at the same time finds the same.
#[derive(Default)]
pub(super) struct Remembered(AtomicU64);

impl Remembered {
    const UNKNOWN: u64 = 0;
    const EMPTY: u64 = 1;
    const PIECES: u64 = 2;
    const READ_ONLY: u64 = 3;
    const WRITABLE: u64 = 4;
    /// The kind has so many bits; the host frame stands above it.
    const KIND: u32 = 3;

    pub(super) fn get(&self) -> Option<RegionBacking> {
        let word = self.0.load(Ordering::Relaxed);
        let hfn = Hfn::new(word >> Self::KIND);
        Some(match word & ((1 << Self::KIND) - 1) {
            Self::UNKNOWN => return None,
            Self::EMPTY => RegionBacking::Empty,
            Self::PIECES => RegionBacking::Pieces,
            kind => RegionBacking::Whole { hfn, writable: kind == Self::WRITABLE },
        })
    }

    pub(super) fn set(&self, backing: RegionBacking) {
        let word = match backing {
            RegionBacking::Empty => Self::EMPTY,
            RegionBacking::Pieces => Self::PIECES,
            RegionBacking::Whole { hfn, writable: false } => {
                hfn.raw() << Self::KIND | Self::READ_ONLY
            }
            RegionBacking::Whole { hfn, writable: true } => {
                hfn.raw() << Self::KIND | Self::WRITABLE
            }
        };
        self.0.store(word, Ordering::Relaxed);
    }

    pub(super) fn forget(&self) {
        self.0.store(Self::UNKNOWN, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_what_was_found() {
        let remembered = Remembered::default();
        assert_eq!(remembered.get(), None);
        let whole = |hfn, writable| RegionBacking::Whole { hfn: Hfn::new(hfn), writable };
        let last = (1 << 40) - REGION;
        for backing in [
            RegionBacking::Empty,
            RegionBacking::Pieces,
            whole(0, false),
            whole(0, true),
            whole(REGION, false),
            whole(last, false),
            whole(last, true),
        ] {
            remembered.set(backing);
            assert_eq!(remembered.get(), Some(backing));
        }
        remembered.forget();
        assert_eq!(remembered.get(), None);
    }
}
