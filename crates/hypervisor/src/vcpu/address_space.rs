//! What the guest runs on: the shadow root, the roots that it may load without an exit, and which
//! of its page faults and flushes exit.

use alloc::vec::Vec;

use umbra_mmu::{GuestFaults, LoadableRoot, Root, RootFormat};
use umbra_paging::{Gfn, Gpa, Mode};
use umbra_telemetry::GuestExit;
use umbra_vcpu::backend::{Backend, Cr3Target};
use umbra_vcpu::control::Controls;
use umbra_vcpu::cr3_reads::Reads;
use umbra_vcpu::cr3_targets::{self, Targets};

use super::{VCPU, Vcpu};

/// The state of the MMU that is in force for this virtual CPU: what the backend was told last.
pub struct AddressSpace {
    /// The shadow root that the backend runs on.
    root: Root,
    /// The guest's own CR3 is the right one for that root.
    root_is_loadable: bool,
    /// The values of CR3 that the guest may load without an exit.
    targets: Targets,
    /// Where no load passes without one: the reads that exited.
    reads: Reads,
    /// The CPU is yet to be told of them.
    targets_stale: bool,
    /// [`EntryState::loadable_epoch`](umbra_mmu::EntryState) when the targets were last looked
    /// through.
    loadable_epoch: u64,
    /// Which page faults the guest gets without an exit.
    guest_faults: GuestFaults,
    /// Whether flushes of the guest exit.
    flushes_exit: bool,
}

impl AddressSpace {
    /// On this root, with room for so many loadable roots; everything exits.
    pub fn new(root: Root, loadable_roots: usize) -> AddressSpace {
        AddressSpace {
            root,
            root_is_loadable: false,
            targets: Targets::new(loadable_roots),
            reads: Reads::default(),
            targets_stale: false,
            loadable_epoch: 0,
            guest_faults: GuestFaults::Trap,
            flushes_exit: true,
        }
    }

    /// The format of the tables that the guest runs on.
    pub fn root_format(&self) -> RootFormat {
        self.root.format()
    }

    /// The name of what is left to the guest of its page faults, in reports.
    pub fn filter_name(&self) -> &'static str {
        match self.guest_faults {
            GuestFaults::Trap => "trap",
            GuestFaults::Present => "present",
            GuestFaults::User => "user",
        }
    }
}

impl<B: Backend> Vcpu<B> {
    /// Makes new control registers the guest's.
    pub(super) fn load_controls(&mut self, new: Controls) {
        *self.cpu.controls_mut() = new;
        match new.paging() {
            Ok(paging) => {
                if *self.mmu.paging(VCPU) != paging {
                    self.mmu.load_paging(&mut self.env, VCPU, paging);
                } else if self.mmu.has_unsync_tables() {
                    // The same root under another PCID: nothing may be cached there of what an
                    // unsync table has kept.
                    self.mmu.flush_guest(&mut self.env);
                }
                let space = &mut self.space;
                space.root = self.mmu.root(&self.env, VCPU);
                let (root, loadable) = (space.root, self.own_root());
                self.space.root_is_loadable = loadable.is_some();
                self.backend.set_controls(&new, root, loadable);
                // Whether CR3 can be read without an exit depends on it.
                self.space.targets_stale = self.space.targets.has_room();
            }
            Err(unsupported) => {
                self.end = Some(GuestExit::Unsupported(alloc::format!("{unsupported}")))
            }
        }
    }

    /// The root that the guest's CR3 names, if it may load that by itself.
    fn own_root(&self) -> Option<LoadableRoot> {
        let controls = self.cpu.controls();
        let root = frame(cr3_targets::root(controls.cr3));
        if controls.root_starts_frame() { self.mmu.loadable(VCPU, root) } else { None }
    }

    /// The guest may have loaded another root without an exit: follows that. First thing after
    /// every exit.
    pub(super) fn follow_cr3(&mut self) {
        if !self.space.root_is_loadable {
            return;
        }
        let (cr3, before) = (self.backend.cr3(), self.cpu.controls().cr3);
        if cr3 == before {
            return;
        }
        let root = cr3_targets::root(cr3);
        if root != cr3_targets::root(before) {
            self.mmu.switched(VCPU, frame(root));
            self.space.root = self.mmu.root(&self.env, VCPU);
        }
        let controls = self.cpu.controls_mut();
        controls.cr3 = cr3;
        if let Mode::Pae { pdptes } = self.mmu.paging(VCPU).mode {
            controls.pdptes = pdptes;
        }
        self.space.targets.seen(cr3);
    }

