//! The roots that vCPUs run on.

use umbra_paging::Paging;

use super::Cx;
use crate::format::{Role, ShadowKey};
use crate::policy::WritePolicy;
use crate::tables::{PageId, Slot};
use crate::{Env, VcpuId};

/// A root in use, and what its PDPTEs reference if it is those: all of it pinned.
pub(super) struct Pinned {
    pub(super) root: PageId,
    pub(super) directories: [Option<PageId>; 4],
    /// The page for PDPTE registers, in paging modes that have them: the root, if that is not one
    /// that the guest may load by itself.
    pub(super) registers: Option<PageId>,
}

impl Pinned {
    pub(super) fn pages(&self) -> impl Iterator<Item = PageId> + use<> {
        self.directories.into_iter().chain([self.registers]).flatten().chain([self.root])
    }
}

impl<E: Env> Cx<'_, E> {
    /// Adds a vCPU in this paging state.
    pub(crate) fn add_vcpu(&mut self, policy: &mut dyn WritePolicy, paging: Paging) {
        let vcpu = VcpuId::new(self.shadow.roots.vcpus().len());
        let pinned = self.pinned_root(policy, vcpu, &paging);
        self.shadow.roots.add(paging, pinned.root, pinned.directories, pinned.registers);
    }

    /// Lets the vCPU run on the root of another paging state.
    pub(crate) fn load_paging(
        &mut self,
        policy: &mut dyn WritePolicy,
        vcpu: VcpuId,
        paging: Paging,
    ) {
        let changed = changes_role(self.shadow.roots.paging(vcpu), &paging);
        // A root is built for the control bits that it may be loaded under.
        if changed {
            self.shadow.roots.withdraw_from(self.shadow.basis.tables_mut(), vcpu, |_, _| true);
        }
        let loadable = self.loadable_pae(vcpu, &paging);
        // What is built, and PDPTEs, get references to tables that must be up to date.
        if loadable.is_none() && !self.shadow.has_root(ShadowKey::root(&paging, vcpu)) {
            self.resync_all();
        }
        if loadable.is_some() {
            self.forget_registers(vcpu);
        }
        let pinned = loadable.unwrap_or_else(|| self.pinned_root(policy, vcpu, &paging));
        let roots = &mut self.shadow.roots;
        let old = Pinned {
            root: roots.current(vcpu),
            directories: roots.directories(vcpu),
            registers: roots.registers(vcpu),
        };
        roots.load(vcpu, paging, pinned.root, pinned.directories, pinned.registers);
        self.unpin(old);
        // Entries cached under other control bits carry rights that are not the guest's any more
        // (I2, I3).
        if changed {
            self.flush();
        }
    }

    fn pinned_root(
        &mut self,
        policy: &mut dyn WritePolicy,
        vcpu: VcpuId,
        paging: &Paging,
    ) -> Pinned {
        // The old PDPTEs stay, with what they reference, until all that the new ones need is there.
        let keys = ShadowKey::directories(paging).map(|key| key.map(|key| self.held_by(key)));
        let directories = keys.map(|key| key.map(|key| self.pinned(policy, key)));
        let key = ShadowKey::root(paging, vcpu);
        let root = self.pinned(policy, key);
        let registers = matches!(key.role, Role::Pdptes { .. }).then_some(root);
        if registers.is_some() {
            self.shadow.basis.tables_mut().pin(root.frame());
            self.load_registers(vcpu, root, keys);
        }
        Pinned { root, directories, registers }
    }

    /// The PDPTE registers of a vCPU, which are this page, reference these directories from now on.
    /// The directories are pinned. The vCPU has loaded the registers by now, so these references are
    /// not new, and do not wait for unsync tables.
    pub(super) fn load_registers(
        &mut self,
        vcpu: VcpuId,
        page: PageId,
        keys: [Option<ShadowKey>; 4],
    ) {
        self.shadow.guest_mut().set_directories(vcpu, keys);
        for index in 0..4 {
            let slot = Slot::new(page.frame(), index);
            let target = self.view().target(slot, false);
            self.entries().install(slot, target);
        }
    }

    /// The page directory, or what stands in for one that is no memory.
    fn held_by(&self, key: ShadowKey) -> ShadowKey {
        let table = matches!(key.role, Role::Guest { .. });
        let follows = !table || self.shadow.basis.guest().can_hold_table(self.env, key.gfn);
        if follows { key } else { ShadowKey::NOWHERE }
    }

    pub(super) fn pinned(&mut self, policy: &mut dyn WritePolicy, key: ShadowKey) -> PageId {
        let frame = self.provide(policy, key);
        let tables = self.shadow.basis.tables_mut();
        tables.pin(frame);
        tables.touch(frame);
        tables.pool().id(frame)
    }

    fn unpin(&mut self, pinned: Pinned) {
        let tables = self.shadow.basis.tables_mut();
        pinned.pages().for_each(|page| tables.unpin_root(page.frame()));
    }
}

/// Whether the states differ in what shapes shadow pages. CR4.PGE does not, and what a change of it
/// flushes is the guest's own flush; nor do other PDPTEs.
fn changes_role(old: &Paging, new: &Paging) -> bool {
    old.mode.format() != new.mode.format()
        || Paging { root: new.root, pge: new.pge, mode: new.mode, ..*old } != *new
}
