//! The roots that vCPUs run on.

use umbra_paging::Paging;

use super::Cx;
use crate::Env;
use crate::derive::Target;
use crate::format::{Role, Source};
use crate::policy::WritePolicy;
use crate::tables::Slot;

impl<E: Env> Cx<'_, E> {
    /// Adds a vCPU in this paging state.
    pub(crate) fn add_vcpu(&mut self, policy: &mut dyn WritePolicy, paging: Paging) {
        let root = self.pinned_root(policy, &paging);
        let root = self.shadow.basis.tables().pool().id(root);
        self.shadow.roots.add(paging, root);
    }

    /// Lets the vCPU run on the root of another paging state.
    pub(crate) fn load_paging(&mut self, policy: &mut dyn WritePolicy, vcpu: usize, paging: Paging) {
        let old = self.shadow.roots.current(vcpu);
        let old_paging = *self.shadow.roots.paging(vcpu);
        // CR4.PGE shapes no shadow page, and what a change of it flushes is the guest's own flush.
        let changed = (Paging { root: paging.root, pge: paging.pge, ..old_paging }) != paging;
        // A root is built for the control bits that it may be loaded under.
        if changed {
            self.shadow.roots.withdraw_from(self.shadow.basis.tables_mut(), vcpu, |_| true);
        }
        let new = self.pinned_root(policy, &paging);
        self.shadow.roots.load(vcpu, paging, self.shadow.basis.tables().pool().id(new));
        self.unpin_root(old.frame());
        // Entries cached under other control bits carry rights that are not the guest's any more
        // (I2, I3).
        if changed {
            self.flush();
        }
    }

    fn pinned_root(&mut self, policy: &mut dyn WritePolicy, paging: &Paging) -> u32 {
        let source = Source::root(paging);
        let root = self.provide(policy, source);
        self.shadow.basis.tables_mut().pin(root);
        self.shadow.basis.tables_mut().touch(root);
        if source.role == Role::PaeRoot {
            // PDPTEs cannot be Pending: all four are there as long as the root is in use.
            for index in 0..4 {
                let slot = Slot::new(root, index);
                if let Target::Missing(child) = self.view().target(slot, false) {
                    self.provide(policy, child);
                }
                self.entries().refresh_now(slot);
                let child = self.view().child(slot).expect("the identity page was built just now");
                self.shadow.basis.tables_mut().pin(child);
            }
        }
        root
    }

    fn unpin_root(&mut self, root: u32) {
        self.shadow.basis.tables_mut().unpin_root(root);
        if self.shadow.basis.tables().source(root).role == Role::PaeRoot {
            for index in 0..4 {
                let child = self.view().child(Slot::new(root, index));
                self.shadow.basis.tables_mut().unpin(child.expect("PDPTEs of a root in use are Mapped"));
            }
        }
    }
}
