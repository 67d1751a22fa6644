//! The short way for the plain entries: nearly all that a guest writes are of two kinds, and a new
//! root repeats what others say.

use umbra_paging::{GuestEntry, Level, bits};

use super::View;
use crate::format::{Role, ShadowEntry, ShadowKey, TableFormat, Wp};
use crate::tables::List;
use crate::{Backing, Env};

/// Bits 52 to 62, which PAE paging reserves.
const PAE_RESERVED: u64 = (1 << 63) - (1 << 52);

impl<E: Env> View<'_, E> {
    /// The shadow entry for an entry of a table whose writes are seen, and the list that it belongs
    /// to, in the plain cases: not present, or, with CR0.WP set, not accessed, a page of memory
    /// whose guest rights can all be given, or a table. In others `None`; then [`View::target`]
    /// knows. (The auditor compares with that, too.)
    #[inline(always)]
    pub(crate) fn plain(
        self,
        role: Role,
        guest: GuestEntry,
    ) -> Option<(ShadowEntry, Option<List>)> {
        const KEPT: u64 = bits::W | bits::U | bits::G | bits::NX;
        let raw = guest.raw();
        if raw & bits::P == 0 {
            return Some((self.basis.tables.encodings().not_present_entry(), None));
        }
        let Role::Guest { level, format, nxe, wp: Wp::On } = role else { return None };
        if level != Level::L1 {
            return self.plain_link(level, format, nxe, guest);
        }
        if raw & bits::A == 0 {
            // Whatever else it says: all entries of a process that was just forked are so.
            return Some((self.basis.tables.encodings().trap_entry(), None));
        }
        let reserved = self.basis.config.features.address_reserved()
            | if nxe { 0 } else { bits::NX }
            | if format == TableFormat::LONG4 { 0 } else { PAE_RESERVED };
        // D must be set before W is given.
        let clean = raw & (bits::W | bits::D) == bits::W;
        if raw & reserved != 0 || clean {
            return None;
        }
        let gfn = guest.frame();
        match self.env.backing(gfn) {
            Backing::Ram { hfn, writable: true }
                if raw & bits::W == 0 || !self.basis.guest.is_tracked(gfn) =>
            {
                let new = raw & KEPT | bits::P | bits::A | bits::D | hfn.base().raw();
                Some((ShadowEntry::new(new), Some(List::Gfn(gfn.raw() as u32))))
            }
            _ => None,
        }
    }

    /// The same for a present entry of a table of a higher level. Half of what a new root says is
    /// about the kernel's tables.
    fn plain_link(
        self,
        level: Level,
        format: TableFormat,
        nxe: bool,
        guest: GuestEntry,
    ) -> Option<(ShadowEntry, Option<List>)> {
        if format.is_legacy() {
            // Which part of the table below belongs here depends on the entry's index.
            return None;
        }
        let gfn = guest.frame();
        let odd = guest.is_leaf(level)
            || format.reserved(guest, level, nxe, &self.basis.config.features) != 0
            || !self.basis.guest.can_hold_table(self.env, gfn);
        if odd || self.basis.guest.has_unsync() {
            return None;
        }
        let key =
            ShadowKey { role: Role::Guest { level: level.below()?, format, nxe, wp: Wp::On }, gfn };
        let found = self.basis.guest.find(&self.basis.tables, key);
        match found.filter(|_| guest.accessed() && !self.basis.guest.is_detached(key)) {
            Some(child) => {
                let entry = ShadowEntry::link(self.env.hpa(child), Wp::On.link_rights(guest, nxe));
                Some((entry, Some(List::Parents(child))))
            }
            None => Some((self.basis.tables.encodings().trap_entry(), None)),
        }
    }
}
