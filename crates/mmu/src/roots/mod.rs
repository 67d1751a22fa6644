//! The roots of the vCPUs: what each runs on, and what it may load by itself.
//!
//! A root in use and a loadable one are pinned. [`Roots`] pins and unpins them as it takes them in
//! and lets them go; where they lie, and whether they may be loaded, is decided above.

use alloc::vec::Vec;

use umbra_paging::{Gfn, Mode, Paging};

use crate::format::ShadowKey;
use crate::tables::{PageId, Tables};

pub(crate) struct Roots {
    vcpus: Vec<Vcpu>,
    /// How many roots each vCPU may load without an exit.
    capacity: usize,
    /// Roots that were withdrawn, or moved, so far.
    changes: u64,
}

struct Vcpu {
    paging: Paging,
    root: PageId,
    /// The pages that its PDPTEs reference, if its root is those.
    directories: [Option<PageId>; 4],
    /// Roots that it may load without an exit.
    loadable: Vec<PageId>,
}

/// What the vCPUs run on.
impl Roots {
    pub(crate) fn new(vcpus: usize, capacity: usize) -> Roots {
        Roots { vcpus: Vec::with_capacity(vcpus), capacity, changes: 0 }
    }

    /// Adds a vCPU, which runs on a root that is pinned for it, as the directories of that are.
    pub(crate) fn add(&mut self, paging: Paging, root: PageId, directories: [Option<PageId>; 4]) {
        self.vcpus.push(Vcpu {
            paging,
            root,
            directories,
            loadable: Vec::with_capacity(self.capacity),
        });
    }

    pub(crate) fn vcpus(&self) -> core::ops::Range<usize> {
        0..self.vcpus.len()
    }

    /// The paging state of each vCPU.
    pub(crate) fn pagings(&self) -> impl Iterator<Item = &Paging> + '_ {
        self.vcpus.iter().map(|vcpu| &vcpu.paging)
    }

    pub(crate) fn paging(&self, vcpu: usize) -> &Paging {
        &self.vcpus[vcpu].paging
    }

    /// The root that a vCPU runs on.
    pub(crate) fn current(&self, vcpu: usize) -> PageId {
        self.vcpus[vcpu].root
    }

    /// The pages that the PDPTEs of a vCPU reference.
    pub(crate) fn directories(&self, vcpu: usize) -> [Option<PageId>; 4] {
        self.vcpus[vcpu].directories
    }

    /// Whether a vCPU runs on this page as its root, or as what a PDPTE register references: no
    /// entry in memory that could be Trapping leads there.
    pub(crate) fn is_current(&self, frame: u32) -> bool {
        let directory =
            |vcpu: &Vcpu| vcpu.directories.iter().flatten().any(|id| id.frame() == frame);
        self.vcpus.iter().any(|vcpu| vcpu.root.frame() == frame || directory(vcpu))
    }

    /// Whether another vCPU than this one runs on this page as its root.
    pub(crate) fn is_current_elsewhere(&self, vcpu: usize, frame: u32) -> bool {
        self.vcpus.iter().enumerate().any(|(n, other)| n != vcpu && other.root.frame() == frame)
    }

    /// The vCPU runs on another root, which is pinned for it with its directories, from now on. The
    /// old ones are still pinned.
    pub(crate) fn load(
        &mut self,
        vcpu: usize,
        paging: Paging,
        root: PageId,
        directories: [Option<PageId>; 4],
    ) {
        let vcpu = &mut self.vcpus[vcpu];
        (vcpu.paging, vcpu.root, vcpu.directories) = (paging, root, directories);
    }

    /// The vCPU has loaded one of its loadable roots by itself.
    pub(crate) fn switched(&mut self, tables: &mut Tables, vcpu: usize, root: Gfn) {
        let new =
            self.find_loadable(tables, vcpu, root).expect("the CPU loads only what it was offered");
        let old = core::mem::replace(&mut self.vcpus[vcpu].root, new);
        self.vcpus[vcpu].paging.root = root;
        tables.pin(new.frame());
        tables.unpin_root(old.frame());
    }

    /// What the page for another root of a vCPU is built from.
    pub(crate) fn key(&self, vcpu: usize, root: Gfn) -> ShadowKey {
        ShadowKey::root(&Paging { root, ..self.vcpus[vcpu].paging }, vcpu)
    }
}

/// What they may load by themselves.
impl Roots {
    /// How many roots each vCPU may load.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether any vCPU may load a root by itself that it does not run on, as far as is known.
    pub(crate) fn any_loadable(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.loadable.iter().any(|&id| id != vcpu.root))
    }

    /// Whether a vCPU can load any root by itself, as its control bits are.
    pub(crate) fn can_load(&self, vcpu: usize) -> bool {
        self.capacity > 0 && self.vcpus[vcpu].paging.mode == Mode::Long4
    }

    /// The roots that a vCPU may load.
    pub(crate) fn loadable(&self, vcpu: usize) -> &[PageId] {
        &self.vcpus[vcpu].loadable
    }

    /// The root in this guest frame, if a vCPU may load it.
    pub(crate) fn find_loadable(&self, tables: &Tables, vcpu: usize, root: Gfn) -> Option<PageId> {
        let holds = |id: &&PageId| tables.key(id.frame()).gfn == root;
        self.vcpus[vcpu].loadable.iter().find(holds).copied()
    }

    /// The vCPU may load this root from now on. False if it may load as many already.
    pub(crate) fn offer(&mut self, tables: &mut Tables, vcpu: usize, root: u32) -> bool {
        let id = tables.pool().id(root);
        let loadable = &mut self.vcpus[vcpu].loadable;
        if loadable.contains(&id) {
            return true;
        }
        if loadable.len() == self.capacity {
            return false;
        }
        loadable.push(id);
        tables.pin(root);
        true
    }

    /// A number that changes whenever the MMU itself has withdrawn or moved a root.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// A root has moved, or is withdrawn.
    pub(crate) fn changed(&mut self) {
        self.changes += 1;
    }

    /// As [`Roots::withdraw_from`], because the embedder has asked for it.
    pub(crate) fn withdraw(&mut self, tables: &mut Tables, vcpu: usize, root: Gfn) {
        let before = self.changes;
        self.withdraw_from(tables, vcpu, |gfn| gfn == root);
        self.changes = before;
    }

    /// No vCPU may load a shadow of this frame any more.
    pub(crate) fn withdraw_everywhere(&mut self, tables: &mut Tables, gfn: Gfn) {
        self.vcpus().for_each(|vcpu| self.withdraw_from(tables, vcpu, |root| root == gfn));
    }

    /// No vCPU may load any root by itself.
    pub(crate) fn withdraw_all(&mut self, tables: &mut Tables) {
        self.vcpus().for_each(|vcpu| self.withdraw_from(tables, vcpu, |_| true));
    }

    /// A vCPU may not load these roots any more.
    pub(crate) fn withdraw_from(
        &mut self,
        tables: &mut Tables,
        vcpu: usize,
        which: impl Fn(Gfn) -> bool,
    ) {
        let Roots { vcpus, changes, .. } = self;
        vcpus[vcpu].loadable.retain(|id| {
            let keep = !which(tables.key(id.frame()).gfn);
            if !keep {
                tables.unpin_root(id.frame());
                *changes += 1;
            }
            keep
        });
    }
}
