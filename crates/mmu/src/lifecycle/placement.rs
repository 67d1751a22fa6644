//! Roots that a vCPU may load by itself, without an exit: where they lie.
//!
//! If the shadow of the root in guest frame X lies at host-physical X, it is an *identity root*.
//! The value that the guest loads into CR3 is then right for the real CR3, and reading CR3 back
//! gives what was written. The guest frame gives way: it exchanges its place with the shadow frame
//! ([`ShadowFrames::swap_frames`](crate::ShadowFrames::swap_frames)). The page moves back when it
//! is zapped, so free shadow frames lie where they always lay.
//!
//! A loadable root is pinned, tracked, and built for the control bits that the vCPU has now. The
//! MMU withdraws it before one of these ends. That is when the control bits change, before its
//! frame is detached, revoked or zapped, and before the frame of a PAE root is written. When a
//! table becomes unsync, the MMU withdraws it as well, unless loads exit: its load would be a flush
//! that is not seen. The embedder finds that out by
//! [`Mmu::roots_changed`](crate::Mmu::roots_changed) before the guest runs again, and must then
//! tell the CPU which values still pass. What may be cached from a root that is withdrawn is
//! flushed as for any page that something stops referring to (I5).

use umbra_paging::{Gfn, Mode, Paging, Pdptes};

use super::{Cx, PAE_ROOT, Shadow};
use crate::format::{Role, ShadowKey};
use crate::guest::REGION;
use crate::policy::WritePolicy;
use crate::roots::Sampled;
use crate::tables::{List, Slot};
use crate::{Backing, Env, Event, ShadowFrame, VcpuId};

/// After a frame has moved, so many of its mappings are made anew at once; the others when they are
/// next used.
const EAGER: usize = 4;

impl Shadow {
    /// Whether the root in this guest frame has a shadow for the control bits that a vCPU has now,
    /// which is up to date.
    pub(crate) fn knows_root(&self, vcpu: VcpuId, root: Gfn) -> bool {
        self.has_root(self.roots.key(vcpu, root))
    }

    /// Whether this is the root of a guest table, and there already, up to date.
    pub(super) fn has_root(&self, key: ShadowKey) -> bool {
        key.role.is_of_frame()
            && !self.basis.guest().is_detached(key)
            && self.basis.guest().lists(key)
            && self.basis.guest().find(self.basis.tables(), key).is_some()
    }

    /// Whether another root can be expected to become loadable once there is a place for it.
    pub(crate) fn may_allow_native_load(&self, env: &impl Env, vcpu: VcpuId, root: Gfn) -> bool {
        // One that is free or in quarantine is enough, so that none is reclaimed; another is left
        // for what the guest needs next.
        let pool = self.basis.tables().pool();
        let room = match self.roots.paging(vcpu).mode {
            Mode::Pae { .. } => pool.live() + (PAE_ROOT as u32) < pool.count(),
            _ => pool.live() + 2 <= pool.count() || self.knows_root(vcpu, root),
        };
        self.roots.can_load(vcpu)
            && self.basis.guest().can_hold_table(env, root)
            && self.follows_loads()
            && room
    }

    /// Whether a vCPU that loads a root by itself needs nothing done for it: its load is a flush.
    fn follows_loads(&self) -> bool {
        self.config().cr3_loads_exit || !self.basis.guest().has_unsync()
    }
}

