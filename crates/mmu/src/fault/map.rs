//! The shadow made to translate an address.

use umbra_paging::{Access, Gva, Rights};

use crate::derive::Target;
use crate::format::{Role, Wp, index};
use crate::lifecycle::Cx;
use crate::policy::WritePolicy;
use crate::tables::Slot;
use crate::{Env, Event, ShadowFrame, VcpuId};

/// What [`map`] came to.
#[derive(Clone, Copy)]
pub(crate) struct Mapped {
    linked: bool,
    below_root: bool,
    complete: bool,
    raced: bool,
}

impl Mapped {
    /// A table was linked on the way.
    pub(crate) fn has_linked(self) -> bool {
        self.linked
    }

    /// A table was linked into the root, or a directory behind PDPTEs, on the way to a page.
    pub(crate) fn has_linked_below_root(self) -> bool {
        self.below_root && self.complete
    }

    /// A translation, or the knowledge that there is no memory, is installed. If not, no shadow
    /// entry can allow the access: not without allowing more, or it goes through a table that is no
    /// memory.
    pub(crate) fn is_complete(self) -> bool {
        self.complete
    }

    /// It ended at an entry by which no walk gets further. Where the guest's tables allow the
    /// access, another vCPU has changed it since they were walked.
    pub(crate) fn has_raced(self) -> bool {
        self.raced
    }
}

/// Makes the shadow translate `gva` for an access that the guest's tables allow to a page with
/// these `rights`: builds and links what is missing on the way, and installs the leaf. Where the
/// guest's tables end in an entry that is not present, it goes as far as that.
pub(crate) fn map<E: Env>(
    cx: &mut Cx<'_, E>,
    policy: &mut dyn WritePolicy,
    vcpu: VcpuId,
    gva: Gva,
    rights: Rights,
    access: Access,
) -> Mapped {
    cx.entries().refresh_unsync();
    let root = cx.shadow().roots().current(vcpu);
    let mut frame = cx.shadow().tables().pool().frame_of(root).expect("a root in use is pinned");
    let mut done = Mapped { linked: false, below_root: false, complete: false, raced: false };
    let mut path = [frame; 4];
    for depth in 0.. {
        path[depth] = frame;
        let role = cx.shadow().tables().key(frame).role;
        let Some(overrides) = overrides(role, rights, access) else { return done };
        let slot = Slot::new(frame, index(role, gva));
        let old_child = cx.view().child(slot);
        let unsync = cx.shadow().guest().has_unsync();
        // Where no table is out of date, a link is what it should be; but with CR0.WP clear there
        // are two forms of it.
        let has_forms = matches!(role, Role::Guest { wp: Wp::Off { .. }, .. });
        if let Some(child) = old_child.filter(|_| !unsync && !has_forms) {
            frame = child;
            continue;
        }
        let target = provided(cx, policy, slot, role, overrides, &path[..=depth]);
        // The vCPU has left its page for PDPTEs if what was built is a table in the same frame.
        if cx.shadow().roots().current(vcpu) != root {
            return Mapped { raced: true, ..done };
        }
        let old = cx.view().read(slot);
        if let Target::Link(child, _) = target {
            if unsync && cx.view().encode(slot, target).0 != old {
                cx.before_link(child);
            }
        }
        let changes = cx.entries().install(slot, target);
        let stale = unsync && cx.view().is_unsync(slot) && cx.shadow().tables().is_mapped(old);
        if !changes && matches!(target, Target::Page { .. }) || stale {
            // Installed already, or older: the fault came from something cached. It is dropped by
            // the fault itself (SDM, "Operations that Invalidate TLBs"), but not all CPUs do so if
            // the fault exits.
            cx.env().flush_fault(vcpu, gva);
        }
        let child = match target {
            Target::Link(child, _) => child,
            Target::Page { .. } | Target::Mmio(..) => return Mapped { complete: true, ..done },
            Target::NotPresent | Target::Trap | Target::Missing(_) => {
                return Mapped { raced: cx.view().stops_walks(slot), ..done };
            }
        };
        if old_child != Some(child) {
            done.linked = true;
            let above = cx.shadow().tables().key(path[0]).role.is_pdptes();
            done.below_root |= depth == usize::from(above);
            cx.touch(child);
        }
        frame = child;
    }
    unreachable!("the entries of a page table link no further")
}

/// Whether a page of this role needs the form in which only the supervisor may write; nothing, if
/// that form would allow more.
fn overrides(role: Role, rights: Rights, access: Access) -> Option<bool> {
    match role {
        Role::Guest { wp, nxe, .. } if wp.overrides(rights, access) => {
            (!wp.override_is_unsafe(nxe)).then_some(true)
        }
        _ => Some(false),
    }
}

/// What the entry at `slot` should be, with the page that it references: built, if it was missing,
/// and none of those on the `path` there reclaimed for it.
fn provided<E: Env>(
    cx: &mut Cx<'_, E>,
    policy: &mut dyn WritePolicy,
    slot: Slot,
    role: Role,
    overrides: bool,
    path: &[ShadowFrame],
) -> Target {
    let target = cx.view().target(slot, overrides);
    let Target::Missing(key) = target else { return target };
    path.iter().for_each(|&frame| cx.touch(frame));
    cx.provide(policy, key);
    if matches!((role, key.role), (Role::Guest { .. }, Role::Direct { .. })) {
        cx.happened(Event::Split { gfn: key.gfn });
    }
    cx.view().target(slot, overrides)
}
