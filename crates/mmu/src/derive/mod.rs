//! What a shadow entry should be: a function of the guest's entry, the page's role and what is
//! behind. Nothing here changes anything.

mod narrow;
mod plain;
mod target;
#[cfg(test)]
mod tests;

pub(crate) use target::Target;

use umbra_paging::{Gfn, GuestEntry, Level};

use crate::format::{Role, ShadowEntry, ShadowKey};
use crate::guest::GuestFrames;
use crate::tables::{List, Slot, Tables};
use crate::{Config, Env, ShadowFrame};

/// What entries are derived from: the shadow pages, the guest frames and the configuration.
///
/// They are owned together so that a [`View`] of them fits into two registers: it is made some
/// twenty times in an exit. Only `lifecycle` changes guest frames (`tests/layers.rs` sees to that).
pub(crate) struct Basis {
    tables: Tables,
    guest: GuestFrames,
    config: Config,
}

impl Basis {
    pub(crate) fn new(tables: Tables, guest: GuestFrames, config: Config) -> Basis {
        Basis { tables, guest, config }
    }

    #[inline]
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    #[inline]
    pub(crate) fn guest(&self) -> &GuestFrames {
        &self.guest
    }

    #[inline]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    #[inline]
    pub(crate) fn tables_mut(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// The shadow pages and the guest frames, both to be changed.
    #[inline]
    pub(crate) fn both_mut(&mut self) -> (&mut Tables, &mut GuestFrames) {
        (&mut self.tables, &mut self.guest)
    }

    #[inline]
    pub(crate) fn view<'a, E: Env>(&'a self, env: &'a E) -> View<'a, E> {
        View { basis: self, env }
    }
}

/// What entries are derived from, to be looked at.
pub(crate) struct View<'a, E> {
    basis: &'a Basis,
    env: &'a E,
}

impl<E> Clone for View<'_, E> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for View<'_, E> {}

impl<'a, E: Env> View<'a, E> {
    #[inline]
    pub(crate) fn tables(self) -> &'a Tables {
        &self.basis.tables
    }

    #[inline]
    pub(crate) fn guest(self) -> &'a GuestFrames {
        &self.basis.guest
    }

    #[inline]
    pub(crate) fn config(self) -> &'a Config {
        &self.basis.config
    }

    #[inline]
    pub(crate) fn env(self) -> &'a E {
        self.env
    }

    pub(crate) fn read(self, slot: Slot) -> ShadowEntry {
        self.basis.tables.read(self.env, slot)
    }

    pub(crate) fn child(self, slot: Slot) -> Option<ShadowFrame> {
        self.basis.tables.child(self.env, slot)
    }

    /// The guest's entry that the one at `slot` shadows, as it is now; `None` in pages without a
    /// guest table. One of 32-bit paging comes as PAE paging would say it.
    pub(crate) fn guest_entry(self, slot: Slot) -> Option<GuestEntry> {
        let ShadowKey { role: Role::Guest { level, format, .. }, gfn } =
            self.basis.tables.key(slot.frame())
        else {
            return None;
        };
        Some(format.read(self.env, gfn, level, slot.index(), &self.basis.config.features))
    }

    /// The shadows of a guest frame.
    pub(crate) fn shadows(self, gfn: Gfn) -> impl Iterator<Item = ShadowFrame> + 'a {
        self.basis.guest.shadows(self.basis.tables.pool(), gfn)
    }

    /// Whether the hardware can reach a shadow of the table in this frame.
    pub(crate) fn is_reachable(self, gfn: Gfn) -> bool {
        let (pool, rmap) = (self.basis.tables.pool(), self.basis.tables.rmap());
        self.shadows(gfn)
            .any(|frame| pool.is_pinned(frame) || rmap.first(List::Parents(frame)).is_some())
    }

    /// The page of exactly this key.
    pub(crate) fn find(self, key: ShadowKey) -> Option<ShadowFrame> {
        self.basis.guest.find(&self.basis.tables, key)
    }

    /// Whether a reference to the page may be added while tables may be unsync, without their
    /// shadows being refreshed before: not if it is one of a guest table while any is unsync, as it
    /// may lead there over others. A page table leads to no other one.
    pub(crate) fn is_current(self, child: ShadowFrame) -> bool {
        let (guest, key) = (&self.basis.guest, self.basis.tables.key(child));
        match key.role {
            Role::Guest { level: Level::L1, .. } => !guest.is_unsync(key),
            Role::Guest { .. } => !guest.has_unsync(),
            _ => true,
        }
    }

    /// Whether the entry at `slot` may be older than the guest's table.
    pub(crate) fn is_unsync(self, slot: Slot) -> bool {
        self.basis.guest.has_unsync()
            && self.basis.guest.is_unsync(self.basis.tables.key(slot.frame()))
    }

    /// Whether the CPU may cache in pieces what the guest counts as one: a large page by smaller
    /// ones at or below this entry, or an entry of a page directory of 32-bit paging, which covers
    /// 4 MiB, by its two shadows.
    pub(crate) fn may_be_split(self, slot: Slot) -> bool {
        let role = self.basis.tables.key(slot.frame()).role;
        let halved =
            matches!(role, Role::Guest { level: Level::L2, format, .. } if format.is_legacy());
        if let Some(child) = self.child(slot) {
            let table =
                matches!(self.basis.tables.key(child).role, Role::Guest { level: Level::L1, .. });
            return halved || !table;
        }
        // A large page that is not mapped whole now may have been mapped by smaller ones before.
        // (One that is was flushed for when it was installed.) One of 4 MiB is always in two
        // pieces.
        let large = |entry: GuestEntry| entry.present() && entry.is_leaf(role.level());
        role.level() != Level::L1
            && self.guest_entry(slot).is_some_and(large)
            && (halved || !self.basis.tables.is_mapped(self.read(slot)))
    }
}
