//! Roots that a vCPU may load by itself, without an exit.
//!
//! If the shadow of the root in guest frame X lies at host-physical X (an *identity root*), the value that the guest
//! loads into CR3 is the right one for the real CR3, and reading CR3 back gives what was written. The guest frame gives
//! way: it exchanges its place with the shadow frame ([`ShadowFrames::exchange`](crate::ShadowFrames::exchange)). The
//! page moves back when it is zapped, so free shadow frames lie where they always lay.
//!
//! A loadable root is pinned, tracked, and built for the control bits that the vCPU has now. It is withdrawn as soon as
//! one of these ends: when the control bits change, when a table becomes loose, before its frame is detached, revoked or
//! zapped. The embedder finds that out by [`Mmu::roots_changed`] before the guest runs again, and must then tell the CPU
//! which values still pass. What may be cached from a root that is withdrawn is flushed as for any page that something
//! stops referring to (I5).

use umbra_paging::Gfn;

use crate::format::{Role, Source};
use crate::policy::WritePolicy;
use crate::sabotage::Rule;
use crate::tables::{List, Slot};
use crate::{Backing, Env, Event, Mmu};

/// After a frame has moved, so many of its mappings are made anew at once; the others when they are next used.
const EAGER: usize = 4;

impl<P> Mmu<P> {
    /// Lets a vCPU load its current root by itself from now on, if that can be. Then the real CR3 must hold exactly
    /// what the guest's does.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn offer_root(&mut self, env: &mut impl Env, vcpu: usize) -> bool {
        let root = self.tables.pool().frame_of(self.roots.current(vcpu));
        root.is_some_and(|root| self.offer(env, vcpu, root))
    }

    /// Lets a vCPU load the root in this guest frame by itself from now on, if that can be, though it runs on another one: a
    /// root that it is likely to load soon, such as the other one of a process with page-table isolation. Its shadow is built
    /// or attached if need be, but nothing is reclaimed for it.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn offer_other_root(&mut self, env: &mut impl Env, vcpu: usize, root: Gfn) -> bool
    where
        P: WritePolicy,
    {
        let full = self.roots.loadable(vcpu).len() == self.roots.capacity();
        if !self.may_offer(env, vcpu, root) || full && !self.is_loadable(vcpu, root) {
            return false;
        }
        let root = self.provide(env, self.roots.source(vcpu, root));
        self.offer(env, vcpu, root)
    }

    /// Whether [`Mmu::offer_other_root`] can be expected to do it once another root is withdrawn, if need be.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn may_offer(&self, env: &impl Env, vcpu: usize, root: Gfn) -> bool {
        // One that is free or in limbo is enough, so that none is reclaimed; another is left for what the guest needs next.
        let room = self.tables.pool().live() + 2 <= self.tables.pool().count() || self.knows_root(vcpu, root);
        self.roots.can_load(vcpu) && self.guest.can_hold_table(env, root) && !self.guest.has_loose() && room
    }

    /// Whether the root in this guest frame has a shadow for the control bits that a vCPU has now, which is up to date.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn knows_root(&self, vcpu: usize, root: Gfn) -> bool {
        let source = self.roots.source(vcpu, root);
        !self.guest.is_detached(source)
            && self.guest.lists(source)
            && self.guest.find(&self.tables, source).is_some()
    }

    fn offer(&mut self, env: &mut impl Env, vcpu: usize, root: u32) -> bool {
        if !self.becomes_identity_root(env, vcpu, root) {
            return false;
        }
        self.roots.offer(&mut self.tables, vcpu, root)
    }

    /// The opposite of [`Mmu::offer_root`]: makes room for another root. Not for [`Mmu::roots_changed`] to tell.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn withdraw_root(&mut self, vcpu: usize, root: Gfn) {
        self.roots.withdraw(&mut self.tables, vcpu, root);
    }

    /// Whether a vCPU may load the root in this guest frame by itself.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn is_loadable(&self, vcpu: usize, root: Gfn) -> bool {
        self.roots.find_loadable(&self.tables, vcpu, root).is_some()
    }

    /// How many roots a vCPU may load by itself: as configured, or fewer if the pool is small.
    pub fn loadable_roots(&self) -> usize {
        self.roots.capacity()
    }

    /// A number that changes whenever the MMU itself has withdrawn a root.
    pub fn roots_changed(&self) -> u64 {
        self.roots.changes()
    }

    /// The vCPU has loaded one of its loadable roots by itself. Where there are several vCPUs, all are stopped, and what
    /// each has loaded is told here, before another call that takes the MMU `&mut` may withdraw a root.
    ///
    /// # Panics
    /// If it is not loadable, or there is no such vCPU.
    pub fn switched(&mut self, vcpu: usize, root: Gfn) {
        self.roots.switched(&mut self.tables, vcpu, root);
    }

    /// Whether this root lies, or now comes to lie, where the guest's CR3 points, and may be loaded by the vCPU.
    fn becomes_identity_root(&mut self, env: &mut impl Env, vcpu: usize, root: u32) -> bool {
        let gfn = self.tables.source(root).gfn;
        let followed = self.guest.is_tracked(gfn) && !self.guest.has_loose();
        if !self.roots.can_load(vcpu) || !followed && self.keeps(Rule::OfferFollowed) {
            return false;
        }
        if env.hpa(root).raw() == gfn.base().raw() {
            return true;
        }
        // Another vCPU that runs on it would walk what is about to become the guest's.
        let shared = self.roots.is_current_elsewhere(vcpu, root);
        if shared {
            return false;
        }
        self.make_room(env, gfn);
        let at_home = |backing| matches!(backing, Backing::Ram { hfn, .. } if hfn.raw() == gfn.raw());
        at_home(env.backing(gfn)) && self.exchange(env, root, gfn, true)
    }

    /// Moves the shadow of another role back that lies in the place of its guest frame, if nothing uses it.
    fn make_room(&mut self, env: &mut impl Env, gfn: Gfn) {
        let pool = self.tables.pool();
        let moved =
            self.guest.shadows(pool, gfn).find(|&frame| pool.is_moved(frame) && !pool.is_pinned(frame));
        if let Some(frame) = moved {
            self.exchange(env, frame, gfn, false);
        }
    }

    /// Moves a page that is about to be zapped back to where its frame lay.
    pub(crate) fn move_home(&mut self, env: &mut impl Env, frame: u32, source: Source) {
        if self.tables.pool().is_moved(frame) {
            let back = self.exchange(env, frame, source.gfn, false);
            assert!(back, "what was exchanged can be exchanged again");
        }
    }

    /// Moves the shadows of a frame back that are roots in use: what is behind it is about to change.
    pub(crate) fn move_roots_home(&mut self, env: &mut impl Env, gfn: Gfn) {
        loop {
            let moved =
                self.guest.shadows(self.tables.pool(), gfn).find(|&frame| self.tables.pool().is_moved(frame));
            let Some(frame) = moved.filter(|_| self.keeps(Rule::HomeBeforeRevoke)) else { return };
            self.move_home(env, frame, self.tables.source(frame));
            self.roots.changed();
        }
    }

    /// Exchanges the places of a guest frame and of a shadow page of it.
    fn exchange(&mut self, env: &mut impl Env, frame: u32, gfn: Gfn, away: bool) -> bool {
        let list = List::Gfn(gfn.raw() as u32);
        let mut mappings = [None; EAGER];
        let mut next = self.tables.rmap().first(list);
        for mapping in &mut mappings {
            *mapping = next;
            next = next.and_then(|slot| self.tables.rmap().next(slot));
        }
        if self.keeps(Rule::UnmapBeforeExchange) {
            self.tables.look_all(env, list);
            self.tables.look_all(env, List::Region((gfn.raw() / crate::guest::REGION) as u32));
        }
        // Roots in use, or loaded a while ago, may be cached by themselves.
        if self.keeps(Rule::FlushBeforeExchange) {
            self.tables.flush(env);
        }
        if !env.exchange(frame, gfn) {
            return false;
        }
        self.tables.set_moved(frame, away);
        match away {
            true => self.guest.is_in_pieces(gfn),
            false => self.guest.forget_backing(gfn),
        }
        self.tables.happened(env, Event::RootMoved(gfn));
        for slot in mappings.into_iter().flatten() {
            self.map_again(env, slot);
        }
        true
    }

    /// Makes an entry anew that was Mapped just now, if nothing has to be built for it.
    fn map_again(&mut self, env: &mut impl Env, slot: Slot) {
        let source = self.tables.source(slot.frame());
        let detached = matches!(source.role, Role::Guest { .. }) && !self.guest.is_tracked(source.gfn);
        if !detached {
            self.entries(env).refresh_now(slot);
        }
    }
}
