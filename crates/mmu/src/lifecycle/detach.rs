//! Detached frames: guest tables that nothing leads to, so that the guest may write them freely.
//!
//! Every parent entry of all shadows of the frame becomes Trapping, what is cached of them is
//! flushed, and only then is the protection dropped. The shadows stay, out of date, until the first
//! access through one of them. That exits, and the frame is *attached* again: protected, flushed,
//! read, and what has changed since is rebuilt. So a burst of writes costs two exits, whatever its
//! length. Nothing that the hardware can reach is ever out of date (I1).
//!
//! A root in use has no parent: it is never detached. One that is only loadable is withdrawn.

use umbra_paging::Gfn;

use super::{Cx, Shadow};
use crate::format::{Role, ShadowKey};
use crate::policy::WritePolicy;
use crate::tables::{List, PageId};
use crate::{Env, Event};

impl Shadow {
    /// Whether the tracked frame can be detached: no vCPU runs on it as a root.
    pub(crate) fn can_detach(&self, gfn: Gfn) -> bool {
        let mut shadows = self.basis.guest().shadows(self.basis.tables().pool(), gfn);
        self.basis.guest().is_tracked(gfn) && !shadows.any(|frame| self.roots.is_current(frame))
    }
}

impl<E: Env> Cx<'_, E> {
    /// Gives up the tracking of those of these frames for which that can be: see the module's
    /// documentation.
    pub(crate) fn detach(&mut self, gfns: &[Gfn]) {
        self.follow_roots();
        let mut cached = self.shadow.basis.tables().pool().has_quarantine();
        for &gfn in gfns {
            self.before_write(gfn);
            if self.shadow.can_detach(gfn) {
                cached |= self.unlink(gfn);
            }
        }
        if cached {
            self.flush();
        }
        for &gfn in gfns {
            // A frame with shadows of several roles may be named several times.
            if self.shadow.can_detach(gfn) {
                self.shadow.guest_mut().detach(gfn);
                self.happened(Event::Detached(gfn));
                self.entries().unprotect(gfn);
            }
        }
    }

    /// The shadows of a frame that is most likely no table any more are the first to be reclaimed.
    pub(crate) fn age_shadows(&mut self, gfn: Gfn) {
        self.each_shadow(gfn, |cx, frame| cx.shadow.basis.tables_mut().age(frame));
    }

    /// Detaches a guest table that nothing leads to any more: most likely it is about to be freed,
    /// and what it is used for next need not exit.
    pub(crate) fn let_go(&mut self, child: PageId) {
        let Some(frame) = self.shadow.basis.tables().pool().frame_of(child) else { return };
        let ShadowKey { role, gfn } = self.shadow.basis.tables().key(frame);
        let dead = matches!(role, Role::Guest { .. }) && !self.view().is_reachable(gfn);
        if dead && self.shadow.can_detach(gfn) && !self.shadow.basis.guest().has_unsync() {
            self.detach(&[gfn]);
            self.age_shadows(gfn);
        }
    }

    /// Removes all that leads to the shadows of a frame. Whether any of it may be cached.
    fn unlink(&mut self, gfn: Gfn) -> bool {
        self.withdraw_everywhere(gfn);
        let mut cached = false;
        self.each_shadow(gfn, |cx, frame| {
            cx.shadow.basis.tables_mut().look_all(cx.env, List::Parents(frame));
            cached |= cx.shadow.basis.tables().pool().may_be_cached(frame);
        });
        cached
    }

    /// Tracks the frame of `key` again, which is detached, and brings its shadows of that role
    /// up to date: one, or the parts of a table of 32-bit paging. Its shadows of other roles go:
    /// most of them are of an earlier life of the frame.
    pub(super) fn attach(&mut self, policy: &mut dyn WritePolicy, key: ShadowKey) {
        let gfn = key.gfn;
        self.each_shadow(gfn, |cx, frame| {
            if !cx.shadow.basis.tables().key(frame).is_sibling(key) {
                cx.zap(frame);
            }
        });
        // With the last shadow the frame stops being detached. It was not needed again: the detach
        // has saved all that.
        if self.shadow.basis.guest().first(gfn).is_none() {
            return policy.attached(gfn, u32::MAX);
        }
        self.shadow.guest_mut().attach(gfn);
        self.entries().protect_now(gfn);
        let mut changed = 0;
        self.each_shadow(gfn, |cx, frame| {
            cx.shadow.basis.tables_mut().copy(frame);
            changed += cx.entries().fill_now(frame);
        });
        policy.attached(gfn, changed);
        self.happened(Event::Attached { gfn, level: key.role.level(), changed });
    }
}
