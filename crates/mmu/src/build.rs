//! Building shadow pages: protect the guest's table, flush, read it, fill the shadow.

use umbra_paging::{ENTRIES, Gfn, GuestEntry, Level};

use crate::derive::Target;
use crate::format::ShadowEntry;
use crate::format::Source;
use crate::guest::REGION;
use crate::policy::WritePolicy;
use crate::sabotage::Rule;
use crate::tables::OwedFlush;
use crate::tables::slots;
use crate::tables::{GROUP, has_present};
use crate::tables::{List, Slot};
use crate::{Env, Event, FilterPolicy, Mmu};

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
            self.fill(env, frame).0.pay(&mut self.tables, env);
        }
        if newly_tracked && self.keeps(Rule::ProtectTables) {
            self.protect(env, source.gfn).pay(&mut self.tables, env);
        }
        if self.keeps(Rule::ReadAfterProtect) {
            self.fill(env, frame).0.pay(&mut self.tables, env);
        }
        self.tables.happened(env, Event::Built(source.into()));
        frame
    }

    /// Makes the entry at `slot` what it should be.
    pub(crate) fn refresh(&mut self, env: &mut impl Env, slot: Slot) -> OwedFlush {
        let view = self.view(env);
        let target = view.target(slot, false);
        let target = match target {
            // Only a fault leads there anew: see `loose.rs`.
            Target::Link(child, _) if !view.is_current(child) && view.child(slot) != Some(child) => {
                Target::Look
            }
            _ => self.without_narrow(env, slot, target),
        };
        let (entry, list) = self.view(env).encode(slot, target);
        self.tables.set(env, slot, entry, list)
    }

    /// Makes every entry of a page what it should be; also says how many were something else.
    pub(crate) fn fill(&mut self, env: &mut impl Env, frame: u32) -> (OwedFlush, u32) {
        let source = self.tables.source(frame);
        let (mut owed, mut changed) = (OwedFlush::NONE, 0);
        if !self.guest.is_seen(env, source) {
            for index in 0..ENTRIES {
                owed = owed.and(self.fill_entry(env, Slot::new(frame, index), &mut changed));
            }
            return (owed, changed);
        }
        // What has not changed is skipped by eights, and so is what guests leave empty.
        let busy = self.tables.pool().busy(frame);
        let mut left = self.tables.changed(env, frame, source.gfn);
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            let all = env.read_entries(source.gfn, group * GROUP);
            if has_present(&all) || busy & 1 << group != 0 {
                owed = owed.and(self.fill_group(env, frame, group, &all, &mut changed));
            }
            self.tables.note(frame, group, &all);
        }
        (owed, changed)
    }

    /// Makes a group of entries what it should be, of which the guest's entries are `all`.
    #[inline]
    fn fill_group(
        &mut self,
        env: &mut impl Env,
        frame: u32,
        group: usize,
        all: &[u64; GROUP],
        changed: &mut u32,
    ) -> OwedFlush {
        let (role, first) = (self.tables.source(frame).role, group * GROUP);
        let mut owed = OwedFlush::NONE;
        let shadow = match self.tables.pool().is_busy(frame, group) {
            true => env.read_shadow_entries(frame, first),
            false => [self.tables.encodings().absent().raw(); GROUP],
        };
        let wanted = self.tables.changed_in(frame, group, all);
        let before = *changed;
        for slot in slots(frame, group, wanted) {
            let n = slot.index() - first;
            let (guest, old) = (GuestEntry::new(all[n]), ShadowEntry::new(shadow[n]));
            match self.view(env).plain(role, guest) {
                Some((new, _)) if new == old => (),
                Some((new, list)) if self.config.eager || list.is_none() => {
                    self.tables.relist(env, slot, old, new, list);
                    self.tables.put(env, slot, new);
                    *changed += 1;
                }
                _ => owed = owed.and(self.fill_entry(env, slot, changed)),
            }
        }
        // Once for all of them: it takes as long as what comes before.
        if *changed != before {
            self.tables.stored(frame, group);
        }
        if !has_present(all) {
            self.tables.emptied(frame, group);
        }
        owed
    }

    fn fill_entry(&mut self, env: &mut impl Env, slot: Slot, changed: &mut u32) -> OwedFlush {
        let before = self.tables.read(env, slot);
        let target = self.view(env).target(slot, false);
        let owed = match target {
            // Without eager filling what is present waits for its first use.
            Target::Page { level: Level::L1, .. } if !self.config.eager && !self.tables.is_mapped(before) => {
                self.tables.look(env, slot);
                OwedFlush::NONE
            }
            _ => self.refresh(env, slot),
        };
        *changed += u32::from(self.tables.read(env, slot) != before);
        owed
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

    /// Takes the right to write a frame away from all that maps it, because it has just become tracked. The
    /// flush is owed also where no entry changes: the CPU may hold a writable translation from an entry that
    /// lost W, or the page, before.
    pub(crate) fn protect(&mut self, env: &mut impl Env, gfn: Gfn) -> OwedFlush {
        let mut next = self.tables.rmap().first(List::Gfn(gfn.raw() as u32));
        while let Some(slot) = next {
            next = self.tables.rmap().next(slot);
            let entry = self.tables.read(env, slot);
            if entry.rights().write {
                self.hold_write(env, slot, entry);
            }
        }
        // A large page cannot leave out one frame. What maps the region is linked to its identity page, if
        // that is there, or built on the next access.
        let region = List::Region((gfn.raw() / REGION) as u32);
        let mut owed = OwedFlush::when(self.keeps(Rule::FlushAfterProtect));
        while let Some(slot) = self.tables.rmap().first(region)
            && self.keeps(Rule::SplitAroundTables)
        {
            owed = owed.and(self.refresh(env, slot));
        }
        owed
    }

    fn hold_write(&mut self, env: &mut impl Env, slot: Slot, entry: ShadowEntry) {
        let narrow = entry.rights().user
            && self.view(env).is_guests(slot)
            && self.config.filter != FilterPolicy::Present;
        if narrow && self.keeps(Rule::NoNarrowEntries) {
            // It would be narrow: see `filter.rs`.
            self.tables.look(env, slot);
        } else {
            self.tables.store(env, slot, entry.protected());
        }
    }

    /// Gives the right to write a frame back where the guest's entries give it, because it is no longer
    /// tracked. What may be cached of its shadows must have been flushed. Only for the first few mappings:
    /// the others get it back on the next write.
    pub(crate) fn unprotect(&mut self, env: &mut impl Env, gfn: Gfn) {
        const EAGER: usize = 4;
        let mut next = self.tables.rmap().first(List::Gfn(gfn.raw() as u32));
        for _ in 0..EAGER {
            let Some(slot) = next else { return };
            next = self.tables.rmap().next(slot);
            self.widen(env, slot);
        }
    }

    fn widen(&mut self, env: &mut impl Env, slot: Slot) {
        let target = self.view(env).target(slot, false);
        let (entry, _) = self.view(env).encode(slot, target);
        let old = self.tables.read(env, slot);
        // Only if nothing but the right to write differs: an entry in the form for a supervisor's write stays.
        if entry.protected().without_hint() == old.without_hint() {
            self.tables.store(env, slot, entry);
        }
    }
}
