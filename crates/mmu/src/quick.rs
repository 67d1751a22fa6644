//! What the shadow alone can tell, without a walk of the guest's tables.

use umbra_paging::{Access, Gpa, Gva, Hpa, Level, PAGE_SIZE, Rights};

use crate::entry::{Held, ShadowEntry, State};
use crate::fault::{both, index};
use crate::rmap::Slot;
use crate::role::Role;
use crate::sabotage::Rule;
use crate::{Env, Mmu};

/// What the shadow knows of an access that exited.
pub(crate) enum Known {
    /// It goes to no memory.
    Mmio(Gpa),
    /// The guest's tables allow it, all A and D bits are set, and only the tracking of the frame holds it back.
    TableWrite(Gpa),
}

impl<P> Mmu<P> {
    /// Answers from the shadow alone if it can. The walk there is current (or, through a loose table, one that a TLB
    /// might still hold), its A bits are set, and W stands in the entry only if D is.
    pub(crate) fn known(&self, env: &impl Env, vcpu: usize, gva: Gva, access: Access) -> Option<Known> {
        let paging = &self.vcpus[vcpu].paging;
        let mut frame = self.pool.frame_of(self.vcpus[vcpu].root)?;
        let mut rights = Rights::ALL;
        loop {
            let source = self.pool.source(frame);
            let (role, level) = (source.role, source.role.level());
            let slot = Slot::new(frame, index(role, gva));
            let entry = self.read(env, slot);
            match self.state(entry) {
                State::Mapped if role == Role::PaeRoot => (),
                State::Mapped if level == Level::L1 && access.is_write() => {
                    let leaf = Rights { write: true, ..entry.rights() };
                    let allowed = entry.held() == Held::TrackedWrite
                        && !self.has_loose_tables()
                        && both(rights, leaf).allow(access, paging)
                        && rights.write;
                    let gfn = match self.guest_entry(env, slot) {
                        Some(guest) => guest.frame(),
                        None => source.gfn.add(slot.index() as u64),
                    };
                    let gpa = Gpa::new(gfn.base().raw() + gva.raw() % PAGE_SIZE);
                    return (allowed && self.frames.is_tracked(gfn)).then_some(Known::TableWrite(gpa));
                }
                State::Mapped => rights = both(rights, entry.rights()),
                State::Mmio { gfn, rights: leaf, generation } => {
                    let rights = both(rights, leaf);
                    let current = generation == self.generation || !self.keeps(Rule::MmioGeneration);
                    let allowed = rights.allow(access, paging) && (rights.write || !access.is_write());
                    let offset = gva.raw() & ((1 << level.shift()) - 1);
                    let gpa = Gpa::new(gfn.base().raw() + offset);
                    return (current && allowed).then_some(Known::Mmio(gpa));
                }
                State::Absent | State::Look => return None,
            }
            frame = self.child(env, slot)?;
        }
    }

    /// Where the byte of code at `gva` lies that a vCPU has just executed, if the shadow maps it now: only to be read,
    /// and only before the guest runs again. (The answer is from the shadow as it is; the CPU may have used an older
    /// translation, as it may on bare hardware.)
    pub fn code(&self, env: &impl Env, vcpu: usize, gva: Gva) -> Option<Hpa> {
        let (slot, entry) = self.leaf(env, vcpu, gva)?;
        let level = self.pool.source(slot.frame()).role.level();
        entry.rights().execute.then(|| Hpa::new(entry.hpa().raw() + (gva.raw() & ((1 << level.shift()) - 1))))
    }

    /// The guest-physical address that the shadow maps `gva` to now.
    pub(crate) fn mapped(&self, env: &impl Env, vcpu: usize, gva: Gva) -> Option<Gpa> {
        let (slot, _) = self.leaf(env, vcpu, gva)?;
        let source = self.pool.source(slot.frame());
        let first = match self.guest_entry(env, slot) {
            Some(guest) => guest.leaf_frame(source.role.level()),
            None => source.gfn.add(slot.index() as u64 * source.role.level().pages()),
        };
        Some(Gpa::new(first.base().raw() + (gva.raw() & ((1 << source.role.level().shift()) - 1))))
    }

    /// The Mapped entry that translates `gva` now.
    fn leaf(&self, env: &impl Env, vcpu: usize, gva: Gva) -> Option<(Slot, ShadowEntry)> {
        let mut frame = self.pool.frame_of(self.vcpus[vcpu].root)?;
        loop {
            let slot = Slot::new(frame, index(self.pool.source(frame).role, gva));
            let entry = self.read(env, slot);
            if !self.is_mapped(entry) {
                return None;
            }
            match self.child(env, slot) {
                Some(child) => frame = child,
                None => return Some((slot, entry)),
            }
        }
    }
}
