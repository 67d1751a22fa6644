//! Accessed bits set ahead of their use.
//!
//! A page that is not accessed yet is Pending, so that the first access is seen. A write that the guest's tables refuse
//! exits there, too, only to be handed back: a forked process that writes its pages one after the other pays for each.
//! The architecture allows the CPU to set A for what it walks speculatively (SDM, "Accessed and Dirty Flags"). So where
//! such faults come in order, entry after entry of one table, A is set in the next entries of the same kind: present, of
//! user mode, read-only. The entry at fault itself is left as it is.

use umbra_paging::{ENTRIES, GuestEntry, GuestFault, Level, Pfec, bits};

use crate::format::index;
use crate::format::{Role, Source, Wp};
use crate::tables::Slot;
use crate::{Backing, Env, FilterPolicy, Mmu};

/// So many faults must come in order.
const IN_ORDER: u32 = 3;
/// So many entries are marked at a time.
const AHEAD: usize = 32;

/// The faults that came in order.
#[derive(Default)]
pub(crate) struct Ahead {
    /// The entry of the last one.
    last: Option<Slot>,
    count: u32,
}

impl<P> Mmu<P> {
    /// A fault is about to be injected: looks whether others like it can be expected.
    pub(crate) fn mark_ahead(&mut self, env: &mut impl Env, vcpu: usize, fault: GuestFault) {
        let refused = Pfec::PRESENT | Pfec::WRITE | Pfec::USER;
        if fault.pfec != refused || self.config.filter == FilterPolicy::Present {
            return;
        }
        let Some(slot) = self.unaccessed(env, vcpu, fault) else { return };
        let before = self.ahead.last.replace(slot);
        let follows = slot.index() > 0 && before == Some(Slot::new(slot.frame(), slot.index() - 1));
        self.ahead.count = if follows { self.ahead.count + 1 } else { 1 };
        if self.ahead.count < IN_ORDER {
            return;
        }
        let end = (slot.index() + 1 + AHEAD).min(ENTRIES);
        for index in slot.index() + 1..end {
            self.mark(env, Slot::new(slot.frame(), index));
        }
        // The next fault of this kind comes behind what is marked now.
        self.ahead.last = Some(Slot::new(slot.frame(), end - 1));
    }

    /// The Pending entry of the fault, if it is of a tracked leaf table and would be mapped but for A.
    fn unaccessed(&self, env: &impl Env, vcpu: usize, fault: GuestFault) -> Option<Slot> {
        let mut frame = self.tables.pool().frame_of(self.roots.current(vcpu))?;
        loop {
            let Source { role, gfn } = self.tables.source(frame);
            let slot = Slot::new(frame, index(role, fault.gva));
            if let Role::Guest { level: Level::L1, wp: Wp::On, .. } = role {
                let guest = self.view(env).guest_entry(slot)?;
                return (self.guest.is_tracked(gfn) && is_unaccessed(guest)).then_some(slot);
            }
            frame = self.tables.child(env, slot)?;
        }
    }

    fn mark(&mut self, env: &mut impl Env, slot: Slot) {
        let Some(guest) = self.view(env).guest_entry(slot).filter(|guest| is_unaccessed(*guest)) else {
            return;
        };
        let Source { role: Role::Guest { nxe, .. }, gfn: table } = self.tables.source(slot.frame()) else {
            return;
        };
        let plain = guest.reserved(Level::L1, nxe, &self.config.features) == 0
            && matches!(env.backing(guest.frame()), Backing::Ram { .. });
        if plain {
            // Another vCPU may have changed it meanwhile: then it is not what was expected.
            let _ =
                self.entries(env).update_entry(table.entry(slot.index()), guest.raw(), guest.raw() | bits::A);
        }
    }
}

/// Present, of user mode, read-only, and not accessed.
fn is_unaccessed(entry: GuestEntry) -> bool {
    entry.present() && entry.user() && !entry.writable() && !entry.accessed()
}