    /// The guest has loaded `value` (the operand, with bit 63) into CR3 by an exit, where `before`
    /// was. Lists it, and its sibling. Returns whether the CPU may hold translations of another
    /// root for its PCID.
    pub(super) fn follow_cr3_write(&mut self, before: u64, value: u64) -> bool {
        let mixes = self.space.targets.mixes(value);
        self.space.targets.follows(before, value);
        if !self.settings.cr3_loads_exit {
            self.list_root(value);
        }
        self.list_pti_sibling(false);
        mixes
    }

    /// The guest has read CR3 by an exit.
    pub(super) fn follow_cr3_read(&mut self) {
        let cr3 = self.cpu.controls().cr3;
        if self.settings.cr3_loads_exit && self.space.reads.exited(cr3_targets::root(cr3)) {
            self.list_root(cr3);
        }
    }

    /// The guest runs on the root of `value` now: lets it load that without an exit from now on, if
    /// that can be.
    fn list_root(&mut self, value: u64) {
        let whole = value != 0 && self.cpu.controls().root_starts_frame();
        if !self.space.targets.has_room() || self.end.is_some() || !whole {
            return;
        }
        self.space.targets_stale = true;
        let root = frame(cr3_targets::root(value));
        if self.space.targets.contains(value) && self.mmu.is_loadable(VCPU, root) {
            return;
        }
        self.make_room(None);
        if self.mmu.allow_native_load(&mut self.env, VCPU) {
            self.space.targets.insert(value);
        }
    }

    /// Lists the other root of the process that the guest runs in, if that is known. Its shadow is
    /// not up to date before the first tables are linked into this one; until then it is only
    /// listed if it is from before.
    pub(super) fn list_pti_sibling(&mut self, complete: bool) {
        if self.settings.cr3_loads_exit {
            return;
        }
        let own = self.cpu.controls().cr3;
        let Some(sibling) = self.space.targets.pti_sibling(own) else { return };
        let root = frame(cr3_targets::root(sibling));
        if !self.mmu.may_allow_native_load(&self.env, VCPU, root)
            || !complete && !self.mmu.knows_root(VCPU, root)
        {
            return;
        }
        self.space.targets.mixes(sibling);
        self.make_room(Some(own));
        self.space.targets_stale = true;
        if self.mmu.allow_native_load_of(&mut self.env, VCPU, root) {
            self.space.targets.expect(sibling);
        } else {
            self.space.targets.refused();
        }
    }

    fn make_room(&mut self, kept: Option<u64>) {
        self.space.targets.make_room(kept);
        while let Some(root) = self.space.targets.take_unlisted_root() {
            self.mmu.withdraw_root(VCPU, frame(root));
        }
    }

    /// Tells the CPU what has changed of all that: before every entry.
    pub(super) fn prepare_address_space(&mut self) {
        let space = &mut self.space;
        let entry = self.mmu.entry_state(&self.env, VCPU);
        let guest_faults = entry.guest_faults;
        if guest_faults != space.guest_faults {
            space.guest_faults = guest_faults;
            self.backend.set_guest_faults(guest_faults);
        }
        let flushes_exit = !self.settings.native_flushes || entry.flushes_exit;
        if flushes_exit != space.flushes_exit {
            space.flushes_exit = flushes_exit;
            self.backend.set_flush_exits(flushes_exit);
        }
        if entry.loadable_epoch != space.loadable_epoch {
            space.loadable_epoch = entry.loadable_epoch;
            let mmu = &self.mmu;
            space.targets.retain(|root| mmu.is_loadable(VCPU, frame(root)));
            space.targets_stale = true;
        }
        // All that may change the root says so.
        if space.targets_stale {
            self.refresh_root(entry.root);
            self.refresh_targets();
        }
    }

    fn refresh_root(&mut self, root: Root) {
        let loadable = self.own_root();
        if (root, loadable.is_some()) != (self.space.root, self.space.root_is_loadable) {
            self.space.root = root;
            self.space.root_is_loadable = loadable.is_some();
            self.refresh_controls();
            self.backend.set_controls(self.cpu.controls(), root, loadable);
        }
    }

    fn refresh_targets(&mut self) {
        let space = &mut self.space;
        if !space.targets.has_room() {
            return;
        }
        space.targets_stale = false;
        let mut targets = Vec::new();
        // While the current root lies elsewhere, what the guest reads from CR3 must be emulated:
        // then nothing passes.
        if space.root_is_loadable && !self.settings.cr3_loads_exit {
            targets.extend(space.targets.listed().filter_map(|value| {
                Cr3Target::new(self.mmu.loadable(VCPU, frame(cr3_targets::root(value)))?, value)
            }));
        }
        self.backend.set_cr3_targets(&targets, space.root_is_loadable);
    }
}

fn frame(root: u64) -> Gfn {
    Gpa::new(root).gfn()
}
