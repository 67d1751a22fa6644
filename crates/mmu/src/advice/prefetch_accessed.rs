//! Accessed bits set ahead of their use.
//!
//! A page that is not accessed yet is Trapping, so that the first access is seen. A write that the
//! guest's tables refuse exits there, too, only to be handed back. A forked process that writes its
//! pages one after the other pays for each. The architecture allows the CPU to set A for what it
//! walks speculatively (SDM, "Accessed and Dirty Flags"). So where such faults come in order, entry
//! after entry of one table, the MMU sets A in the next entries of the same kind. They are present,
//! of user mode and read-only. The entry at fault itself is left as it is.

use umbra_paging::{ENTRIES, Format, Gpa, GuestEntry, GuestFault, Level, Pfec};

use crate::derive::View;
use crate::format::{Role, ShadowKey, Wp, index};
use crate::tables::{PageId, Slot};
use crate::{Backing, Env, FilterPolicy};

/// So many faults must come in order.
const IN_ORDER: u32 = 3;
/// So many entries are marked at a time.
const AHEAD: usize = 32;

/// The faults of a vCPU that came in order.
#[derive(Default)]
pub(crate) struct PrefetchAccessed {
    /// The entry of the last one.
    last: Option<Slot>,
    count: u32,
}

impl PrefetchAccessed {
    /// A fault of a vCPU that runs on this root is about to be injected: the entries in which A may
    /// be set, because others like it can be expected.
    pub(crate) fn propose<E: Env>(
        &mut self,
        view: View<'_, E>,
        root: PageId,
        fault: GuestFault,
    ) -> Option<impl Iterator<Item = Slot> + use<E>> {
        if !view.config().prefetch_accessed {
            return None;
        }
        let refused = Pfec::PRESENT | Pfec::WRITE | Pfec::USER;
        if fault.pfec != refused || view.config().filter == FilterPolicy::Present {
            return None;
        }
        let slot = at_fault(view, root, fault)?;
        let before = self.last.replace(slot);
        let follows = slot.index() > 0 && before == Some(Slot::new(slot.frame(), slot.index() - 1));
        self.count = if follows { self.count + 1 } else { 1 };
        if self.count < IN_ORDER {
            return None;
        }
        let end = (slot.index() + 1 + AHEAD).min(ENTRIES);
        // The next fault of this kind comes behind what is marked now.
        self.last = Some(Slot::new(slot.frame(), end - 1));
        Some((slot.index() + 1..end).map(move |index| Slot::new(slot.frame(), index)))
    }
}

/// The Trapping entry of the fault, if it is of a tracked leaf table and would be mapped but for A.
fn at_fault<E: Env>(view: View<'_, E>, root: PageId, fault: GuestFault) -> Option<Slot> {
    let mut frame = view.tables().pool().frame_of(root)?;
    loop {
        let ShadowKey { role, gfn } = view.tables().key(frame);
        let slot = Slot::new(frame, index(role, fault.gva));
        if let Role::Guest { level: Level::L1, wp: Wp::On, .. } = role {
            let guest = view.guest_entry(slot)?;
            return (view.guest().is_tracked(gfn) && is_unaccessed(guest)).then_some(slot);
        }
        frame = view.child(slot)?;
    }
}

/// The guest's entry at `slot`, if A may be set there: the format of its table, where it lies, and
/// its value.
pub(crate) fn unaccessed<E: Env>(
    view: View<'_, E>,
    slot: Slot,
) -> Option<(Format, Gpa, GuestEntry)> {
    let guest = view.guest_entry(slot).filter(|guest| is_unaccessed(*guest))?;
    let ShadowKey { role: Role::Guest { format, nxe, .. }, gfn: table } =
        view.tables().key(slot.frame())
    else {
        return None;
    };
    let plain = format.reserved(guest, Level::L1, nxe, &view.config().features) == 0
        && matches!(view.env().backing(guest.frame()), Backing::Ram { .. });
    plain.then(|| (format.format(), format.place(table, Level::L1, slot.index()), guest))
}

/// Present, of user mode, read-only, and not accessed.
fn is_unaccessed(entry: GuestEntry) -> bool {
    entry.present() && entry.user() && !entry.writable() && !entry.accessed()
}
