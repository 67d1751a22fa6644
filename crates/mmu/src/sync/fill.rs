//! Whole pages brought up to date.

use umbra_paging::{ENTRIES, GuestEntry, Level};

use super::Entries;
use crate::derive::Target;
use crate::format::{Role, ShadowEntry, ShadowKey};
use crate::tables::{GROUP, OwedFlush, Slot, has_present, slots};
use crate::{Env, ShadowFrame};

impl<E: Env> Entries<'_, E> {
    /// Makes every entry of a page what it should be; also says how many were something else.
    pub(crate) fn fill(&mut self, frame: ShadowFrame) -> (OwedFlush, u32) {
        let key = self.basis.tables().key(frame);
        let (mut owed, mut changed) = (OwedFlush::NONE, 0);
        if !self.basis.guest().is_seen(self.env, key) {
            for index in 0..ENTRIES {
                owed = owed.and(self.fill_entry(Slot::new(frame, index), &mut changed));
            }
            return (owed, changed);
        }
        // What has not changed is skipped by eights, and so is what guests leave empty.
        let busy = self.basis.tables().pool().busy(frame);
        let mut left = self.basis.tables().changed(self.env, frame, key.gfn);
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            let all = self.guest_group(key, group);
            if has_present(&all) || busy & 1 << group != 0 {
                owed = owed.and(self.fill_group(frame, group, &all, &mut changed));
            }
            self.basis.tables_mut().note(frame, group, &all);
        }
        (owed, changed)
    }

    /// The guest's entries of a group of a page.
    #[inline]
    fn guest_group(&self, key: ShadowKey, group: usize) -> [u64; GROUP] {
        let first = group * GROUP;
        match key.role {
            Role::Guest { level, format, .. } if format.is_legacy() => {
                let features = &self.basis.config().features;
                let entry = |n| format.read(self.env, key.gfn, level, first + n, features).raw();
                core::array::from_fn(entry)
            }
            _ => self.env.read_entries(key.gfn, first),
        }
    }

    /// [`Entries::fill`], paid.
    pub(crate) fn fill_now(&mut self, frame: ShadowFrame) -> u32 {
        let (owed, changed) = self.fill(frame);
        self.pay(owed);
        changed
    }

    /// Makes a group of entries what it should be, of which the guest's entries are `all`.
    #[inline]
    fn fill_group(
        &mut self,
        frame: ShadowFrame,
        group: usize,
        all: &[u64; GROUP],
        changed: &mut u32,
    ) -> OwedFlush {
        let (role, first) = (self.basis.tables().key(frame).role, group * GROUP);
        let mut owed = OwedFlush::NONE;
        let shadow = match self.basis.tables().pool().is_busy(frame, group) {
            true => self.env.read_shadow_entries(frame, first),
            false => [self.basis.tables().encodings().not_present_entry().raw(); GROUP],
        };
        let wanted = self.basis.tables().changed_in(frame, group, all);
        let before = *changed;
        for slot in slots(frame, group, wanted) {
            let n = slot.index() - first;
            let (guest, old) = (GuestEntry::new(all[n]), ShadowEntry::new(shadow[n]));
            match self.view().plain(role, guest) {
                Some((new, _)) if new == old => (),
                Some((new, list)) if self.basis.config().eager || list.is_none() => {
                    self.basis.tables_mut().relist(self.env, slot, old, new, list);
                    self.basis.tables_mut().put(self.env, slot, new);
                    *changed += 1;
                }
                _ => owed = owed.and(self.fill_entry(slot, changed)),
            }
        }
        // Once for all of them: it takes as long as what comes before.
        if *changed != before {
            self.basis.tables_mut().stored(frame, group);
        }
        if !has_present(all) {
            self.basis.tables_mut().emptied(frame, group);
        }
        owed
    }

    /// Notes what the shadow of a leaf table that becomes unsync is made from, so that
    /// [`Entries::fill_unsync`] looks at what changes from now on.
    pub(crate) fn note_unsync(&mut self, frame: ShadowFrame) {
        let key = self.basis.tables().key(frame);
        self.basis.tables_mut().copy(frame);
        for group in 0..ENTRIES / GROUP {
            let all = self.guest_group(key, group);
            self.basis.tables_mut().note(frame, group, &all);
        }
    }

    /// Brings the shadow of an unsync leaf table up to date, for a flush of the guest; says how
    /// many entries were something else.
    pub(crate) fn fill_unsync(&mut self, frame: ShadowFrame) -> u32 {
        let key = self.basis.tables().key(frame);
        // Another page may have got its copy.
        self.basis.tables_mut().copy(frame);
        let (mut owed, mut changed) = (OwedFlush::NONE, 0);
        let mut left = self.basis.tables().changed(self.env, frame, key.gfn);
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            let all = self.guest_group(key, group);
            for slot in slots(frame, group, self.basis.tables().changed_in(frame, group, &all)) {
                owed = owed.and(self.fill_entry(slot, &mut changed));
            }
            self.basis.tables_mut().note(frame, group, &all);
        }
        self.pay(owed);
        changed
    }

    fn fill_entry(&mut self, slot: Slot, changed: &mut u32) -> OwedFlush {
        let before = self.view().read(slot);
        let owed = match self.view().target(slot, false) {
            // Without eager filling what is present waits for its first use.
            Target::Page { level: Level::L1, .. }
                if !self.basis.config().eager && !self.basis.tables().is_mapped(before) =>
            {
                self.basis.tables_mut().look(self.env, slot);
                OwedFlush::NONE
            }
            _ => self.refresh(slot),
        };
        *changed += u32::from(self.view().read(slot) != before);
        owed
    }

    /// Brings the shadows of unsync frames up to date before anything new can lead to them: what
    /// they hold from earlier was never true of the addresses that a new reference would add.
    /// (Refreshed, not emptied: a table that maps itself must get further.) Unsync leaf tables are
    /// tracked again instead, by the fault that adds the reference.
    pub(crate) fn refresh_unsync(&mut self) {
        if !self.basis.guest().has_unsync_above_leaves() {
            return;
        }
        for n in 0..self.basis.guest().unsync_frames().len() {
            let mut next = self.first_shadow(self.basis.guest().unsync_frames()[n]);
            while let Some(frame) = next {
                next = self.next_shadow(frame);
                self.fill_now(frame);
            }
        }
    }
}
