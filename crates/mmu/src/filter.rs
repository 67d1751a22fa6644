//! Which page faults go straight to the guest, and what the shadow must be like for that (I4).
//!
//! [`GuestFaults::User`] lets protection faults of user mode through. That is right only while every page that user
//! mode can use has the guest's own rights in the shadow. A Mapped entry that lacks W where the guest's entry has it, on
//! a page of user mode, is *narrow*: the first write to a clean page must be seen to set D, as must writes to tracked or
//! read-only memory. So while that filter is in force no entry is narrow: what would be is Pending, and if the guest
//! reads there, so that it must be Mapped, the filter falls back to [`GuestFaults::Present`]. The narrow entries of that
//! time are remembered; to turn the filter on again, they become Pending and everything is flushed.
//!
//! A large page of user mode that is mapped by smaller ones, and that the guest may write, counts by its link. While
//! CR0.WP is clear, or paging is off, the filter is `Present`.

use alloc::vec::Vec;

use umbra_paging::{Mode, Paging, Pfec};

use crate::derive::Target;
use crate::sabotage::Rule;
use crate::tables::Slot;
use crate::{Env, Event, FilterPolicy, GuestFaults, Mmu};

/// How many narrow entries there may be at a time.
const MAX_NARROW: usize = 64;
/// After so many exits that the other filter would have spared, it is chosen.
const REGRET: u32 = 2;

/// The filter that the guest would run on if nothing stood against it, and what it depends on.
pub(crate) struct Choice {
    filter: GuestFaults,
    /// Exits that the other filter would have spared.
    regret: u32,
    /// Narrow entries since the filter was last `User`; some are not any more.
    narrow: Vec<Slot>,
    /// The one to give way to the next.
    oldest: usize,
}

impl Choice {
    pub(crate) fn new(policy: FilterPolicy) -> Choice {
        Choice {
            filter: if policy == FilterPolicy::User { GuestFaults::User } else { GuestFaults::Present },
            regret: 0,
            narrow: Vec::with_capacity(MAX_NARROW),
            oldest: 0,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.narrow.capacity() * size_of::<Slot>()
    }
}

impl<P> Mmu<P> {
    /// Which page faults must exit when the guest runs next. May change with every call that takes the MMU `&mut`:
    /// while a table is loose, a not-present fault below it may come from an old reference that the guest has
    /// replaced, which the CPU must not deliver again and again. So then every fault exits.
    pub fn guest_faults(&self) -> GuestFaults {
        let loose = self.guest.has_loose() && self.keeps(Rule::TrapWhileLoose);
        if !self.tables.encodings().separates_guest_faults() || loose {
            return GuestFaults::Trap;
        }
        let plain = |paging: &Paging| paging.mode == Mode::Long4 && paging.wp;
        if self.choice_is_user() && !self.roots.pagings().all(plain) {
            return GuestFaults::Present;
        }
        self.choice.filter
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
        self.choice.regret += 1;
        if self.choice.regret >= REGRET {
            self.choose(env, other);
        }
    }

    /// Whether entries must not be narrow now.
    pub(crate) fn choice_is_user(&self) -> bool {
        self.choice.filter == GuestFaults::User
    }

    fn choose(&mut self, env: &mut impl Env, filter: GuestFaults) {
        self.choice.regret = 0;
        self.choice.filter = filter;
        if filter == GuestFaults::User {
            while let Some(slot) = self.choice.narrow.pop() {
                self.look_if_narrow(env, slot);
            }
            if self.keeps(Rule::FlushBeforeUserFilter) {
                self.tables.flush(env);
            }
        }
        self.tables.happened(env, Event::Filter(filter));
    }

    fn look_if_narrow(&mut self, env: &mut impl Env, slot: Slot) {
        let Some(source) = self.tables.pool().live_source(slot.frame()) else { return };
        // What the guest's entry says now need not be what the entry was made from, and comes back to.
        let detached = self.guest.is_detached(source) && self.tables.is_mapped(self.tables.read(env, slot));
        if detached || self.view(env).is_narrow(slot) {
            self.tables.look(env, slot);
        }
    }

    /// What an entry is set to that nobody needs Mapped right now: no narrow one while the filter forbids it.
    pub(crate) fn without_narrow(&mut self, env: &impl Env, slot: Slot, target: Target) -> Target {
        if !self.view(env).would_be_narrow(slot, target) || !self.keeps(Rule::NoNarrowEntries) {
            return target;
        }
        let Choice { filter, narrow, .. } = &mut self.choice;
        if narrow.contains(&slot) && *filter != GuestFaults::User {
            return target;
        }
        if *filter == GuestFaults::User || narrow.len() == MAX_NARROW {
            return Target::Look;
        }
        narrow.push(slot);
        target
    }

    /// The guest needs this entry Mapped. If it is narrow, the filter falls back.
    pub(crate) fn admit_narrow(&mut self, env: &mut impl Env, slot: Slot, target: Target) {
        if !self.view(env).would_be_narrow(slot, target) {
            return;
        }
        if self.choice_is_user() && self.keeps(Rule::NoNarrowEntries) {
            self.choose(env, GuestFaults::Present);
        }
        if let Some(old) = self.remember_narrow(slot) {
            self.look_if_narrow(env, old);
        }
    }

    /// Remembers a narrow entry; the oldest gives way if there are too many.
    fn remember_narrow(&mut self, slot: Slot) -> Option<Slot> {
        let Choice { narrow, oldest, .. } = &mut self.choice;
        if narrow.contains(&slot) {
            return None;
        }
        if narrow.len() < MAX_NARROW {
            narrow.push(slot);
            return None;
        }
        *oldest = (*oldest + 1) % MAX_NARROW;
        Some(core::mem::replace(&mut narrow[*oldest], slot))
    }
}
