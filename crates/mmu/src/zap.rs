//! Taking shadow pages away: by reclaim, by revocation, or because their table is no longer one.

use core::ops::Range;

use umbra_paging::Gfn;

use crate::entry::GENERATIONS;
use crate::frames::REGION;
use crate::rmap::List;
use crate::role::{Role, Source};
use crate::sabotage::Rule;
use crate::{Env, Event, Mmu};

impl<P> Mmu<P> {
    /// Zaps a page that is not pinned: unlink it, flush if it may be cached, and only then let its guest
    /// frame go (I5).
    pub(crate) fn zap(&mut self, env: &mut impl Env, frame: u32) {
        if self.keeps(Rule::UnlinkParents) {
            self.look_all(env, List::Parents(frame));
        }
        // What the CPU may still walk is Pending until the flush; what it cannot is nothing any more.
        if self.pool.may_be_cached(frame) {
            self.look_everywhere(env, frame);
        } else {
            self.unlist_all(env, frame);
            self.forget_copy(frame);
        }
        self.rmap.close(frame);
        let source = self.pool.source(frame);
        self.move_home(env, frame, source);
        let tracked = matches!(source.role, Role::Guest { .. }) && self.frames.is_tracked(source.gfn);
        let untracked = self.frames.remove(&mut self.pool, source, frame);
        let cached = self.pool.may_be_cached(frame);
        self.pool.retire(frame, cached && self.keeps(Rule::Limbo), tracked.then_some(source.gfn));
        self.links += 1;
        self.log.forget(frame);
        self.happened(env, Event::Zapped(source.into()));
        if untracked {
            // Other shadows of the frame may have gone before this one, and wait for their flush.
            if (cached || self.pool.has_limbo()) && self.keeps(Rule::FlushBeforeUnprotect) {
                self.flush(env);
            }
            self.unprotect(env, source.gfn);
        }
    }

    /// Zaps the shadows of a guest frame, but for roots that vCPUs run on: their entries become Pending.
    pub(crate) fn zap_tables(&mut self, env: &mut impl Env, gfn: Gfn) {
        self.withdraw_everywhere(gfn);
        let mut next = self.frames.tables(gfn);
        while let Some(frame) = next {
            next = self.pool.next_of_gfn(frame);
            if self.is_current_root(frame) {
                self.look_everywhere(env, frame);
            } else if !self.pool.is_pinned(frame) {
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
                self.look_all(env, List::Gfn(gfn.raw() as u32));
            }
            if self.keeps(Rule::RevokeLarge) {
                self.look_all(env, List::Region((gfn.raw() / REGION) as u32));
            }
            gfn = gfn.add(1);
        }
        // Identity pages and MMIO entries may say "no memory" where there is some now.
        self.generation = (self.generation + 1) % GENERATIONS;
        if self.generation == 0 {
            // No MMIO entry of the first round may count as current in the second.
            self.zap_all(env);
        }
        (gfns.start.raw()..end.raw()).for_each(|gfn| self.frames.forget_backing(Gfn::new(gfn)));
        if self.keeps(Rule::FlushAfterRevoke) {
            self.flush(env);
        }
    }

    /// Makes all entries of a list Pending.
    pub(crate) fn look_all(&mut self, env: &mut impl Env, list: List) {
        while let Some(slot) = self.rmap.head(list).first() {
            self.look(env, slot);
        }
    }

    /// Throws all shadows away. They are built again as the guest faults. Nothing is read of the guest's memory
    /// or of its map.
    pub fn zap_all(&mut self, env: &mut impl Env) {
        for frame in 0..self.pool.count() {
            if self.pool.live_source(frame).is_some() && !self.pool.is_pinned(frame) {
                self.zap(env, frame);
            }
        }
        for frame in 0..self.pool.count() {
            // What is left are roots in use. PDPTEs cannot be Pending; their pages are pinned with them.
            let keep = |source: Source| source.role == Role::PaeRoot && self.keeps(Rule::PdptesMapped);
            if self.pool.live_source(frame).is_some_and(|source| !keep(source)) {
                self.look_everywhere(env, frame);
            }
        }
        self.flush(env);
    }
}
