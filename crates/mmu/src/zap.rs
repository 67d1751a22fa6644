//! Taking shadow pages away: by reclaim, by revocation, or because their table is no longer one.

use core::ops::Range;

use umbra_paging::Gfn;

use crate::format::{Role, Source};
use crate::guest::REGION;
use crate::sabotage::Rule;
use crate::tables::List;
use crate::{Env, Event, Mmu};

impl<P> Mmu<P> {
    /// Zaps a page that is not pinned: unlink it, flush if it may be cached, and only then let its guest
    /// frame go (I5).
    pub(crate) fn zap(&mut self, env: &mut impl Env, frame: u32) {
        if self.keeps(Rule::UnlinkParents) {
            self.tables.look_all(env, List::Parents(frame));
        }
        self.tables.close(env, frame);
        let source = self.tables.source(frame);
        self.move_home(env, frame, source);
        let tracked = matches!(source.role, Role::Guest { .. }) && self.guest.is_tracked(source.gfn);
        let untracked = self.guest.remove(&mut self.tables, source, frame);
        let cached = self.tables.pool().may_be_cached(frame);
        self.tables.retire(frame, cached && self.keeps(Rule::Limbo), tracked.then_some(source.gfn));
        self.tables.happened(env, Event::Zapped(source.into()));
        if untracked {
            // Other shadows of the frame may have gone before this one, and wait for their flush.
            if (cached || self.tables.pool().has_limbo()) && self.keeps(Rule::FlushBeforeUnprotect) {
                self.tables.flush(env);
            }
            self.entries(env).unprotect(source.gfn);
        }
    }

    /// Zaps the shadows of a guest frame, but for roots that vCPUs run on: their entries become Pending.
    pub(crate) fn zap_tables(&mut self, env: &mut impl Env, gfn: Gfn) {
        self.roots.withdraw_everywhere(&mut self.tables, gfn);
        let mut next = self.guest.first(gfn);
        while let Some(frame) = next {
            next = self.tables.pool().next_of_gfn(frame);
            if self.roots.is_current(frame) {
                self.tables.look_everywhere(env, frame);
            } else if !self.tables.pool().is_pinned(frame) {
                self.zap(env, frame);
            }
        }
    }

    /// Makes sure that nothing maps, or is built from, these guest frames. The embedder calls it before it
    /// changes what is behind them, with all vCPUs stopped until it has done so.
    pub fn revoke(&mut self, env: &mut impl Env, gfns: Range<Gfn>) {
        let end = gfns.end.min(env.end());
        let mut gfn = gfns.start;
        while gfn < end {
            self.zap_tables(env, gfn);
            self.move_roots_home(env, gfn);
            if self.keeps(Rule::RevokeSmall) {
                self.tables.look_all(env, List::Gfn(gfn.raw() as u32));
            }
            if self.keeps(Rule::RevokeLarge) {
                self.tables.look_all(env, List::Region((gfn.raw() / REGION) as u32));
            }
            gfn = gfn.add(1);
        }
        // Identity pages and MMIO entries may say "no memory" where there is some now.
        if self.guest.next_generation() {
            // No MMIO entry of the first round may count as current in the second.
            self.zap_all(env);
        }
        (gfns.start.raw()..end.raw()).for_each(|gfn| self.guest.forget_backing(Gfn::new(gfn)));
        if self.keeps(Rule::FlushAfterRevoke) {
            self.tables.flush(env);
        }
    }

    /// Throws all shadows away. They are built again as the guest faults. Nothing is read of the guest's memory
    /// or of its map.
    pub fn zap_all(&mut self, env: &mut impl Env) {
        for frame in 0..self.tables.pool().count() {
            if self.tables.pool().live_source(frame).is_some() && !self.tables.pool().is_pinned(frame) {
                self.zap(env, frame);
            }
        }
        for frame in 0..self.tables.pool().count() {
            // What is left are roots in use. PDPTEs cannot be Pending; their pages are pinned with them.
            let keep = |source: Source| source.role == Role::PaeRoot && self.keeps(Rule::PdptesMapped);
            if self.tables.pool().live_source(frame).is_some_and(|source| !keep(source)) {
                self.tables.look_everywhere(env, frame);
            }
        }
        self.tables.flush(env);
    }
}
