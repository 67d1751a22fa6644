//! The reverse map: every Mapped shadow entry stands in exactly one list. So all entries for a
//! guest frame, and all parents of a shadow page, are found without a search.
//!
//! The links are arrays, one for each shadow page that lives: what the map takes grows with what is
//! in use, and is capped with the pool. It has a reserve from the start. So where the heap is
//! exhausted, a page that is reclaimed leaves its array to the next one.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use umbra_paging::ENTRIES;

use crate::ShadowFrame;

/// The end of a list.
const NONE: u32 = u32::MAX;

/// An entry of a shadow page: its frame in the pool and its index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot(u32);

impl Slot {
    pub(crate) fn new(frame: ShadowFrame, index: usize) -> Slot {
        debug_assert!(index < ENTRIES);
        Slot(frame.raw() << 9 | index as u32)
    }

    pub(crate) fn frame(self) -> ShadowFrame {
        ShadowFrame::new(self.0 >> 9)
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize % ENTRIES
    }
}

/// What a list of entries has in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum List {
    /// 4 KiB translations of this guest frame.
    Gfn(u32),
    /// 2 MiB translations of this region (gfn / 512).
    Region(u32),
    /// References to the shadow page in this frame.
    Parents(ShadowFrame),
}

/// Where a list begins.
#[derive(Clone, Copy)]
struct Head(u32);

impl Head {
    const EMPTY: Head = Head(NONE);

    fn first(self) -> Option<Slot> {
        (self.0 != NONE).then_some(Slot(self.0))
    }
}

/// What stands before an entry in its list: another entry, or the list's head. Two tag bits.
#[derive(Clone, Copy)]
struct Previous(u32);

impl Previous {
    const UNLISTED: Previous = Previous(NONE);

    fn head(list: List) -> Previous {
        Previous(match list {
            List::Gfn(n) => 1 << 30 | n,
            List::Region(n) => 2 << 30 | n,
            List::Parents(frame) => 3 << 30 | frame.raw(),
        })
    }

    fn decode(self) -> Result<Slot, List> {
        let n = self.0 & ((1 << 30) - 1);
        match self.0 >> 30 {
            0 => Ok(Slot(n)),
            1 => Err(List::Gfn(n)),
            2 => Err(List::Region(n)),
            _ => Err(List::Parents(ShadowFrame::new(n))),
        }
    }
}

#[derive(Clone, Copy)]
struct Links {
    previous: Previous,
    next: u32,
}

impl Links {
    const UNLISTED: Links = Links { previous: Previous::UNLISTED, next: NONE };
}

/// The links of a shadow page's entries.
type Page = Box<[Links; ENTRIES]>;

/// So many arrays without a page are kept for the next ones; more, if the reserve is larger.
const MAX_SPARE: usize = 64;

/// A new array; `None` if the heap is exhausted.
fn new_page() -> Option<Page> {
    let mut links = Vec::new();
    links.try_reserve_exact(ENTRIES).ok()?;
    links.resize(ENTRIES, Links::UNLISTED);
    links.try_into().ok()
}

pub(crate) struct Rmap {
    /// By shadow frame; `None` where no page lives.
    pages: Vec<Option<Page>>,
    /// Pages that have links.
    open: usize,
    /// Arrays of pages that are gone, in which nothing is listed.
    spare: Vec<Page>,
    gfns: Vec<Head>,
    regions: Vec<Head>,
    parents: Vec<Head>,
}

impl Rmap {
    /// A map with room for so many pages from the start. Frame numbers must stay below 2^20 and
    /// gfns below 2^30 (checked by the MMU's configuration).
    pub(super) fn new(frames: u32, gfns: usize, regions: usize, reserve: usize) -> Rmap {
        let mut spare = Vec::with_capacity(reserve.max(MAX_SPARE));
        spare.resize_with(reserve, || Box::new([Links::UNLISTED; ENTRIES]));
        Rmap {
            pages: vec![None; frames as usize],
            open: 0,
            spare,
            gfns: vec![Head::EMPTY; gfns],
            regions: vec![Head::EMPTY; regions],
            parents: vec![Head::EMPTY; frames as usize],
        }
    }

    /// The bytes that this takes now.
    pub(super) fn bytes(&self) -> usize {
        (self.open + self.spare.len()) * size_of::<[Links; ENTRIES]>()
            + size_of_val(&*self.pages)
            + size_of_val(&*self.gfns)
            + size_of_val(&*self.regions)
            + size_of_val(&*self.parents)
    }

    /// Whether one more page can be opened: not if the heap is exhausted.
    pub(super) fn has_room(&mut self) -> bool {
        if self.spare.is_empty() {
            self.spare.extend(new_page());
        }
        !self.spare.is_empty()
    }

    /// Makes room for the entries of a page, which is new.
    ///
    /// # Panics
    /// If there is none: see [`Rmap::has_room`].
    pub(super) fn open(&mut self, frame: ShadowFrame) {
        let page =
            self.spare.pop().expect("a frame is allocated only if there is room for its links");
        let before = self.pages[frame.index()].replace(page);
        debug_assert!(before.is_none());
        self.open += 1;
    }

