//! Which shadow entries changed since the last audit.

use alloc::vec::Vec;

use umbra_paging::ENTRIES;

use super::rmap::Slot;
use crate::ShadowFrame;

pub(super) struct ChangeLog {
    slots: Vec<Slot>,
    /// More changed than fits.
    overflow: bool,
    on: bool,
}

impl ChangeLog {
    const CAPACITY: usize = 8192;

    pub(super) fn new(on: bool) -> ChangeLog {
        ChangeLog {
            slots: Vec::with_capacity(if on { Self::CAPACITY } else { 0 }),
            overflow: false,
            on,
        }
    }

    #[inline]
    pub(super) fn push(&mut self, slot: Slot) {
        match self.on {
            true if self.slots.len() < Self::CAPACITY => self.slots.push(slot),
            true => self.overflow = true,
            false => (),
        }
    }

    /// All entries of a page are new.
    pub(super) fn push_all(&mut self, frame: ShadowFrame) {
        if self.on {
            (0..ENTRIES).for_each(|index| self.push(Slot::new(frame, index)));
        }
    }

    /// The page in `frame` is gone.
    pub(super) fn forget(&mut self, frame: ShadowFrame) {
        if self.on {
            self.slots.retain(|slot| slot.frame() != frame);
        }
    }

    /// Takes one of the entries that changed.
    pub(super) fn pop(&mut self) -> Option<Slot> {
        self.slots.pop()
    }

    pub(super) fn has_overflowed(&self) -> bool {
        self.overflow
    }

    /// Everything was looked at.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.overflow = false;
    }
}
