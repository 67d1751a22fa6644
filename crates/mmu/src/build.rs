//! Building shadow pages: protect the guest's table, flush, read it, fill the shadow.

use crate::format::Source;
use crate::policy::WritePolicy;
use crate::sabotage::Rule;
use crate::{Env, Event, Mmu};

impl<P> Mmu<P> {
    /// The page of `source`, up to date: built, or attached again, if need be.
    pub(crate) fn provide(&mut self, env: &mut impl Env, source: Source) -> u32
    where
        P: WritePolicy,
    {
        if self.guest.is_detached(source) && self.keeps(Rule::AttachBeforeLink) {
            self.attach(env, source);
        }
        match self.view(env).find(source) {
            Some(frame) => frame,
            None => self.build(env, source),
        }
    }

    /// Builds the page of `source`, reclaiming the frames of other ones if need be: none that is pinned or
    /// among the newest.
    fn build(&mut self, env: &mut impl Env, source: Source) -> u32 {
        let frame = self.allocate(env, source);
        // Listed before it is filled: a table that maps itself must find itself tracked.
        let newly_tracked = self.guest.insert(&mut self.tables, source, frame);
        let seen = self.guest.is_seen(env, source);
        self.tables.open(env, frame, seen);
        if !self.keeps(Rule::ReadAfterProtect) {
            self.entries(env).fill_now(frame);
        }
        if newly_tracked && self.keeps(Rule::ProtectTables) {
            self.entries(env).protect_now(source.gfn);
        }
        if self.keeps(Rule::ReadAfterProtect) {
            self.entries(env).fill_now(frame);
        }
        self.tables.happened(env, Event::Built(source.into()));
        frame
    }

    fn allocate(&mut self, env: &mut impl Env, source: Source) -> u32 {
        if let Some(frame) = self.tables.allocate(source) {
            return frame;
        }
        if !self.tables.pool().has_limbo() {
            // Several at a time share the flush; few enough that what one instruction needs stays.
            let batch = (self.tables.pool().count() / 16).clamp(1, 16);
            let (oldest, spare) = (self.keeps(Rule::ReclaimOldest), self.keeps(Rule::SpareRoots));
            for _ in 0..batch {
                let victim = self
                    .tables
                    .pool()
                    .victim(oldest, spare)
                    .expect("the configuration leaves frames that are not pinned");
                self.tables.happened(env, Event::Reclaimed);
                self.zap(env, victim);
            }
        }
        if self.tables.pool().has_limbo() {
            self.tables.flush(env);
        }
        self.tables.allocate(source).expect("a page was zapped and what was cached of it flushed")
    }
}