    /// The page is gone: none of its entries stands in a list.
    pub(super) fn close(&mut self, frame: ShadowFrame) {
        let page = self.pages[frame.index()].take().expect("the page was there");
        debug_assert!(page.iter().all(|links| links.previous.0 == NONE));
        self.open -= 1;
        // More is never kept than there is room for, as pushing must not allocate.
        if self.spare.len() < self.spare.capacity() {
            self.spare.push(page);
        }
    }

    fn links(&self, slot: Slot) -> &Links {
        let page =
            self.pages[slot.frame().index()].as_ref().expect("a page with entries in lists lives");
        &page[slot.index()]
    }

    fn links_mut(&mut self, slot: Slot) -> &mut Links {
        let page =
            self.pages[slot.frame().index()].as_mut().expect("a page with entries in lists lives");
        &mut page[slot.index()]
    }

    fn head_mut(&mut self, list: List) -> &mut Head {
        match list {
            List::Gfn(n) => &mut self.gfns[n as usize],
            List::Region(n) => &mut self.regions[n as usize],
            List::Parents(frame) => &mut self.parents[frame.index()],
        }
    }

    /// The first entry of a list, which was put there last.
    pub(crate) fn first(&self, list: List) -> Option<Slot> {
        let head = match list {
            List::Gfn(n) => self.gfns[n as usize],
            List::Region(n) => self.regions[n as usize],
            List::Parents(frame) => self.parents[frame.index()],
        };
        head.first()
    }

    /// The entries of a list.
    pub(crate) fn iter(&self, list: List) -> impl Iterator<Item = Slot> + '_ {
        core::iter::successors(self.first(list), |&slot| self.next(slot))
    }

    /// The entry behind one that stands in a list.
    pub(crate) fn next(&self, slot: Slot) -> Option<Slot> {
        Head(self.links(slot).next).first()
    }

    /// Puts an entry at the front of a list.
    ///
    /// # Panics
    /// If it stands in a list: one Mapped entry, one list.
    pub(super) fn insert(&mut self, list: List, slot: Slot) {
        let head = self.head_mut(list);
        let next = core::mem::replace(&mut head.0, slot.0);
        let links = self.links_mut(slot);
        assert!(links.previous.0 == NONE, "{slot:?} stands in a list already");
        *links = Links { previous: Previous::head(list), next };
        if next != NONE {
            self.links_mut(Slot(next)).previous = Previous(slot.0);
        }
    }

    /// Takes an entry out of its list.
    ///
    /// # Panics
    /// If it stands in none.
    pub(super) fn remove(&mut self, slot: Slot) {
        let links = core::mem::replace(self.links_mut(slot), Links::UNLISTED);
        assert!(links.previous.0 != NONE, "{slot:?} stands in no list");
        match links.previous.decode() {
            Ok(before) => self.links_mut(before).next = links.next,
            Err(list) => self.head_mut(list).0 = links.next,
        }
        if links.next != NONE {
            self.links_mut(Slot(links.next)).previous = links.previous;
        }
    }

    /// The list that an entry stands in, by walking to its head: for the auditor.
    pub(crate) fn list_of(&self, slot: Slot) -> Option<List> {
        let mut at = slot;
        loop {
            let previous = self.pages[at.frame().index()].as_ref()?[at.index()].previous;
            if previous.0 == NONE {
                return None;
            }
            match previous.decode() {
                Ok(before) => at = before,
                Err(list) => return Some(list),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(frame: u32, index: usize) -> Slot {
        Slot::new(ShadowFrame::new(frame), index)
    }

    fn listed(rmap: &Rmap, list: List) -> Vec<Slot> {
        rmap.iter(list).collect()
    }

    #[test]
    fn entries_leave_from_anywhere() {
        let slots = [slot(0, 0), slot(0, 511), slot(1, 7)];
        for list in [List::Gfn(3), List::Region(0), List::Parents(ShadowFrame::new(1))] {
            for gone in 0..3 {
                let mut rmap = Rmap::new(2, 4, 1, 2);
                (0..2).for_each(|n| rmap.open(ShadowFrame::new(n)));
                slots.iter().for_each(|&slot| rmap.insert(list, slot));
                rmap.remove(slots[gone]);
                let left: Vec<_> =
                    slots.iter().rev().copied().filter(|&slot| slot != slots[gone]).collect();
                assert_eq!(listed(&rmap, list), left);
                assert!(left.iter().all(|&slot| rmap.list_of(slot) == Some(list)));
                assert_eq!(rmap.list_of(slots[gone]), None);
            }
        }
    }

    #[test]
    #[should_panic(expected = "stands in a list already")]
    fn an_entry_stands_in_one_list() {
        let mut rmap = Rmap::new(1, 1, 1, 1);
        rmap.open(ShadowFrame::new(0));
        rmap.insert(List::Gfn(0), slot(0, 0));
        rmap.insert(List::Region(0), slot(0, 0));
    }
}
