//! Unsync frames: guest tables whose writes are not seen for a while.
//!
//! Some writes to a table can be neither emulated nor allowed by detaching it: the table is the
//! root in use, or it maps the very instruction, stack or operand of the write. Such a frame
//! becomes *unsync*: its shadows stay (or are rebuilt as needed), but hold no NotPresent entry, so
//! nothing relies on seeing the guest set P. What is Mapped there behaves like a TLB: it may be
//! older than the table, which the architecture allows until the guest flushes. That is so for the
//! addresses under which it was reached already; so the shadows are refreshed before a new
//! reference to one of them is made. At the guest's next flush of any kind the frame is tracked
//! again and its shadows are brought up to date. So every flush of the guest must exit while any
//! table is unsync.

use umbra_paging::Gfn;

use super::Cx;
use crate::{Env, Event};

impl<E: Env> Cx<'_, E> {
    /// Makes a tracked frame unsync until the guest's next flush.
    pub(crate) fn unsync(&mut self, gfn: Gfn) {
        if self.shadow.basis.guest().unsync_is_full() {
            let oldest = self.shadow.basis.guest().unsync_frames()[0];
            self.resync(oldest);
        }
        self.follow_roots();
        // Every flush of the guest must exit from now on.
        self.shadow.roots.withdraw_all(self.shadow.basis.tables_mut());
        self.shadow.guest_mut().unsync(gfn);
        self.happened(Event::Unsynced(gfn));
        self.zap_tables(gfn);
        self.flush();
        self.entries().unprotect(gfn);
    }

    /// Tracks an unsync frame again.
    fn resync(&mut self, gfn: Gfn) {
        self.zap_tables(gfn);
        self.shadow.guest_mut().resync(gfn);
        self.happened(Event::Resynced(gfn));
        if self.shadow.basis.guest().is_tracked(gfn) {
            self.entries().protect(gfn).ignore("a flush follows in any case");
        }
        // The guest's flush is one for what it wrote in the table; that may have been a large page
        // which is mapped by smaller ones.
        self.flush();
        let mut next = self.first_shadow(gfn);
        while let Some(frame) = next {
            next = self.next_shadow(frame);
            self.entries().fill_now(frame);
        }
    }

    /// Tracks all unsync frames again: at every flush of the guest.
    pub(crate) fn resync_all(&mut self) {
        while let Some(&gfn) = self.shadow.basis.guest().unsync_frames().first() {
            self.resync(gfn);
        }
    }
}
