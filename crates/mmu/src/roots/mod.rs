//! The roots of the vCPUs: what each runs on, and what it may load by itself.
//!
//! A root in use and a loadable one are pinned. [`Roots`] pins and unpins them as it takes them in
//! and lets them go; where they lie, and whether they may be loaded, is decided above.

use alloc::vec::Vec;

use umbra_paging::{Gfn, Mode, Paging, Pdptes};

use crate::format::ShadowKey;
use crate::tables::{PageId, Tables};
use crate::{ShadowFrame, VcpuId};

pub(crate) struct Roots {
    vcpus: Vec<Vcpu>,
    /// How many roots each vCPU may load without an exit.
    capacity: usize,
    /// As many as that under PAE paging, where each keeps four directories.
    pae_capacity: usize,
    /// Roots that were withdrawn, or moved, so far.
    changes: u64,
}

struct Vcpu {
    paging: Paging,
    root: PageId,
    /// The pages that its PDPTEs reference, if its root is those.
    directories: [Option<PageId>; 4],
    /// The page for its PDPTE registers, pinned, in paging modes that have them.
    registers: Option<PageId>,
    /// Roots that it may load without an exit.
    loadable: Vec<Loadable>,
}

/// A root that a vCPU may load without an exit.
pub(crate) struct Loadable {
    page: PageId,
    sampled: Option<Sampled>,
}

/// What a vCPU with PAE paging loads with a root: its PDPTEs, and what they reference, pinned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampled {
    pdptes: Pdptes,
    directories: [Option<PageId>; 4],
}

impl Sampled {
    pub(crate) fn new(pdptes: Pdptes, directories: [Option<PageId>; 4]) -> Sampled {
        Sampled { pdptes, directories }
    }

    pub(crate) fn pdptes(&self) -> Pdptes {
        self.pdptes
    }

    pub(crate) fn directories(&self) -> [Option<PageId>; 4] {
        self.directories
    }
}

impl Loadable {
    pub(crate) fn page(&self) -> PageId {
        self.page
    }

    pub(crate) fn sampled(&self) -> Option<&Sampled> {
        self.sampled.as_ref()
    }

    /// All pages that it pins.
    fn pages(&self) -> impl Iterator<Item = PageId> + use<> {
        let directories = self.sampled.map_or([None; 4], |sampled| sampled.directories);
        directories.into_iter().flatten().chain([self.page])
    }
}

/// What the vCPUs run on.
impl Roots {
    pub(crate) fn new(vcpus: usize, capacity: usize, pae_capacity: usize) -> Roots {
        Roots { vcpus: Vec::with_capacity(vcpus), capacity, pae_capacity, changes: 0 }
    }

    /// Adds a vCPU, which runs on a root that is pinned for it, as the directories of that are.
    pub(crate) fn add(
        &mut self,
        paging: Paging,
        root: PageId,
        directories: [Option<PageId>; 4],
        registers: Option<PageId>,
    ) {
        self.vcpus.push(Vcpu {
            paging,
            root,
            directories,
            registers,
            loadable: Vec::with_capacity(self.capacity),
        });
    }

    pub(crate) fn vcpus(&self) -> impl ExactSizeIterator<Item = VcpuId> + use<> {
        (0..self.vcpus.len()).map(VcpuId::new)
    }

    /// The paging state of each vCPU.
    pub(crate) fn pagings(&self) -> impl Iterator<Item = &Paging> + '_ {
        self.vcpus.iter().map(|vcpu| &vcpu.paging)
    }

    pub(crate) fn paging(&self, vcpu: VcpuId) -> &Paging {
        &self.vcpus[vcpu.index()].paging
    }

    /// The root that a vCPU runs on.
    pub(crate) fn current(&self, vcpu: VcpuId) -> PageId {
        self.vcpus[vcpu.index()].root
    }

    /// The pages that the PDPTEs of a vCPU reference.
    pub(crate) fn directories(&self, vcpu: VcpuId) -> [Option<PageId>; 4] {
        self.vcpus[vcpu.index()].directories
    }

    /// Whether a vCPU runs on this page as its root, or as what a PDPTE register references: no
    /// entry in memory that could be Trapping leads there.
    pub(crate) fn is_current(&self, frame: ShadowFrame) -> bool {
        let directory =
            |vcpu: &Vcpu| vcpu.directories.iter().flatten().any(|id| id.frame() == frame);
        self.vcpus.iter().any(|vcpu| vcpu.root.frame() == frame || directory(vcpu))
    }

    /// Whether another vCPU than this one runs on this page as its root.
    pub(crate) fn is_current_elsewhere(&self, vcpu: VcpuId, frame: ShadowFrame) -> bool {
        self.vcpus
            .iter()
            .enumerate()
            .any(|(n, other)| n != vcpu.index() && other.root.frame() == frame)
    }

    /// The vCPU runs on another root, which is pinned for it with its directories, from now on. The
    /// old ones are still pinned.
    pub(crate) fn load(
        &mut self,
        vcpu: VcpuId,
        paging: Paging,
        root: PageId,
        directories: [Option<PageId>; 4],
        registers: Option<PageId>,
    ) {
        let vcpu = &mut self.vcpus[vcpu.index()];
        (vcpu.paging, vcpu.root) = (paging, root);
        (vcpu.directories, vcpu.registers) = (directories, registers);
    }

    /// The vCPU has loaded one of its loadable roots by itself.
    pub(crate) fn switched(&mut self, tables: &mut Tables, vcpu: VcpuId, root: Gfn) {
        let vcpu = &mut self.vcpus[vcpu.index()];
        let holds = |new: &&Loadable| tables.key(new.page.frame()).gfn == root;
        let new = vcpu.loadable.iter().find(holds).expect("the CPU loads only what it was offered");
        new.pages().for_each(|page| tables.pin(page.frame()));
        let (page, sampled) = (new.page, new.sampled);
        let old = [Some(core::mem::replace(&mut vcpu.root, page))];
        vcpu.paging.root = root;
        let gone = match sampled {
            Some(Sampled { pdptes, directories }) => {
                vcpu.paging.mode = Mode::Pae { pdptes };
                core::mem::replace(&mut vcpu.directories, directories)
            }
            None => [None; 4],
        };
        for page in old.into_iter().chain(gone).flatten() {
            tables.unpin_root(page.frame());
        }
    }

    /// The page for the PDPTE registers of a vCPU, in paging modes that have them.
    pub(crate) fn registers(&self, vcpu: VcpuId) -> Option<PageId> {
        self.vcpus[vcpu.index()].registers
    }

    /// The vCPU runs on the page for its PDPTE registers from now on, which hold what they held.
    pub(crate) fn use_registers(&mut self, tables: &mut Tables, vcpu: VcpuId) {
        let vcpu = &mut self.vcpus[vcpu.index()];
        let Some(registers) = vcpu.registers else { return };
        tables.pin(registers.frame());
        tables.unpin_root(core::mem::replace(&mut vcpu.root, registers).frame());
        self.changes += 1;
    }

    /// What the page for another root of a vCPU is built from.
    pub(crate) fn key(&self, vcpu: VcpuId, root: Gfn) -> ShadowKey {
        let paging = &self.vcpus[vcpu.index()].paging;
        match paging.mode {
            Mode::Pae { .. } => ShadowKey::pae_root(paging, root),
            _ => ShadowKey::root(&Paging { root, ..*paging }, vcpu),
        }
    }
}

