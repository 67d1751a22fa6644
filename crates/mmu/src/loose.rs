//! Loose frames: guest tables whose writes are not seen for a while.
//!
//! Some writes to a table can be neither emulated nor allowed by detaching it: the table is the root in use, or it maps
//! the very instruction, stack or operand of the write. Such a frame becomes *loose*:
//! its shadows stay (or are rebuilt as needed), but hold no Absent entry, so nothing relies on seeing the
//! guest set P. What is Mapped there behaves like a TLB: it may be older than the table, which the
//! architecture allows until the guest flushes. That is so for the addresses under which it was reached already; so the
//! shadows are refreshed before a new reference to one of them is made. At the guest's next flush of any kind the frame is tracked
//! again and its shadows are brought up to date. So every flush of the guest must exit while
//! [`Mmu::has_loose_tables`](crate::Mmu::has_loose_tables).

use umbra_paging::Gfn;

use crate::sabotage::Rule;
use crate::{Env, Event, Mmu};

impl<P> Mmu<P> {
    /// Lets the guest write a tracked frame freely: for writes that cannot be emulated. The frame is detached if that
    /// can help; else it is loose until the guest's next flush.
    pub fn release(&mut self, env: &mut impl Env, gfn: Gfn) {
        if !self.guest.is_tracked(gfn) || self.detach_unemulated(env, gfn) {
            return;
        }
        if self.guest.loose_is_full() {
            let oldest = self.guest.loose()[0];
            self.tighten(env, oldest);
        }
        // Every flush of the guest must exit from now on.
        if self.keeps(Rule::WithdrawWhileLoose) {
            self.roots.withdraw_all(&mut self.tables);
        }
        self.guest.loosen(gfn);
        self.tables.happened(env, Event::Loosened(gfn));
        self.zap_tables(env, gfn);
        self.tables.flush(env);
        self.entries(env).unprotect(gfn);
    }

    /// Tracks a loose frame again.
    fn tighten(&mut self, env: &mut impl Env, gfn: Gfn) {
        self.zap_tables(env, gfn);
        self.guest.tighten(gfn);
        self.tables.happened(env, Event::Tightened(gfn));
        if self.guest.is_tracked(gfn) {
            self.entries(env).protect(gfn).ignore("a flush follows in any case");
        }
        // The guest's flush is one for what it wrote in the table; that may have been a large page which is
        // mapped by smaller ones.
        self.tables.flush(env);
        let mut next = self.guest.first(gfn);
        while let Some(frame) = next {
            next = self.tables.pool().next_of_gfn(frame);
            self.entries(env).fill_now(frame);
        }
    }

    /// Whether any table is loose. Then all page faults must exit (see [`Mmu::guest_faults`]), and all
    /// instructions of the guest that flush: INVLPG, INVPCID, MOV to CR3 and the rest.
    pub fn has_loose_tables(&self) -> bool {
        self.guest.has_loose()
    }

    /// Tracks all loose frames again: at every flush of the guest.
    pub(crate) fn tighten_all(&mut self, env: &mut impl Env) {
        while let Some(&gfn) = self.guest.loose().first()
            && self.keeps(Rule::TightenAtFlush)
        {
            self.tighten(env, gfn);
        }
    }
}
