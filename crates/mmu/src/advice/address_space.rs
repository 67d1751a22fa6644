//! Address spaces that no vCPU runs in: their tables are detached together.
//!
//! A guest writes the tables of another address space mostly to throw it away. That is a burst in
//! each table, and then a write or two that unlink each. If one of the writes is answered by a
//! detach, so are the others: all tables that the roots of this space lead to, and no others.

use umbra_paging::{Gfn, Level, Paging};

use crate::derive::View;
use crate::format::{Role, ShadowKey};
use crate::roots::Roots;
use crate::tables::{List, Slot, slots};
use crate::{Env, ShadowFrame, VcpuId};

/// Shadow pages of one space that are looked at: enough for a small process, few enough for one
/// exit.
const MAX_PAGES: usize = 32;
/// References to pages that are followed upwards: a hostile guest can make as many as there are
/// entries.
const MAX_PARENTS: u32 = 128;
/// A table with more references than these counts as one that others lead to as well.
const MAX_SHARED: usize = 4;
/// Tables of which is remembered whether they are inactive.
const REMEMBERED: usize = 16;

/// Shadow pages of one address space.
struct AddressSpace {
    pages: [ShadowFrame; MAX_PAGES],
    len: usize,
}

impl AddressSpace {
    fn contains(&self, frame: ShadowFrame) -> bool {
        self.pages[..self.len].contains(&frame)
    }

    /// Adds a page, if it is not there already; false if there is no room for it.
    fn add(&mut self, frame: ShadowFrame) -> bool {
        if self.contains(frame) {
            return true;
        }
        let room = self.len < MAX_PAGES;
        if room {
            self.pages[self.len] = frame;
            self.len += 1;
        }
        room
    }
}

/// Which tables a vCPU was found not to run in, by frame: direct-mapped. Each answer holds for as
/// long as no reference between shadow pages changes
/// ([`Tables::links`](crate::tables::Tables::links)), and the vCPU runs on that root.
#[derive(Default)]
pub(crate) struct InactiveAddressSpaces([Remembered; REMEMBERED]);

#[derive(Clone, Copy, Default)]
struct Remembered {
    /// The frame's number plus one.
    gfn: u64,
    links: u64,
    root: ShadowFrame,
    inactive: bool,
}

impl InactiveAddressSpaces {
    /// Whether no root that a vCPU runs on, or is likely to go on with, leads to a shadow of this
    /// frame.
    pub(crate) fn is_inactive<E: Env>(
        &mut self,
        view: View<'_, E>,
        roots: &Roots,
        vcpu: VcpuId,
        gfn: Gfn,
    ) -> bool {
        let (number, links) = (gfn.raw() + 1, view.tables().links());
        let root = roots.current(vcpu).frame();
        let place = number as usize % REMEMBERED;
        let Remembered { gfn: known, links: when, root: under, inactive } = self.0[place];
        if (known, when, under) == (number, links, root) {
            return inactive;
        }
        let inactive =
            !is_in_use_by_newest(view, roots, gfn) && inactive_above(view, roots, gfn).is_some();
        self.0[place] = Remembered { gfn: number, links, root, inactive };
        inactive
    }
}

/// The tables of the address space of this one, if that is inactive: some of them more than once.
pub(crate) fn tables_of_space<E: Env>(
    view: View<'_, E>,
    roots: &Roots,
    gfn: Gfn,
) -> Option<AddressSpaceTables> {
    let mut space = inactive_above(view, roots, gfn)?;
    add_below(view, &mut space);
    let pool = view.tables().pool();
    Some(AddressSpaceTables {
        gfns: space.pages.map(|frame| pool.live_key(frame).map_or(gfn, |key| key.gfn)),
        len: space.len,
    })
}

/// Guest tables of one address space.
pub(crate) struct AddressSpaceTables {
    gfns: [Gfn; MAX_PAGES],
    len: usize,
}

impl AddressSpaceTables {
    pub(crate) fn gfns(&self) -> &[Gfn] {
        &self.gfns[..self.len]
    }
}

/// Whether the newest of all references leads from a root in use: mostly it does.
fn is_in_use_by_newest<E: Env>(view: View<'_, E>, roots: &Roots, gfn: Gfn) -> bool {
    let rmap = view.tables().rmap();
    let newest = |&frame: &ShadowFrame| rmap.first(List::Parents(frame)).map(Slot::frame);
    core::iter::successors(view.guest().first(gfn), newest)
        .any(|frame| is_in_use(view, roots, frame))
}

/// The shadows of this frame and all pages that lead to them, if no vCPU runs on one of these, and
/// they are referenced by a few entries only.
fn inactive_above<E: Env>(view: View<'_, E>, roots: &Roots, gfn: Gfn) -> Option<AddressSpace> {
    let mut space = AddressSpace { pages: [ShadowFrame::default(); MAX_PAGES], len: 0 };
    if !view.shadows(gfn).all(|frame| space.add(frame)) {
        return None;
    }
    let (mut at, mut left) = (0, MAX_PARENTS);
    while at < space.len {
        let frame = space.pages[at];
        let mut known = |slot: Slot| {
            left = left.saturating_sub(1);
            // What PDPTE registers held earlier leads nowhere.
            let unused = matches!(view.tables().key(slot.frame()).role, Role::Pdptes { .. })
                && !roots.is_current(slot.frame());
            left > 0 && (unused || space.add(slot.frame()))
        };
        if is_in_use(view, roots, frame) || !view.tables().parents(frame).all(&mut known) {
            return None;
        }
        at += 1;
    }
    Some(space)
}

/// Whether a vCPU runs on this root, or on its PTI sibling: with page-table isolation each process
/// has two, and Linux keeps them in neighbouring frames.
#[inline]
fn is_in_use<E: Env>(view: View<'_, E>, roots: &Roots, frame: ShadowFrame) -> bool {
    let ShadowKey { role, gfn } = view.tables().key(frame);
    let pti_sibling = |paging: &Paging| paging.root.raw() == gfn.raw() ^ 1;
    let root = role.level() == Level::L4 || matches!(role, Role::PaeRoot { .. });
    root && roots.pagings().any(pti_sibling) || roots.is_current(frame)
}

/// Adds the shadows of tables to which nothing but the space leads, as long as there is room.
fn add_below<E: Env>(view: View<'_, E>, space: &mut AddressSpace) {
    let (tables, env) = (view.tables(), view.env());
    let mut at = 0;
    while at < space.len {
        let frame = space.pages[at];
        at += 1;
        if tables.key(frame).role.level() == Level::L1 {
            continue;
        }
        let mut groups = tables.pool().busy(frame);
        while let Some((group, mapped)) =
            tables.next_of(env, frame, &mut groups, |entry| tables.is_mapped(entry))
        {
            for slot in slots(frame, group, mapped) {
                let Some(child) = view.child(slot) else { continue };
                if space.contains(child) || !matches!(tables.key(child).role, Role::Guest { .. }) {
                    continue;
                }
                // What many entries reference is asked about by each of them.
                let mut parents = tables.parents(child);
                let inside = |slot: Slot| space.contains(slot.frame());
                let own = parents.by_ref().take(MAX_SHARED).all(inside) && parents.next().is_none();
                if own && !space.add(child) {
                    return;
                }
            }
        }
    }
}
