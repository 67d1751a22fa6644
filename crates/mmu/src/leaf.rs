//! The short way for the plain entries: nearly all that a guest writes are of two kinds, and a new root repeats what others
//! say.

use umbra_paging::{Gpa, GuestEntry, Level, bits};

use crate::format::ShadowEntry;
use crate::format::{Role, Source, Wp};
use crate::sabotage::Rule;
use crate::tables::{List, Slot};
use crate::{Backing, Env, Mmu};

impl<P> Mmu<P> {
    /// The shadow entry for an entry of a table whose writes are seen, and the list that it belongs to, in the plain
    /// cases: not present, or, with CR0.WP set, not accessed, a page of memory whose guest rights can all be given, or a table. In
    /// others `None`; then [`Mmu::target`] knows. (The auditor compares with that, too.)
    #[inline(always)]
    pub(crate) fn plain(
        &self,
        env: &impl Env,
        role: Role,
        guest: GuestEntry,
    ) -> Option<(ShadowEntry, Option<List>)> {
        const KEPT: u64 = bits::W | bits::U | bits::G | bits::NX;
        let raw = guest.raw();
        if raw & bits::P == 0 {
            return Some((self.tables.encodings().absent(), None));
        }
        let Role::Guest { level, nxe, wp: Wp::On } = role else { return None };
        if level != Level::L1 {
            return self.plain_link(env, level, nxe, guest);
        }
        if raw & bits::A == 0 && !self.is_sabotaged() {
            // Whatever else it says: all entries of a process that was just forked are so.
            return Some((self.tables.encodings().look(), None));
        }
        let reserved = self.config.features.address_reserved() | if nxe { 0 } else { bits::NX };
        // D must be set before W is given.
        let clean = raw & (bits::W | bits::D) == bits::W;
        if raw & (bits::A | reserved) != bits::A || clean || self.is_sabotaged() {
            return None;
        }
        let gfn = guest.frame();
        match env.backing(gfn) {
            Backing::Ram { hfn, writable: true } if raw & bits::W == 0 || !self.guest.is_tracked(gfn) => {
                let new = raw & KEPT | bits::P | bits::A | bits::D | hfn.base().raw();
                Some((ShadowEntry::new(new), Some(List::Gfn(gfn.raw() as u32))))
            }
            _ => None,
        }
    }

    /// The same for a present entry of a table of a higher level. Of all that a new root says half is the kernel's tables.
    fn plain_link(
        &self,
        env: &impl Env,
        level: Level,
        nxe: bool,
        guest: GuestEntry,
    ) -> Option<(ShadowEntry, Option<List>)> {
        let gfn = guest.frame();
        let odd = guest.is_leaf(level)
            || guest.reserved(level, nxe, &self.config.features) != 0
            || !self.guest.can_hold_table(env, gfn);
        if odd || self.guest.has_loose() || self.is_sabotaged() {
            return None;
        }
        let source = Source { role: Role::Guest { level: level.below()?, nxe, wp: Wp::On }, gfn };
        let found = self.guest.find(self.tables.pool(), source, |found| found == source);
        match found.filter(|_| guest.accessed() && !self.guest.is_detached(source)) {
            Some(child) => {
                let entry = ShadowEntry::link(env.hpa(child), Wp::On.link_rights(guest, nxe));
                Some((entry, Some(List::Parents(child))))
            }
            None => Some((self.tables.encodings().look(), None)),
        }
    }

    /// A write of a whole entry to a table that has one shadow, of the lowest level: the short way of
    /// [`Mmu::write_guest`]. False if it is not that.
    pub(crate) fn write_leaf(&mut self, env: &mut impl Env, gpa: Gpa, bytes: &[u8]) -> bool {
        let (Ok(value), Some(frame)) =
            (bytes.try_into().map(u64::from_le_bytes), self.guest.first(gpa.gfn()))
        else {
            return false;
        };
        let source = self.tables.source(frame);
        let Source { role: Role::Guest { level: Level::L1, wp: Wp::On, .. }, gfn } = source else {
            return false;
        };
        let lone = self.tables.pool().next_of_gfn(frame).is_none();
        if !gpa.raw().is_multiple_of(8) || !lone || !self.guest.is_tracked(gfn) || self.is_sabotaged() {
            return false;
        }
        let Some((new, list)) = self.plain(env, source.role, GuestEntry::new(value)) else { return false };
        let slot = Slot::new(frame, gpa.page_offset() as usize / 8);
        let old = self.tables.read(env, slot);
        // Pending while the guest's entry changes; it stays in its list for so long.
        if old != self.tables.encodings().absent() && self.keeps(Rule::PendingBeforeWrite) {
            self.tables.hide(env, slot);
        }
        env.write(gpa, bytes);
        if old != new {
            self.tables.relist(env, slot, old, new, list);
            self.tables.store(env, slot, new);
        } else if new != self.tables.encodings().absent() {
            self.tables.store(env, slot, new);
        }
        true
    }
}