impl<E: Env> Cx<'_, E> {
    /// Learns what every vCPU runs on, before a root may be withdrawn: another vCPU may load it
    /// until it has left the guest, and one that has loaded it runs on it.
    pub(super) fn follow_roots(&mut self) {
        let Shadow { basis, roots, .. } = &*self.shadow;
        if basis.config().vcpus == 1 || !roots.any_loadable() {
            return;
        }
        self.learn_roots();
    }

    /// As [`Cx::follow_roots`], though a vCPU may load only the root that it runs on.
    pub(super) fn learn_roots(&mut self) {
        if self.shadow.basis.config().vcpus == 1 {
            return;
        }
        self.env.kick();
        for vcpu in self.shadow.roots.vcpus() {
            // One that it ran on already need not be loadable any more.
            let own = self.shadow.roots.paging(vcpu).root;
            if let Some(root) = self.env.take_loaded_root(vcpu).filter(|&root| root != own) {
                self.shadow.switched(vcpu, root);
            }
        }
    }

    /// Lets a vCPU load its current root by itself.
    pub(crate) fn allow_current(&mut self, policy: &mut dyn WritePolicy, vcpu: VcpuId) -> bool {
        self.before_offer(vcpu);
        let Paging { mode, root, .. } = *self.shadow.roots.paging(vcpu);
        let Mode::Pae { pdptes } = mode else {
            let root = self.shadow.basis.tables().pool().frame_of(self.shadow.roots.current(vcpu));
            return root.is_some_and(|root| self.offer(vcpu, root, None));
        };
        let offered =
            self.has_room_for(vcpu, root) && self.offer_pae(policy, vcpu, root, Some(pdptes));
        if offered {
            // It runs on the page that it will load again.
            let Shadow { basis, roots, .. } = &mut *self.shadow;
            roots.switched(basis.tables_mut(), vcpu, root);
            self.forget_registers(vcpu);
        }
        offered
    }

    /// Lets a vCPU load the root in this guest frame by itself.
    pub(crate) fn allow_other(
        &mut self,
        policy: &mut dyn WritePolicy,
        vcpu: VcpuId,
        root: Gfn,
    ) -> bool {
        self.before_offer(vcpu);
        if !self.has_room_for(vcpu, root) {
            return false;
        }
        let key = self.shadow.roots.key(vcpu, root);
        if matches!(key.role, Role::PaeRoot { .. }) {
            // What a vCPU has loaded from this frame need not be what it would load again.
            return match root == self.shadow.roots.paging(vcpu).root {
                true => self.allow_current(policy, vcpu),
                false => self.offer_pae(policy, vcpu, root, None),
            };
        }
        if !self.shadow.has_root(key) {
            // Nothing is reclaimed for it.
            if !self.shadow.basis.tables_mut().has_links() {
                return false;
            }
            // What is built gets references to tables that must be up to date.
            self.resync_all();
        }
        let root = self.provide(policy, key);
        self.offer(vcpu, root, None)
    }

    /// Whether there are pages for a root, and it may be one of those that the vCPU loads.
    fn has_room_for(&self, vcpu: VcpuId, root: Gfn) -> bool {
        let Shadow { basis, roots, .. } = &*self.shadow;
        let full = roots.loadable(vcpu).len() >= roots.room(vcpu);
        self.shadow.may_allow_native_load(self.env, vcpu, root)
            && (!full || roots.find_loadable(basis.tables(), vcpu, root).is_some())
    }

    /// Whether the place of a guest frame can be its shadow's: it is there, or a shadow is.
    fn is_at_home(&self, gfn: Gfn) -> bool {
        let Shadow { basis, .. } = &*self.shadow;
        let moved = |frame| basis.tables().pool().is_moved(frame);
        basis.guest().shadows(basis.tables().pool(), gfn).any(moved)
            || matches!(self.env.backing(gfn), Backing::Ram { hfn, .. } if hfn.raw() == gfn.raw())
    }

    fn offer(&mut self, vcpu: VcpuId, root: ShadowFrame, sampled: Option<Sampled>) -> bool {
        self.becomes_identity_root(vcpu, root)
            && self.shadow.roots.offer(self.shadow.basis.tables_mut(), vcpu, root, sampled)
    }

    fn offer_pae(
        &mut self,
        policy: &mut dyn WritePolicy,
        vcpu: VcpuId,
        root: Gfn,
        expected: Option<Pdptes>,
    ) -> bool {
        // Nothing is reclaimed for it, or built that has no place.
        if !self.is_at_home(root) || !self.shadow.basis.tables_mut().has_links() {
            return false;
        }
        let Some((frame, sampled)) = self.sample(policy, vcpu, root, expected) else {
            return false;
        };
        let offered = self.offer(vcpu, frame, Some(sampled));
        self.unpin_sampled(sampled);
        offered
    }

    /// Whether this root lies, or now comes to lie, where the guest's CR3 points, and may be loaded
    /// by the vCPU.
    fn becomes_identity_root(&mut self, vcpu: VcpuId, root: ShadowFrame) -> bool {
        let gfn = self.shadow.basis.tables().key(root).gfn;
        let followed = self.shadow.basis.guest().is_tracked(gfn) && self.shadow.follows_loads();
        if !self.shadow.roots.can_load(vcpu) || !followed {
            return false;
        }
        if self.env.hpa(root).raw() == gfn.base().raw() {
            return true;
        }
        // Another vCPU that runs on it would walk what is about to become the guest's.
        if self.shadow.roots.is_current_elsewhere(vcpu, root) {
            return false;
        }
        self.make_room(gfn);
        let at_home =
            |backing| matches!(backing, Backing::Ram { hfn, .. } if hfn.raw() == gfn.raw());
        at_home(self.env.backing(gfn)) && self.swap_frames(root, gfn, true)
    }

    /// Moves the shadow of another role back that lies in the place of its guest frame, if nothing
    /// uses it.
    fn make_room(&mut self, gfn: Gfn) {
        let pool = self.shadow.basis.tables().pool();
        let idle = |&frame: &ShadowFrame| pool.is_moved(frame) && !pool.is_pinned(frame);
        let moved = self.shadow.basis.guest().shadows(pool, gfn).find(idle);
        if let Some(frame) = moved {
            self.swap_frames(frame, gfn, false);
        }
    }

    /// Moves a page that is about to be zapped back to where its frame lay.
    pub(super) fn move_home(&mut self, frame: ShadowFrame, key: ShadowKey) {
        if self.shadow.basis.tables().pool().is_moved(frame) {
            let back = self.swap_frames(frame, key.gfn, false);
            assert!(back, "what was exchanged can be exchanged again");
        }
    }

    /// Moves the shadows of a frame back that are roots in use: what is behind it is about to
    /// change.
    pub(super) fn move_roots_home(&mut self, gfn: Gfn) {
        loop {
            let pool = self.shadow.basis.tables().pool();
            let moved =
                self.shadow.basis.guest().shadows(pool, gfn).find(|&frame| pool.is_moved(frame));
            let Some(frame) = moved else { return };
            self.move_home(frame, self.shadow.basis.tables().key(frame));
            self.shadow.roots.changed();
        }
    }

    /// Exchanges the places of a guest frame and of a shadow page of it.
    fn swap_frames(&mut self, frame: ShadowFrame, gfn: Gfn, away: bool) -> bool {
        let list = List::Gfn(gfn.raw() as u32);
        let mut mappings = [None; EAGER];
        for (mapping, slot) in mappings.iter_mut().zip(self.shadow.basis.tables().rmap().iter(list))
        {
            *mapping = Some(slot);
        }
        self.shadow.basis.tables_mut().look_all(self.env, list);
        self.shadow
            .basis
            .tables_mut()
            .look_all(self.env, List::Region((gfn.raw() / REGION) as u32));
        // Roots in use, or loaded a while ago, may be cached by themselves.
        self.flush();
        if !self.env.swap_frames(frame, gfn) {
            return false;
        }
        self.shadow.basis.tables_mut().set_moved(frame, away);
        match away {
            true => self.shadow.guest_mut().is_in_pieces(gfn),
            false => self.shadow.guest_mut().forget_backing(gfn),
        }
        self.happened(Event::RootMoved(gfn));
        for slot in mappings.into_iter().flatten() {
            self.map_again(slot);
        }
        true
    }

    /// Makes an entry anew that was Mapped just now, if nothing has to be built for it.
    fn map_again(&mut self, slot: Slot) {
        let ShadowKey { role, gfn } = self.shadow.basis.tables().key(slot.frame());
        let detached =
            matches!(role, Role::Guest { .. }) && !self.shadow.basis.guest().is_tracked(gfn);
        if !detached {
            self.entries().refresh_now(slot);
        }
    }
}
