//! Tables linked ahead of their use: those of an address space that has just come into use.
//!
//! What a new process touches first it touches in a few places, each in page tables of its own. So
//! when the first of them is linked into a root, what else the root leads to is linked, too, as far
//! as it is little. (Only in the lower half: the upper one is the kernel's, and in use already. Not
//! as soon as the root is loaded: most of what the kernel has yet to write there it writes before
//! it uses any.) Behind PDPTEs these are the lower three page directories, because 32-bit kernels
//! keep the last GiB.

use umbra_paging::{ENTRIES, Level};

use crate::derive::{Target, View};
use crate::format::{Role, ShadowKey};
use crate::tables::{GROUP, PageId, Slot, slots};
use crate::{Env, ShadowFrame};

/// Tables that are linked ahead in one exit.
const MAX_TABLES: u32 = 12;
/// Tables on the way from a root to a page table; and page directories behind PDPTEs that are the
/// user's.
const DEPTH: usize = 3;

/// What to do next.
pub(crate) enum Step {
    /// This page is missing.
    Provide(ShadowKey),
    /// The page that this entry references is there.
    Link(Slot),
}

/// The entries of one page that are still to be looked at.
#[derive(Clone, Copy)]
struct Page {
    id: PageId,
    /// Groups not yet looked at.
    groups: u64,
    /// Entries of the group that is being looked at.
    group: usize,
    pending: u8,
}

/// The way through the tables below a root: those that are not linked yet, and what is below each.
pub(crate) struct PrefetchTables {
    pages: [Option<Page>; DEPTH],
    /// Tables that may still be linked, or looked through.
    left: u32,
    /// The page of this entry is about to be provided.
    provided: Option<Slot>,
    /// The entry that was linked last, and whether its page had to be provided.
    linked: Option<(Slot, bool)>,
}

impl PrefetchTables {
    /// Tables below a root that a vCPU runs on; nothing, if that is no guess worth making.
    pub(crate) fn below<E: Env>(view: View<'_, E>, root: ShadowFrame) -> Option<PrefetchTables> {
        let pool = view.tables().pool();
        // Nothing is reclaimed for a guess.
        let room = pool.live() + 2 * MAX_TABLES <= pool.count();
        if !room || !view.config().prefetch_tables || view.guest().has_unsync() {
            return None;
        }
        let is_table =
            |frame: &ShadowFrame| matches!(view.tables().key(*frame).role, Role::Guest { .. });
        let mut pages = [None; DEPTH];
        match view.tables().key(root).role {
            Role::Pdptes { .. } | Role::PaeRoot { .. } => {
                for (index, page) in pages.iter_mut().enumerate() {
                    let directory = view.child(Slot::new(root, index)).filter(is_table);
                    *page = directory.map(|frame| Page::new(view, frame, u64::MAX));
                }
            }
            _ => {
                let lower_half = u64::MAX >> (64 - ENTRIES / 2 / GROUP);
                pages[0] = Some(Page::new(view, root, lower_half)).filter(|_| is_table(&root));
            }
        }
        Some(PrefetchTables { pages, left: MAX_TABLES, provided: None, linked: None })
    }

    /// The next step, once the last one is done. `None` at the end.
    pub(crate) fn next<E: Env>(&mut self, view: View<'_, E>) -> Option<Step> {
        if let Some((slot, paid)) = self.linked.take() {
            self.descend(view, slot, paid)?;
        }
        if let Some(slot) = self.provided.take() {
            // What was provided may have taken the place of the page: a table can have several
            // roles.
            self.live_page(view)?;
            self.linked = Some((slot, true));
            return Some(Step::Link(slot));
        }
        let slot = loop {
            let page = self.live_page(view)?;
            match page.next_pending(view) {
                Some(slot) => break slot,
                None => self.leave()?,
            }
        };
        if let Target::Missing(key) = view.target(slot, false) {
            if !matches!(key.role, Role::Guest { .. }) {
                return None;
            }
            self.pay()?;
            self.provided = Some(slot);
            return Some(Step::Provide(key));
        }
        self.linked = Some((slot, false));
        Some(Step::Link(slot))
    }

    /// Goes on below the entry that was linked just now. (What was there already costs as much to
    /// look through.)
    fn descend<E: Env>(&mut self, view: View<'_, E>, slot: Slot, paid: bool) -> Option<()> {
        let Some(child) = view.child(slot) else { return Some(()) };
        let role = view.tables().key(child).role;
        if !matches!(role, Role::Guest { level, .. } if level != Level::L1) {
            return Some(());
        }
        if !paid {
            self.pay()?;
        }
        let free = self.pages.iter_mut().find(|page| page.is_none())?;
        *free = Some(Page::new(view, child, u64::MAX));
        Some(())
    }

    fn pay(&mut self) -> Option<()> {
        self.left = self.left.checked_sub(1)?;
        Some(())
    }

    /// The page that is being looked through, if it still lives.
    fn live_page<E: Env>(&mut self, view: View<'_, E>) -> Option<&mut Page> {
        let page = self.pages.iter_mut().rev().flatten().next()?;
        view.tables().pool().frame_of(page.id)?;
        Some(page)
    }

    /// The page is done: goes on in the one above.
    fn leave(&mut self) -> Option<()> {
        let last = self.pages.iter_mut().rev().find(|page| page.is_some())?;
        *last = None;
        Some(())
    }
}

impl Page {
    fn new<E: Env>(view: View<'_, E>, frame: ShadowFrame, groups: u64) -> Page {
        let pool = view.tables().pool();
        Page { id: pool.id(frame), groups: pool.busy(frame) & groups, group: 0, pending: 0 }
    }

    /// The next entry that was Trapping when its group was reached.
    fn next_pending<E: Env>(&mut self, view: View<'_, E>) -> Option<Slot> {
        let frame = self.id.frame();
        if self.pending == 0 {
            let look = view.tables().encodings().trap_entry();
            let tables = view.tables();
            (self.group, self.pending) =
                tables.next_of(view.env(), frame, &mut self.groups, |entry| entry == look)?;
        }
        let slot = slots(frame, self.group, self.pending).next()?;
        self.pending &= self.pending - 1;
        Some(slot)
    }
}
