//! Taking shadow pages away: by reclaim, by revocation, or because their table is no longer one.

use umbra_paging::Gfn;

use super::Cx;
use crate::format::ShadowKey;
use crate::tables::List;
use crate::{Env, Event, ShadowFrame};

impl<E: Env> Cx<'_, E> {
    /// Zaps a page that is not pinned: unlink it, flush if it may be cached, and only then let its
    /// guest frame go (I5).
    pub(super) fn zap(&mut self, frame: ShadowFrame) {
        self.shadow.basis.tables_mut().look_all(self.env, List::Parents(frame));
        self.shadow.basis.tables_mut().close(self.env, frame);
        let key = self.shadow.basis.tables().key(frame);
        self.move_home(frame, key);
        let (tables, guest) = self.shadow.basis.both_mut();
        let tracked = guest.is_tracked(key.gfn);
        let untracked = guest.remove(tables, key, frame);
        let cached = tables.pool().may_be_cached(frame);
        tables.retire(frame, cached, tracked.then_some(key.gfn));
        self.happened(Event::Zapped(key.into()));
        if untracked {
            // Other shadows of the frame may have gone before this one, and wait for their flush.
            if cached || self.shadow.basis.tables().pool().has_quarantine() {
                self.flush();
            }
            self.entries().unprotect(key.gfn);
        }
    }

    /// Zaps the shadows of a guest frame, but for roots that vCPUs run on: their entries become
    /// Trapping.
    pub(super) fn zap_tables(&mut self, gfn: Gfn) {
        self.follow_roots();
        self.withdraw_everywhere(gfn);
        self.each_shadow(gfn, |cx, frame| {
            if cx.shadow.roots.is_current(frame) {
                cx.shadow.basis.tables_mut().look_everywhere(cx.env, frame);
            } else if !cx.shadow.basis.tables().pool().is_pinned(frame) {
                cx.zap(frame);
            }
        });
    }

    /// Throws all shadows away. They are built again as the guest faults. Nothing is read of the
    /// guest's memory or of its map.
    pub(crate) fn zap_all(&mut self) {
        for frame in self.shadow.basis.tables().pool().frames() {
            let pool = self.shadow.basis.tables().pool();
            if pool.live_key(frame).is_some() && !pool.is_pinned(frame) {
                self.zap(frame);
            }
        }
        for frame in self.shadow.basis.tables().pool().frames() {
            // What is left are roots in use. PDPTEs cannot be Trapping; their pages are pinned with
            // them.
            let keep = |key: ShadowKey| key.role.is_pdptes();
            if self.shadow.basis.tables().pool().live_key(frame).is_some_and(|key| !keep(key)) {
                self.shadow.basis.tables_mut().look_everywhere(self.env, frame);
            }
        }
        self.flush();
    }

    /// No vCPU may load a shadow of this frame by itself any more, or runs on its PDPTEs.
    pub(super) fn withdraw_everywhere(&mut self, gfn: Gfn) {
        self.shadow.roots.withdraw_everywhere(self.shadow.basis.tables_mut(), gfn);
        self.leave_pae_root(gfn);
    }
}
