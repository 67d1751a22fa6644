//! What the shadow alone can tell, without a walk of the guest's tables.

use umbra_paging::{Access, Gpa, Gva, Hpa, Level, Mode, PAGE_SIZE, Rights};

use crate::fault::both;
use crate::format::index;
use crate::format::{Held, ShadowEntry, State};
use crate::sabotage::Rule;
use crate::tables::Slot;
use crate::{Env, Mmu};

/// What the shadow knows of an access that exited.
pub(crate) enum Known {
    /// It goes to no memory.
    Mmio(Gpa),
    /// The guest's tables allow it, all A and D bits are set, and only the tracking of the frame holds it back.
    TableWrite(Gpa),
}

/// Where the hardware's walk of the shadow ends now.
struct End {
    slot: Slot,
    entry: ShadowEntry,
    level: Level,
    /// What the links above allow.
    rights: Rights,
}

impl<P> Mmu<P> {
    /// Answers from the shadow alone if it can. The walk there is current (or, through a loose table, one that a TLB
    /// might still hold), its A bits are set, and W stands in the entry only if D is.
    pub(crate) fn known(&mut self, env: &impl Env, vcpu: usize, gva: Gva, access: Access) -> Option<Known> {
        let End { slot, entry, level, rights } = self.walk_shadow(env, vcpu, gva)?;
        let paging = self.roots.paging(vcpu);
        match self.tables.state(entry) {
            State::Mapped => {
                let leaf = Rights { write: true, ..entry.rights() };
                let held = level == Level::L1 && access.is_write() && entry.held() == Held::TrackedWrite;
                if !held
                    || !rights.write
                    || self.guest.has_loose()
                    || !both(rights, leaf).allow(access, paging)
                {
                    return None;
                }
                let gfn = match self.view(env).guest_entry(slot) {
                    Some(guest) => guest.frame(),
                    None => self.tables.source(slot.frame()).gfn.add(slot.index() as u64),
                };
                let gpa = Gpa::new(gfn.base().raw() + gva.raw() % PAGE_SIZE);
                self.guest.is_tracked(gfn).then_some(Known::TableWrite(gpa))
            }
            State::Mmio { gfn, rights: leaf, generation } => {
                let rights = both(rights, leaf);
                let current = generation == self.guest.generation() || !self.keeps(Rule::MmioGeneration);
                let allowed = rights.allow(access, paging) && (rights.write || !access.is_write());
                let gpa = Gpa::new(gfn.base().raw() + offset(gva, level));
                (current && allowed).then_some(Known::Mmio(gpa))
            }
            State::Absent | State::Look => None,
        }
    }

    /// Where the byte of code at `gva` lies that a vCPU has just executed, if the shadow maps it now: only to be read,
    /// and only before the guest runs again. (The answer is from the shadow as it is; the CPU may have used an older
    /// translation, as it may on bare hardware.)
    pub fn code(&mut self, env: &impl Env, vcpu: usize, gva: Gva) -> Option<Hpa> {
        let End { entry, level, .. } = self.walk_shadow(env, vcpu, gva)?;
        let runs = self.tables.is_mapped(entry) && entry.rights().execute;
        runs.then(|| Hpa::new(entry.hpa().raw() + offset(gva, level)))
    }

    /// The guest-physical address that the shadow maps `gva` to now.
    pub(crate) fn mapped(&mut self, env: &impl Env, vcpu: usize, gva: Gva) -> Option<Gpa> {
        let End { slot, entry, level, .. } = self.walk_shadow(env, vcpu, gva)?;
        let first = match self.view(env).guest_entry(slot) {
            Some(guest) => guest.leaf_frame(level),
            None => self.tables.source(slot.frame()).gfn.add(slot.index() as u64 * level.pages()),
        };
        self.tables.is_mapped(entry).then(|| Gpa::new(first.base().raw() + offset(gva, level)))
    }

    /// Walks the shadow as the hardware does, rights aside; as far as the last table by what was found before.
    #[inline]
    fn walk_shadow(&mut self, env: &impl Env, vcpu: usize, gva: Gva) -> Option<End> {
        let number = gva.raw() >> Level::L2.shift();
        let (root, links) = (self.roots.current(vcpu).frame(), self.tables.links());
        let at = number as usize % SHORTCUTS;
        let found = self.shortcuts.0[at];
        let Shortcut { frame, level, rights, .. } = match (found.number, found.root, found.links) {
            known if known == (number, root, links) => found,
            _ => {
                let (frame, level, rights) = self.last_table(env, vcpu, gva)?;
                let found = Shortcut { number, root, links, frame, level, rights };
                self.shortcuts.0[at] = found;
                found
            }
        };
        let slot = Slot::new(frame, gva.index(level));
        Some(End { slot, entry: self.tables.read(env, slot), level, rights })
    }

    /// The table in which the hardware's walk ends, its level, and what the links to it allow.
    fn last_table(&self, env: &impl Env, vcpu: usize, gva: Gva) -> Option<(u32, Level, Rights)> {
        let mut frame = self.tables.pool().frame_of(self.roots.current(vcpu))?;
        let mut level = Level::L4;
        let mut rights = Rights::ALL;
        if self.roots.paging(vcpu).mode == Mode::Off {
            // PDPTEs have no rights.
            let slot = Slot::new(frame, index(self.tables.source(frame).role, gva));
            frame = self.tables.child(env, slot)?;
            level = Level::L2;
        }
        while let Some(below) = level.below() {
            let entry = self.tables.read(env, Slot::new(frame, gva.index(level)));
            if !self.tables.is_mapped(entry) || entry.is_large() {
                break;
            }
            rights = both(rights, entry.rights());
            frame = env.frame(entry.hpa());
            level = below;
        }
        Some((frame, level, rights))
    }
}

/// How many tables are remembered by the addresses that they serve.
const SHORTCUTS: usize = 16;

/// Tables in which walks of the shadow end, by the addresses that they serve: direct-mapped. What is remembered holds for as
/// long as no entry changes that may refer to another table ([`Tables::links`](crate::tables::Tables::links)).
#[derive(Default)]
pub(crate) struct Shortcuts([Shortcut; SHORTCUTS]);

#[derive(Clone, Copy)]
struct Shortcut {
    /// The address, divided by what a page table covers.
    number: u64,
    root: u32,
    links: u64,
    frame: u32,
    level: Level,
    rights: Rights,
}

impl Default for Shortcut {
    fn default() -> Shortcut {
        // No number is so large.
        Shortcut { number: u64::MAX, root: 0, links: 0, frame: 0, level: Level::L1, rights: Rights::ALL }
    }
}

fn offset(gva: Gva, level: Level) -> u64 {
    gva.raw() & (level.pages() * PAGE_SIZE - 1)
}
