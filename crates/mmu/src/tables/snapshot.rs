//! Copies of guest tables as they were last read, so that a table that is attached again is looked
//! at only where it has changed.
//!
//! An entry of a shadow page is what it should be for as long as the guest's entry is the same and
//! nothing is stored to the shadow entry. It also depends on tracking, backing, the page that it
//! links and the filter. Each of these stores there when it changes, in a detached table, too,
//! whatever the guest's entry says meanwhile. A copy is never needed; a few pages have one.

use alloc::vec::Vec;

use umbra_paging::{ENTRIES, Gfn, bits};

use crate::{Env, ShadowFrame};

/// Pages that can have a copy.
const COPIES: usize = 32;
/// Entries that are looked at together.
pub(crate) const GROUP: usize = 8;

/// A guest table by groups of entries.
type Table = [[u64; GROUP]; ENTRIES / GROUP];

struct Copy {
    /// The shadow page that it belongs to.
    owner: Option<ShadowFrame>,
    /// A bit for each group: set while the copy tells what their shadows were made from.
    valid: u64,
    table: Table,
}

pub(super) struct Copies {
    copies: Vec<Copy>,
    /// The copy that is given away next.
    next: u8,
}

impl Copies {
    pub(super) fn new() -> Copies {
        let copy = || Copy { owner: None, valid: 0, table: [[0; GROUP]; ENTRIES / GROUP] };
        Copies { copies: (0..COPIES).map(|_| copy()).collect(), next: 0 }
    }

    /// The bytes that this takes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.copies)
    }

    /// Gives a page a copy; says which, and what page had it before. It tells nothing of the `busy`
    /// groups yet; the others are all NotPresent, as what is made from nothing.
    pub(super) fn give(&mut self, frame: ShadowFrame, busy: u64) -> (u8, Option<ShadowFrame>) {
        let at = self.next;
        self.next = (at + 1) % COPIES as u8;
        let copy = &mut self.copies[usize::from(at)];
        copy.table.as_flattened_mut().fill(0);
        copy.valid = !busy;
        (at, copy.owner.replace(frame))
    }

    /// The page that has this copy is gone.
    pub(super) fn take(&mut self, copy: u8) {
        self.copies[usize::from(copy)].owner = None;
    }

    /// Notes that a shadow entry of this group was stored.
    pub(super) fn stored(&mut self, copy: u8, group: usize) {
        self.copies[usize::from(copy)].valid &= !(1 << group);
    }

    /// The groups to look at of the table in the frame `gfn`, a bit for each: not those that are as
    /// they were copied, nor those without a copy that say nothing, unless they are `busy`.
    pub(super) fn changed(&self, copy: Option<u8>, env: &impl Env, gfn: Gfn, busy: u64) -> u64 {
        const EMPTY: &Table = &[[0; GROUP]; ENTRIES / GROUP];
        match copy.map(|copy| &self.copies[usize::from(copy)]) {
            None => busy | env.compare_table(gfn, EMPTY),
            Some(Copy { valid, table, .. }) => !valid | env.compare_table(gfn, table),
        }
    }

    /// Which entries of a group are not those that their shadows were made from: a bit for each.
    pub(super) fn changed_in(&self, copy: Option<u8>, group: usize, now: &[u64; GROUP]) -> u8 {
        match copy.map(|copy| &self.copies[usize::from(copy)]) {
            Some(Copy { valid, table, .. }) if valid & 1 << group != 0 => {
                (0..GROUP).fold(0, |all, n| all | u8::from(table[group][n] != now[n]) << n)
            }
            _ => u8::MAX,
        }
    }

    /// Notes what the shadows of a group were made from just now.
    pub(super) fn note(&mut self, copy: u8, group: usize, now: &[u64; GROUP]) {
        let copy = &mut self.copies[usize::from(copy)];
        copy.table[group] = *now;
        copy.valid |= 1 << group;
    }
}

/// Whether any of these guest entries is present.
pub(crate) fn has_present(group: &[u64; GROUP]) -> bool {
    group.iter().fold(0, |all, entry| all | entry) & bits::P != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROS: &[u64; GROUP] = &[0; GROUP];
    const OWNER: ShadowFrame = ShadowFrame::new(5);

    #[test]
    fn a_fresh_copy_tells_nothing_of_what_is_in_use() {
        let mut copies = Copies::new();
        let (copy, before) = copies.give(OWNER, 0b10);
        assert_eq!(before, None);
        assert_eq!(
            copies.changed_in(Some(copy), 0, ZEROS),
            0,
            "NotPresent, as what is made from nothing"
        );
        assert_eq!(copies.changed_in(Some(copy), 1, ZEROS), u8::MAX);
        copies.note(copy, 1, &[7; GROUP]);
        assert_eq!(copies.changed_in(Some(copy), 1, &[7, 7, 0, 7, 7, 7, 7, 1]), 0b1000_0100);
        copies.stored(copy, 1);
        assert_eq!(copies.changed_in(Some(copy), 1, &[7; GROUP]), u8::MAX);
        assert_eq!(copies.changed_in(None, 0, ZEROS), u8::MAX);
    }

    #[test]
    fn a_copy_that_is_given_away_again_is_a_fresh_one() {
        let mut copies = Copies::new();
        let (first, _) = copies.give(OWNER, 0);
        copies.note(first, 3, &[7; GROUP]);
        let given: Vec<_> =
            (6..6 + COPIES as u32).map(|n| copies.give(ShadowFrame::new(n), 1 << 3)).collect();
        assert_eq!(given[COPIES - 1], (first, Some(OWNER)), "its owner is told");
        assert!(
            given[..COPIES - 1].iter().all(|(copy, before)| *copy != first && before.is_none())
        );
        assert_eq!(copies.changed_in(Some(first), 3, &[7; GROUP]), u8::MAX);
        assert_eq!(copies.changed_in(Some(first), 2, ZEROS), 0);
        copies.take(first);
        let owners: Vec<_> = (0..COPIES).map(|_| copies.give(ShadowFrame::new(99), 0)).collect();
        assert_eq!(owners[COPIES - 1], (first, None), "nobody's any more");
    }
}