/// What they may load by themselves.
impl Roots {
    /// How many roots each vCPU may load.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many a vCPU may load as its control bits are.
    pub(crate) fn room(&self, vcpu: VcpuId) -> usize {
        match self.vcpus[vcpu.index()].paging.mode {
            Mode::Long4 => self.capacity,
            Mode::Pae { .. } => self.pae_capacity,
            Mode::Off | Mode::Legacy32 { .. } => 0,
        }
    }

    /// Whether any vCPU may load a root by itself that it does not run on, as far as is known.
    pub(crate) fn any_loadable(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.loadable.iter().any(|other| other.page != vcpu.root))
    }

    /// Whether a vCPU can load any root by itself, as its control bits are.
    pub(crate) fn can_load(&self, vcpu: VcpuId) -> bool {
        self.room(vcpu) > 0
    }

    /// The roots that a vCPU may load.
    pub(crate) fn loadable(&self, vcpu: VcpuId) -> &[Loadable] {
        &self.vcpus[vcpu.index()].loadable
    }

    /// The root in this guest frame, if a vCPU may load it.
    pub(crate) fn find_loadable(
        &self,
        tables: &Tables,
        vcpu: VcpuId,
        root: Gfn,
    ) -> Option<&Loadable> {
        let holds = |other: &&Loadable| tables.key(other.page.frame()).gfn == root;
        self.vcpus[vcpu.index()].loadable.iter().find(holds)
    }

    /// The vCPU may load this root from now on. False if it may load as many already.
    pub(crate) fn offer(
        &mut self,
        tables: &mut Tables,
        vcpu: VcpuId,
        root: ShadowFrame,
        sampled: Option<Sampled>,
    ) -> bool {
        let page = tables.pool().id(root);
        let room = self.room(vcpu);
        let loadable = &mut self.vcpus[vcpu.index()].loadable;
        if loadable.iter().any(|other| other.page == page) {
            return true;
        }
        if loadable.len() >= room {
            return false;
        }
        let new = Loadable { page, sampled };
        new.pages().for_each(|page| tables.pin(page.frame()));
        loadable.push(new);
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
    pub(crate) fn withdraw(&mut self, tables: &mut Tables, vcpu: VcpuId, root: Gfn) {
        let before = self.changes;
        self.withdraw_from(tables, vcpu, |gfn, _| gfn == root);
        self.changes = before;
    }

    /// No vCPU may load a shadow of this frame any more, or with PDPTEs that reference one.
    pub(crate) fn withdraw_everywhere(&mut self, tables: &mut Tables, gfn: Gfn) {
        let concerns = |root, directory| root == gfn || directory == Some(gfn);
        self.vcpus().for_each(|vcpu| self.withdraw_from(tables, vcpu, concerns));
    }

    /// No vCPU may load any root by itself.
    pub(crate) fn withdraw_all(&mut self, tables: &mut Tables) {
        self.vcpus().for_each(|vcpu| self.withdraw_from(tables, vcpu, |_, _| true));
    }

    /// A vCPU may not load these roots any more: each is asked for by itself, and with each
    /// directory that its PDPTEs reference.
    pub(crate) fn withdraw_from(
        &mut self,
        tables: &mut Tables,
        vcpu: VcpuId,
        which: impl Fn(Gfn, Option<Gfn>) -> bool,
    ) {
        let Roots { vcpus, changes, .. } = self;
        vcpus[vcpu.index()].loadable.retain(|other| {
            let root = tables.key(other.page.frame()).gfn;
            let directories = other.sampled.map_or([None; 4], |all| all.pdptes.directories());
            let keep = !directories.into_iter().chain([None]).any(|gfn| which(root, gfn));
            if !keep {
                other.pages().for_each(|page| tables.unpin_root(page.frame()));
                *changes += 1;
            }
            keep
        });
    }
}
