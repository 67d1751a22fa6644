//! Roots of PAE paging that a vCPU loads by itself.
//!
//! A CPU loads its four PDPTE registers with CR3 and never looks at memory again. So the guest
//! loads, without an exit, a page in the place of its own table. That page holds what an exit would
//! have loaded *now*: nothing is written to the frame while the page lives. All that its PDPTEs
//! reference is built, up to date and pinned while a vCPU may load it, since a PDPTE cannot be
//! Trapping.
//!
//! The first write to the frame, by whomever, ends the page. A vCPU that runs on it goes on with
//! the same PDPTEs, from the page that holds its registers. What the guest's memory says counts
//! with its next load. The frame is followed for nothing else, so the write itself passes.
//!
//! Only a table at the start of its frame has such a page. A frame that is a table of another kind,
//! too, has none: the hypervisor sets accessed bits there.

use umbra_paging::{Features, Gfn, Mode, Paging, Pdptes};

use super::load::Pinned;
use super::{Cx, Shadow};
use crate::format::{Role, ShadowKey};
use crate::policy::WritePolicy;
use crate::roots::Sampled;
use crate::tables::Slot;
use crate::{Env, ShadowFrame, VcpuId};

impl<E: Env> Cx<'_, E> {
    /// Builds the page for the PDPTEs in this frame and all that they reference, if a vCPU may load
    /// them, and if they are `expected`. What they reference stays pinned by the result.
    pub(super) fn sample(
        &mut self,
        policy: &mut dyn WritePolicy,
        vcpu: VcpuId,
        gfn: Gfn,
        expected: Option<Pdptes>,
    ) -> Option<(ShadowFrame, Sampled)> {
        let guest = self.shadow.basis.guest();
        if !guest.can_hold_table(self.env, gfn) || guest.has_unsync_above_leaves() {
            return None;
        }
        // Before anything is built for it.
        let features = self.shadow.basis.config().features;
        let is_expected = |pdptes: &Pdptes| expected.is_none_or(|expected| expected == *pdptes);
        loaded(self.env, gfn, &features).filter(is_expected)?;
        // PDPTEs get references to tables that must be up to date.
        self.resync_all();
        let key = self.shadow.roots.key(vcpu, gfn);
        let frame = self.provide(policy, key);
        let root = self.shadow.basis.tables().pool().id(frame);
        // Once more: what another vCPU writes is seen from now on.
        let pdptes = loaded(self.env, gfn, &features).filter(is_expected)?;
        let paging = Paging { mode: Mode::Pae { pdptes }, ..*self.shadow.roots.paging(vcpu) };
        let keys = ShadowKey::directories(&paging);
        let followed = |key: &ShadowKey| {
            key.gfn != gfn && self.shadow.basis.guest().can_hold_table(self.env, key.gfn)
        };
        if !keys.iter().flatten().all(followed) {
            return None;
        }
        let directories = keys.map(|key| key.map(|key| self.pinned(policy, key)));
        let sampled = Sampled::new(pdptes, directories);
        // The frame may have been another table before, and the page may have gone for one.
        let tables = self.shadow.basis.tables();
        let is_pdptes = |frame| matches!(tables.key(frame).role, Role::PaeRoot { .. });
        let alone = self.view().shadows(gfn).all(is_pdptes);
        if !alone || tables.pool().frame_of(root).is_none() {
            self.unpin_sampled(sampled);
            return None;
        }
        for index in 0..4 {
            self.entries().refresh_now(Slot::new(frame, index));
        }
        Some((frame, sampled))
    }

    /// What was pinned for [`Cx::sample`] is pinned by whoever needed it, or by nobody any more.
    pub(super) fn unpin_sampled(&mut self, sampled: Sampled) {
        for page in sampled.directories().into_iter().flatten() {
            self.shadow.basis.tables_mut().unpin_root(page.frame());
        }
    }

    /// The root that a vCPU may load by itself and that holds these PDPTEs, pinned. One of the same
    /// frame that holds others is withdrawn: CR3 would name both.
    pub(super) fn loadable_pae(&mut self, vcpu: VcpuId, paging: &Paging) -> Option<Pinned> {
        let Mode::Pae { pdptes } = paging.mode else { return None };
        let tables = self.shadow.basis.tables();
        let found = self.shadow.roots.find_loadable(tables, vcpu, paging.root)?;
        let Some(sampled) = found.sampled().filter(|sampled| sampled.pdptes() == pdptes) else {
            let Shadow { basis, roots, .. } = &mut *self.shadow;
            roots.withdraw_from(basis.tables_mut(), vcpu, |root, _| root == paging.root);
            return None;
        };
        let pinned = Pinned {
            root: found.page(),
            directories: sampled.directories(),
            registers: self.shadow.roots.registers(vcpu),
        };
        let tables = self.shadow.basis.tables_mut();
        pinned.pages().for_each(|page| tables.pin(page.frame()));
        Some(pinned)
    }

    /// The vCPU runs on a root that it may load by itself. The page for its registers keeps nothing
    /// then.
    pub(super) fn forget_registers(&mut self, vcpu: VcpuId) {
        let keeps = |index| self.shadow.basis.guest().directory(vcpu, index).is_some();
        if let Some(page) = self.shadow.roots.registers(vcpu).filter(|_| (0..4).any(keeps)) {
            self.load_registers(vcpu, page, [None; 4]);
        }
    }

    /// Something is about to be written to this frame: ends the pages for PDPTEs there.
    #[inline]
    pub(crate) fn before_write(&mut self, gfn: Gfn) {
        let tables = self.shadow.basis.tables();
        if self.shadow.basis.guest().pae_root(tables.pool(), gfn).is_some() {
            self.end_pae_roots(gfn);
        }
    }

    fn end_pae_roots(&mut self, gfn: Gfn) {
        // Another vCPU may load it, or have it loaded.
        self.learn_roots();
        self.withdraw_everywhere(gfn);
        while let Some(frame) =
            self.shadow.basis.guest().pae_root(self.shadow.basis.tables().pool(), gfn)
        {
            self.zap(frame);
        }
    }

    /// vCPUs that run on a page for the PDPTEs in this frame go on with the same ones, from the
    /// page for their registers.
    pub(super) fn leave_pae_root(&mut self, gfn: Gfn) {
        for vcpu in self.shadow.roots.vcpus() {
            let root = self.shadow.roots.current(vcpu);
            let ShadowKey { role, gfn: own } = self.shadow.basis.tables().key(root.frame());
            if own == gfn && matches!(role, Role::PaeRoot { .. }) {
                let paging = *self.shadow.roots.paging(vcpu);
                let registers = self.shadow.roots.registers(vcpu);
                let registers = registers.expect("with PAE paging there is a page for them");
                self.load_registers(vcpu, registers, ShadowKey::directories(&paging));
                let Shadow { basis, roots, .. } = &mut *self.shadow;
                roots.use_registers(basis.tables_mut(), vcpu);
            }
        }
    }
}

/// What a load of CR3 with the start of this frame puts into the PDPTE registers, if it does not
/// fault.
fn loaded(env: &impl Env, gfn: Gfn, features: &Features) -> Option<Pdptes> {
    let values = [0, 1, 2, 3].map(|index| env.read_entry(gfn.entry(index)));
    Pdptes::checked(values, features).ok()
}
