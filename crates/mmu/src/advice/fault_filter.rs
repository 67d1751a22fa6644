//! Which page-fault filter pays, as far as the faults that exited tell.

use umbra_paging::Pfec;

use crate::{FilterPolicy, GuestFaults};

/// After so many exits that the other filter would have saved, it is chosen.
const REGRET: u32 = 2;

/// Exits that the other filter would have saved.
#[derive(Default)]
pub(crate) struct Regret {
    exits: u32,
    /// Changes of the filter when they were counted: each makes what was counted before void.
    changes: u64,
}

impl Regret {
    /// A fault with this code exited under the filter `now`, after so many changes of the filter,
    /// only to be injected: the filter to change to, if that pays.
    pub(crate) fn learn(
        &mut self,
        policy: FilterPolicy,
        now: GuestFaults,
        changes: u64,
        pfec: Pfec,
    ) -> Option<GuestFaults> {
        if self.changes != changes {
            *self = Regret { exits: 0, changes };
        }
        let other = match (now, pfec.contains(Pfec::PRESENT), pfec.contains(Pfec::USER)) {
            (GuestFaults::Present, true, true) => GuestFaults::User,
            (GuestFaults::User, false, false) => GuestFaults::Present,
            _ => return None,
        };
        let pays = match policy {
            FilterPolicy::Auto => {
                self.exits += 1;
                self.exits >= REGRET
            }
            FilterPolicy::User => other == GuestFaults::User,
            FilterPolicy::Present => false,
        };
        pays.then_some(other)
    }
}
