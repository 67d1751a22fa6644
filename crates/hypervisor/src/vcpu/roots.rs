//! The roots that the guest may load by itself, and what the real CPU is told of them.

use umbra_paging::{Gfn, Hpa};
use umbra_vcpu::backend::Backend;
use umbra_vcpu::cr3_targets as targets;

use super::Vcpu;

impl<B: Backend> Vcpu<B> {
    /// The guest may have loaded another root without an exit: follows that. First thing after every exit.
    pub(super) fn follow_cr3(&mut self) {
        if !self.root_is_loadable {
            return;
        }
        let cr3 = self.backend.cr3();
        if cr3 == self.controls.cr3 {
            return;
        }
        if targets::root(cr3) != targets::root(self.controls.cr3) {
            self.mmu.switched(0, frame(targets::root(cr3)));
            self.root.hpa = Hpa::new(targets::root(cr3));
        }
        self.controls.cr3 = cr3;
        self.targets.seen(cr3);
    }

    /// The guest has loaded `value` (the operand, with bit 63) into CR3 by an exit, and runs on that root now: lets it do
    /// so by itself from now on, if that can be.
    pub(super) fn list_root(&mut self, value: u64) {
        if !self.targets.has_room() || self.end.is_some() || value == 0 {
            return;
        }
        self.targets_stale = true;
        if self.targets.contains(value) && self.mmu.is_loadable(0, frame(targets::root(value))) {
            return;
        }
        self.make_room(None);
        if self.mmu.offer_root(&mut self.env, 0) {
            self.targets.insert(value);
        }
    }

    /// Lists the other root of the process that the guest runs in, if that is known. Its shadow is not up to date before the
    /// first tables are linked into this one; until then it is only listed if it is from before.
    pub(super) fn list_twin(&mut self, complete: bool) {
        let own = self.controls.cr3;
        let Some(twin) = self.targets.twin(own) else { return };
        let root = frame(targets::root(twin));
        if !self.mmu.may_offer(&self.env, 0, root) || !complete && !self.mmu.knows_root(0, root) {
            return;
        }
        self.targets.mixes(twin);
        self.make_room(Some(own));
        self.targets_stale = true;
        if self.mmu.offer_other_root(&mut self.env, 0, root) {
            self.targets.expect(twin);
        }
    }

    fn make_room(&mut self, kept: Option<u64>) {
        self.targets.make_room(kept);
        while let Some(root) = self.targets.take_unlisted_root() {
            self.mmu.withdraw_root(0, frame(root));
        }
    }

    /// Tells the CPU what the guest may load, if that has changed: before every entry.
    pub(super) fn refresh_targets(&mut self) {
        if self.mmu.roots_changed() != self.roots_changed {
            self.roots_changed = self.mmu.roots_changed();
            let mmu = &self.mmu;
            self.targets.retain(|root| mmu.is_loadable(0, frame(root)));
            self.targets_stale = true;
        }
        // All that may change the root says so.
        if !self.targets_stale {
            return;
        }
        let root = self.mmu.root(&self.env, 0);
        let loadable = self.mmu.is_loadable(0, self.mmu.paging(0).root);
        if (root, loadable) != (self.root, self.root_is_loadable) {
            self.root = root;
            self.root_is_loadable = loadable;
            self.refresh_controls();
            self.backend.set_controls(&self.controls, root, loadable);
        }
        if !self.targets.has_room() {
            return;
        }
        self.targets_stale = false;
        let mut values = [0; 4];
        let mut count = 0;
        // While the current root lies elsewhere, what the guest reads from CR3 must be emulated: then nothing passes.
        if self.root_is_loadable {
            for (place, value) in values.iter_mut().zip(self.targets.listed()) {
                *place = value;
                count += 1;
            }
        }
        self.backend.set_cr3_targets(&values[..count], self.root_is_loadable);
    }
}

fn frame(root: u64) -> Gfn {
    umbra_paging::Gpa::new(root).gfn()
}
