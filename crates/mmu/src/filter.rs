//! Which page-fault filter pays, as far as the faults that exited tell.

use umbra_paging::Pfec;

use crate::{Env, FilterPolicy, GuestFaults, Mmu};

/// After so many exits that the other filter would have spared, it is chosen.
const REGRET: u32 = 2;

impl<P> Mmu<P> {
    /// Which page faults must exit when the guest runs next. May change with every call that takes the MMU `&mut`:
    /// while a table is loose, a not-present fault below it may come from an old reference that the guest has
    /// replaced, which the CPU must not deliver again and again. So then every fault exits.
    pub fn guest_faults(&self) -> GuestFaults {
        self.filter.guest_faults(&self.tables, &self.guest, &self.roots)
    }

    /// Notes an injected fault that one of the filters would have spared, and changes the filter if that pays.
    pub(crate) fn learn_filter(&mut self, env: &mut impl Env, pfec: Pfec) {
        let other = match (self.guest_faults(), pfec.contains(Pfec::PRESENT), pfec.contains(Pfec::USER)) {
            (GuestFaults::Present, true, true) => GuestFaults::User,
            (GuestFaults::User, false, false) => GuestFaults::Present,
            _ => return,
        };
        match self.config.filter {
            FilterPolicy::Auto => (),
            FilterPolicy::User if other == GuestFaults::User => return self.choose(env, other),
            FilterPolicy::Present | FilterPolicy::User => return,
        }
        self.regret += 1;
        if self.regret >= REGRET {
            self.choose(env, other);
        }
    }

    fn choose(&mut self, env: &mut impl Env, filter: GuestFaults) {
        self.regret = 0;
        self.entries(env).choose(filter);
    }
}
