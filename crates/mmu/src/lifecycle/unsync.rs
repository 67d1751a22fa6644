//! Unsync frames: guest tables whose writes are not seen for a while.
//!
//! What is Mapped in their shadows behaves like a TLB: it may be older than the table, which the
//! architecture allows until the guest flushes. They hold no NotPresent entry, so nothing relies on
//! seeing the guest set P. There are two kinds, of which only one exists at a time.
//!
//! # Leaf tables
//! Where loads of roots exit, some tables cost least while their writes are not seen: those that
//! the guest changes entry by entry, each followed by a flush of its own. That is one exit for each
//! INVLPG, and none for the writes. Such a table keeps its shadows, which stay linked:
//!
//! - All of its shadows are page tables. So what leads to them is never out of date.
//! - Every vCPU has left the guest before the first write that is not seen. It comes back with all
//!   flushes exiting, and without roots that it loads by itself. (Where all loads exit, loadable
//!   roots stay, so that CR3 is read without an exit.)
//! - INVLPG brings its entry up to date in all shadows of the table; any larger flush, and every
//!   load of a root, all entries of all tables. Whether they stay unsync then is the policy's
//!   choice. They are tracked again before a root is offered: its loads would not be seen.
//! - What a shadow holds from earlier was never true of addresses, or of rights, that a new
//!   reference adds. So the table is tracked again before one is made.
//! - A fault of the guest brings the entry of its address up to date, as it drops what a TLB holds
//!   for it: so protection faults exit (`sync/filter.rs`). A fault that the hypervisor deals with
//!   installs the entry anew, and drops the same.
//! - Nothing is told from such a shadow alone.
//!
//! # Released tables
//! Some writes to a table can be neither emulated nor allowed by detaching it. The table is the
//! root in use, or it maps the very instruction, stack or operand of the write. Such a frame
//! becomes unsync whatever its level: its shadows are rebuilt as they are needed. They are
//! refreshed before a new reference to one of them is made. At the guest's next flush of any kind
//! the frame is tracked again and its shadows are brought up to date.

use umbra_paging::{Gfn, Level};

use super::{Cx, Shadow};
use crate::format::{Role, ShadowKey};
use crate::policy::{UnsyncFlush, WritePolicy};
use crate::{Env, Event, ShadowFrame, VcpuId};

impl Shadow {
    /// Whether the tracked frame can be an unsync leaf table.
    pub(crate) fn can_unsync(&self, gfn: Gfn) -> bool {
        let (pool, guest) = (self.basis.tables().pool(), self.basis.guest());
        let is_leaf = |frame| matches!(pool.key(frame).role, Role::Guest { level: Level::L1, .. });
        guest.is_tracked(gfn)
            && !guest.has_unsync_above_leaves()
            && guest.shadows(pool, gfn).all(is_leaf)
    }
}

