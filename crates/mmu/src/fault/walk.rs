//! The walk of the guest's own tables.

use umbra_paging::{Access, GuestFault, Gva, Pfec, Walk, bits};

use super::shadow_walk::last_slot;
use crate::lifecycle::{Cx, Shadow};
use crate::sync::Resynced;
use crate::{Env, GuestFaults, TranslateError, VcpuId, Work};

/// So often a walk is begun again because another vCPU has changed an entry on its way.
const ROUNDS: u32 = 4;

/// Walks the guest's tables and sets the accessed and dirty bits, as writes that are followed.
///
/// Another vCPU may store to the entries meanwhile, for as long as they are not tracked. Before the
/// last round it is made to leave the guest; who still changes them then is no vCPU.
pub(crate) fn walk<E: Env>(
    cx: &mut Cx<'_, E>,
    vcpu: VcpuId,
    gva: Gva,
    access: Access,
) -> Result<(Walk, Option<Work>), TranslateError> {
    let mut work: Option<Work> = None;
    'again: for round in 1..=ROUNDS {
        if round == ROUNDS {
            cx.env().kick();
        }
        let (view, paging) = (cx.view(), cx.shadow().roots().paging(vcpu));
        let format = paging.mode.format();
        let walk =
            match umbra_paging::walk(view.env(), paging, &view.config().features, gva, access) {
                Ok(walk) => walk,
                Err(fault) => {
                    // A page fault invalidates what is cached for its address (SDM, "Operations
                    // that Invalidate TLBs and Paging-Structure Caches"), so unsync tables must not
                    // keep it.
                    resync_address(cx, vcpu, gva);
                    cx.env().flush_fault(vcpu, gva);
                    return Err(TranslateError::Fault(fault));
                }
            };
        let Some(format) = format else { return Ok((walk, work)) };
        for step in walk.steps() {
            let Some(new) = step.update(access) else { continue };
            let old = step.entry.raw();
            cx.before_write(step.at.gfn());
            if cx.entries().update_entry(format, step.at, old, new).is_err() {
                continue 'again;
            }
            let dirty = (new ^ old) & bits::D != 0;
            let this = if dirty { Work::Dirty } else { Work::Accessed };
            work = Some(work.map_or(this, |before| before.min(this)));
        }
        return Ok((walk, work));
    }
    Err(TranslateError::Raced)
}

/// The guest has flushed this address on a vCPU, or it has faulted there: what tables that are out
/// of date hold for it is brought up to date. Of a leaf table only that is, and it is told.
pub(crate) fn resync_address<E: Env>(
    cx: &mut Cx<'_, E>,
    vcpu: VcpuId,
    gva: Gva,
) -> Option<Resynced> {
    if cx.shadow().guest().has_unsync_above_leaves() {
        cx.resync_all();
    }
    resync_leaf_entry(cx, vcpu, gva)
}

/// Brings the entry of this address up to date, if it is one of an unsync leaf table.
pub(crate) fn resync_leaf_entry<E: Env>(
    cx: &mut Cx<'_, E>,
    vcpu: VcpuId,
    gva: Gva,
) -> Option<Resynced> {
    if !cx.shadow().guest().has_unsync() || cx.shadow().guest().has_unsync_above_leaves() {
        return None;
    }
    let slot = last_slot(cx.view(), cx.shadow().roots(), vcpu, gva)?;
    cx.view().is_unsync(slot).then(|| cx.entries().resync_entry(slot))
}

/// Whether the CPU itself can deliver this fault once the tables on the way are linked: it exited
/// only because they were not.
#[inline]
pub(crate) fn is_bypassed(shadow: &Shadow, fault: GuestFault) -> bool {
    !fault.pfec.contains(Pfec::PRESENT) && is_spared(shadow.guest_faults(), fault)
}

/// Whether the CPU itself would deliver this fault if no page table were unsync.
#[inline]
pub(crate) fn is_lost_to_unsync(shadow: &Shadow, fault: GuestFault) -> bool {
    let guest = shadow.guest();
    guest.has_unsync()
        && !guest.has_unsync_above_leaves()
        && is_spared(shadow.guest_faults_without_unsync(), fault)
}

/// Whether this fault passes the filter. Those with a reserved bit never do.
fn is_spared(filter: GuestFaults, fault: GuestFault) -> bool {
    match filter {
        GuestFaults::Trap => false,
        GuestFaults::Present => !fault.pfec.contains(Pfec::PRESENT),
        GuestFaults::User => fault.pfec.contains(Pfec::USER),
    }
}
