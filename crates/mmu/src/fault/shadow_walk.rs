//! What the shadow alone can tell, without a walk of the guest's tables.

use umbra_paging::{Access, Gpa, Gva, Hpa, Level, Mode, Rights};

use crate::derive::View;
use crate::format::{Held, ShadowEntry, State, index};
use crate::roots::Roots;
use crate::tables::Slot;
use crate::{Env, ShadowFrame, VcpuId};

/// What the shadow knows of an access that exited.
pub(crate) enum Answered {
    /// It goes to no memory.
    Mmio(Gpa),
    /// The guest's tables allow it, all A and D bits are set, and only the tracking of the frame
    /// holds it back.
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

/// How many tables are remembered by the addresses that they serve.
const REMEMBERED: usize = 16;

/// Tables in which walks of the shadow by a vCPU end, by the addresses that they serve:
/// direct-mapped. What is remembered holds for as long as no entry changes that may refer to
/// another table ([`Tables::links`](crate::tables::Tables::links)).
#[derive(Default)]
pub(crate) struct WalkCache([LastTable; REMEMBERED]);

#[derive(Clone, Copy)]
struct LastTable {
    /// The address, divided by what a page table covers.
    number: u64,
    root: ShadowFrame,
    links: u64,
    frame: ShadowFrame,
    level: Level,
    rights: Rights,
}

impl Default for LastTable {
    fn default() -> LastTable {
        // No number is so large.
        LastTable {
            number: u64::MAX,
            root: ShadowFrame::default(),
            links: 0,
            frame: ShadowFrame::default(),
            level: Level::L1,
            rights: Rights::ALL,
        }
    }
}

impl WalkCache {
    /// Answers from the shadow alone if it can. The walk there is current (or goes over an unsync
    /// table to one that is not, as a TLB might still hold it), its A bits are set, and W stands in
    /// the entry only if D is.
    #[inline]
    pub(crate) fn known<E: Env>(
        &mut self,
        view: View<'_, E>,
        roots: &Roots,
        vcpu: VcpuId,
        gva: Gva,
        access: Access,
    ) -> Option<Answered> {
        let End { slot, entry, level, rights } = self.walk(view, roots, vcpu, gva)?;
        let paging = roots.paging(vcpu);
        match view.tables().state(entry) {
            State::Mapped => {
                let leaf = Rights { write: true, ..entry.rights() };
                let held =
                    level == Level::L1 && access.is_write() && entry.held() == Held::TrackedWrite;
                if !held
                    || !rights.write
                    || view.guest().has_unsync_above_leaves()
                    || !rights.and(leaf).allow(access, paging)
                {
                    return None;
                }
                let gfn = match view.guest_entry(slot) {
                    Some(guest) => guest.frame(),
                    None => view.tables().key(slot.frame()).gfn + slot.index() as u64,
                };
                let gpa = gfn.base() + gva.offset(Level::L1);
                view.guest().is_tracked(gfn).then_some(Answered::TableWrite(gpa))
            }
            State::Mmio { gfn, rights: leaf, generation } => {
                let rights = rights.and(leaf);
                let current = generation == view.guest().generation();
                let allowed = rights.allow(access, paging) && (rights.write || !access.is_write());
                let gpa = gfn.base() + gva.offset(level);
                (current && allowed).then_some(Answered::Mmio(gpa))
            }
            State::NotPresent | State::Trap => None,
        }
    }

    /// Where the byte of code at `gva` lies, if the shadow maps it now.
    pub(crate) fn code<E: Env>(
        &mut self,
        view: View<'_, E>,
        roots: &Roots,
        vcpu: VcpuId,
        gva: Gva,
    ) -> Option<Hpa> {
        let End { entry, level, .. } = self.walk(view, roots, vcpu, gva)?;
        let runs = view.tables().is_mapped(entry) && entry.rights().execute;
        runs.then(|| entry.hpa() + gva.offset(level))
    }

    /// The guest-physical address that the shadow maps `gva` to now.
    pub(crate) fn mapped<E: Env>(
        &mut self,
        view: View<'_, E>,
        roots: &Roots,
        vcpu: VcpuId,
        gva: Gva,
    ) -> Option<Gpa> {
        let End { slot, entry, level, .. } = self.walk(view, roots, vcpu, gva)?;
        let first = match view.guest_entry(slot) {
            Some(guest) => guest.leaf_frame(level),
            None => view.tables().key(slot.frame()).gfn + slot.index() as u64 * level.pages(),
        };
        let gpa = first.base() + gva.offset(level);
        view.tables().is_mapped(entry).then_some(gpa)
    }

    /// Walks the shadow as the hardware does, rights aside; as far as the last table by what was
    /// found before. Nothing if that may be older than the guest's.
    #[inline]
    fn walk<E: Env>(
        &mut self,
        view: View<'_, E>,
        roots: &Roots,
        vcpu: VcpuId,
        gva: Gva,
    ) -> Option<End> {
        let number = gva.raw() >> Level::L2.shift();
        let (root, links) = (roots.current(vcpu).frame(), view.tables().links());
        let at = number as usize % REMEMBERED;
        let found = self.0[at];
        let LastTable { frame, level, rights, .. } = match (found.number, found.root, found.links) {
            known if known == (number, root, links) => found,
            _ => {
                let (frame, level, rights) = last_table(view, roots, vcpu, gva)?;
                let found = LastTable { number, root, links, frame, level, rights };
                self.0[at] = found;
                found
            }
        };
        let slot = Slot::new(frame, gva.index(level));
        (!view.is_unsync(slot)).then(|| End { slot, entry: view.read(slot), level, rights })
    }
}

/// The entry in which the hardware's walk ends.
pub(super) fn last_slot<E: Env>(
    view: View<'_, E>,
    roots: &Roots,
    vcpu: VcpuId,
    gva: Gva,
) -> Option<Slot> {
    let (frame, level, _) = last_table(view, roots, vcpu, gva)?;
    Some(Slot::new(frame, gva.index(level)))
}

/// The table in which the hardware's walk ends, its level, and what the links to it allow.
fn last_table<E: Env>(
    view: View<'_, E>,
    roots: &Roots,
    vcpu: VcpuId,
    gva: Gva,
) -> Option<(ShadowFrame, Level, Rights)> {
    let (tables, env) = (view.tables(), view.env());
    let mut frame = tables.pool().frame_of(roots.current(vcpu))?;
    let mut level = Level::L4;
    let mut rights = Rights::ALL;
    if roots.paging(vcpu).mode != Mode::Long4 {
        // PDPTEs have no rights.
        let slot = Slot::new(frame, index(tables.key(frame).role, gva));
        frame = tables.child(env, slot)?;
        level = Level::L2;
    }
    while let Some(below) = level.below() {
        let entry = tables.read(env, Slot::new(frame, gva.index(level)));
        if !tables.is_mapped(entry) || entry.is_large() {
            break;
        }
        rights = rights.and(entry.rights());
        frame = env.frame(entry.hpa());
        level = below;
    }
    Some((frame, level, rights))
}
