//! Building shadow pages: protect the guest's table, flush, read it, fill the shadow.

use super::Cx;
use crate::format::{Role, ShadowKey};
use crate::policy::WritePolicy;
use crate::{Env, Event, ShadowFrame};

impl<E: Env> Cx<'_, E> {
    /// The page of `key`, up to date: built, or attached again, if need be.
    pub(crate) fn provide(&mut self, policy: &mut dyn WritePolicy, key: ShadowKey) -> ShadowFrame {
        if self.shadow.basis.guest().is_detached(key) {
            self.attach(policy, key);
        }
        match self.view().find(key) {
            Some(frame) => frame,
            None => self.build(key),
        }
    }

    /// Builds the page of `key`, reclaiming the frames of other ones if need be: none that is
    /// pinned or among the newest.
    pub(super) fn build(&mut self, key: ShadowKey) -> ShadowFrame {
        // The hypervisor sets accessed bits in other tables.
        if matches!(key.role, Role::Guest { .. }) {
            self.before_write(key.gfn);
        }
        let frame = self.allocate(key);
        let (tables, guest) = self.shadow.basis.both_mut();
        // Listed before it is filled: a table that maps itself must find itself tracked.
        let newly_tracked = guest.insert(tables, key, frame);
        let seen = guest.is_seen(self.env, key);
        tables.open(self.env, frame, seen);
        if newly_tracked {
            self.entries().protect_now(key.gfn);
        }
        self.entries().fill_now(frame);
        self.happened(Event::Built(key.into()));
        frame
    }

    fn allocate(&mut self, key: ShadowKey) -> ShadowFrame {
        if let Some(frame) = self.shadow.basis.tables_mut().allocate(key) {
            return frame;
        }
        // A page in quarantine has left its links, so where they are short it has helped nobody.
        let tables = self.shadow.basis.tables_mut();
        if !tables.pool().has_quarantine() || !tables.has_links() {
            self.reclaim();
        }
        if self.shadow.basis.tables().pool().has_quarantine() {
            self.flush();
        }
        self.shadow
            .basis
            .tables_mut()
            .allocate(key)
            .expect("a page was zapped and what was cached of it flushed")
    }

    /// Zaps pages to make room: several at a time share the flush; few enough that what one
    /// instruction needs stays.
    fn reclaim(&mut self) {
        let batch = (self.shadow.basis.tables().pool().live() / 16).clamp(1, 16);
        for _ in 0..batch {
            let victim = self.shadow.basis.tables().pool().victim();
            let victim = victim.expect("the configuration leaves frames that are not pinned");
            self.happened(Event::Reclaimed);
            self.zap(victim);
        }
    }
}
