//! Copies of guest tables as they were last read, so that a table that is attached again is looked at only where it has
//! changed.
//!
//! An entry of a shadow page is what it should be for as long as the guest's entry is the same and nothing is stored to the
//! shadow entry: what else it depends on (tracking, backing, the page that it links) stores there when it changes. A copy is
//! never needed; a few pages have one.

use alloc::vec;
use alloc::vec::Vec;

use umbra_paging::ENTRIES;

/// Pages that can have a copy.
const COPIES: usize = 32;
const NONE: u32 = u32::MAX;

pub(crate) struct Copies {
    /// The shadow page of each copy.
    owners: [u32; COPIES],
    /// A bit for each eight entries: set while the copy tells what their shadows were made from.
    valid: [u64; COPIES],
    entries: Vec<[u64; ENTRIES]>,
    /// The copy that is given away next.
    next: usize,
}

impl Copies {
    pub(crate) fn new() -> Copies {
        Copies { owners: [NONE; COPIES], valid: [0; COPIES], entries: vec![[0; ENTRIES]; COPIES], next: 0 }
    }

    /// The bytes that this takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.entries)
    }

    /// The copy of a page's table, if it has one.
    pub(crate) fn of(&self, frame: u32) -> Option<usize> {
        self.owners.iter().position(|&owner| owner == frame)
    }

    /// Gives the page a copy, if it has none; it tells nothing yet. The page that had it before is named.
    pub(crate) fn give(&mut self, frame: u32) -> Option<u32> {
        if self.of(frame).is_some() {
            return None;
        }
        let at = self.next;
        self.next = (at + 1) % COPIES;
        self.valid[at] = 0;
        let before = core::mem::replace(&mut self.owners[at], frame);
        (before != NONE).then_some(before)
    }

    /// The page is gone, or loses its copy.
    pub(crate) fn take(&mut self, frame: u32) {
        if let Some(at) = self.of(frame) {
            self.owners[at] = NONE;
        }
    }

    /// Notes that a shadow entry of the page was stored.
    pub(crate) fn stored(&mut self, frame: u32, group: usize) {
        if let Some(at) = self.of(frame) {
            self.valid[at] &= !(1 << group);
        }
    }

    /// Which of the guest's entries `8 * group..` are not those that their shadows were made from: a bit for each.
    #[inline]
    pub(crate) fn changed(&self, copy: usize, group: usize, guest: &[u64; 8]) -> u8 {
        if self.valid[copy] & 1 << group == 0 {
            return u8::MAX;
        }
        let known = &self.entries[copy].as_chunks::<8>().0[group];
        // Most groups have not changed: without a branch for each entry.
        if known.iter().zip(guest).fold(0, |all, (known, guest)| all | (known ^ guest)) == 0 {
            return 0;
        }
        (0..8).fold(0, |all, n| all | u8::from(known[n] != guest[n]) << n)
    }

    /// Notes what the shadows of the entries `8 * group..` were made from just now.
    pub(crate) fn note(&mut self, copy: usize, group: usize, guest: &[u64; 8]) {
        self.entries[copy].as_chunks_mut::<8>().0[group] = *guest;
        self.valid[copy] |= 1 << group;
    }
}