/// Leaf tables.
impl<E: Env> Cx<'_, E> {
    /// Lets the guest write a leaf table unseen, until a flush, or a fault, for which the policy
    /// ends that.
    pub(crate) fn unsync_leaf(&mut self, gfn: Gfn) {
        self.begin_unsync(gfn, true);
        self.each_shadow(gfn, |cx, frame| {
            cx.shadow.basis.tables_mut().look_where_absent(cx.env, frame);
            cx.entries().note_unsync(frame);
        });
        // Every vCPU comes back with what an unsync table needs. A zapped shadow of it that is
        // still cached goes first.
        if self.shadow.basis.tables().pool().has_quarantine() {
            self.flush();
        } else if self.shadow.basis.config().vcpus > 1 {
            self.env.kick();
        }
        self.entries().unprotect(gfn);
    }

    /// Tracks an unsync leaf table again, and brings its shadows up to date.
    pub(crate) fn resync_leaf(&mut self, gfn: Gfn) {
        self.shadow.guest_mut().resync(gfn);
        self.happened(Event::Resynced(gfn));
        self.entries().protect_now(gfn);
        self.each_shadow(gfn, |cx, frame| {
            // Trapping entries become NotPresent, also where the guest's are as they were noted.
            cx.shadow.basis.tables_mut().forget_copy(frame);
            cx.entries().fill_now(frame);
        });
    }

    /// The guest flushes all addresses. Brings unsync leaf tables up to date; those that the policy
    /// does not leave so are tracked again, and so are all other unsync tables.
    pub(crate) fn guest_flushes(&mut self, policy: &mut dyn WritePolicy) {
        if self.shadow.basis.guest().has_unsync_above_leaves() {
            return self.resync_all();
        }
        let mut n = 0;
        while let Some(&gfn) = self.shadow.basis.guest().unsync_frames().get(n) {
            let mut changed = 0;
            self.each_shadow(gfn, |cx, frame| {
                changed = cx.entries().fill_unsync(frame).max(changed);
            });
            if policy.flushed(UnsyncFlush::All(gfn, changed)) {
                n += 1;
            } else {
                self.resync_leaf(gfn);
            }
        }
    }

    /// Tracks unsync leaf tables again: a root is to be offered, whose loads are flushes that are
    /// not seen.
    pub(super) fn before_offer(&mut self, vcpu: VcpuId) {
        let unseen = !self.shadow.config().cr3_loads_exit && self.shadow.roots.can_load(vcpu);
        if unseen && !self.shadow.basis.guest().has_unsync_above_leaves() {
            self.resync_all();
        }
    }

    /// Makes sure that what a shadow page leads to is up to date, before a reference to it is added
    /// or changed, and after the guest's own reference was read.
    pub(crate) fn before_link(&mut self, child: ShadowFrame) {
        let guest = self.shadow.basis.guest();
        if !guest.has_unsync() || guest.has_unsync_above_leaves() {
            return;
        }
        let ShadowKey { role: Role::Guest { level, .. }, gfn } =
            self.shadow.basis.tables().key(child)
        else {
            return;
        };
        if level != Level::L1 {
            self.resync_all();
        } else if guest.is_unsync_leaf(gfn) {
            self.resync_leaf(gfn);
        }
    }
}

impl<E: Env> Cx<'_, E> {
    /// The frame counts as unsync from now on. If there are too many, the oldest is tracked again.
    /// No vCPU loads a root by itself any more, because every flush of the guest must exit: but
    /// where loads exit, loadable roots stay, for CR3 to be read.
    fn begin_unsync(&mut self, gfn: Gfn, leaf: bool) {
        if self.shadow.basis.guest().unsync_is_full() {
            let oldest = self.shadow.basis.guest().unsync_frames()[0];
            self.resync(oldest);
        }
        if !self.shadow.config().cr3_loads_exit {
            self.follow_roots();
            self.shadow.roots.withdraw_all(self.shadow.basis.tables_mut());
        }
        self.shadow.guest_mut().unsync(gfn, leaf);
        self.happened(Event::Unsynced(gfn));
    }

    /// Makes a tracked frame unsync until the guest's next flush.
    pub(crate) fn unsync(&mut self, gfn: Gfn) {
        if !self.shadow.basis.guest().has_unsync_above_leaves() {
            self.resync_all();
        }
        self.begin_unsync(gfn, false);
        self.zap_tables(gfn);
        self.flush();
        self.entries().unprotect(gfn);
    }

    /// Tracks an unsync frame again.
    fn resync(&mut self, gfn: Gfn) {
        if self.shadow.basis.guest().is_unsync_leaf(gfn) {
            return self.resync_leaf(gfn);
        }
        self.zap_tables(gfn);
        self.shadow.guest_mut().resync(gfn);
        self.happened(Event::Resynced(gfn));
        if self.shadow.basis.guest().is_tracked(gfn) {
            self.entries().protect(gfn).ignore("a flush follows in any case");
        }
        // The guest's flush is one for what it wrote in the table; that may have been a large page
        // which is mapped by smaller ones.
        self.flush();
        self.each_shadow(gfn, |cx, frame| _ = cx.entries().fill_now(frame));
    }

    /// Tracks all unsync frames again: at every flush of the guest.
    pub(crate) fn resync_all(&mut self) {
        while let Some(&gfn) = self.shadow.basis.guest().unsync_frames().first() {
            self.resync(gfn);
        }
    }
}
