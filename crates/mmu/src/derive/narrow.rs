//! Narrow entries: Mapped, with fewer rights for user mode than the guest's own (I4).
//!
//! A Mapped entry that lacks W where the guest's entry has it, on a page of user mode, is *narrow*.
//! The MMU must see the first write to a clean page, to set D, and writes to tracked or read-only
//! memory. A large page of user mode that is mapped by smaller ones, and that the guest may write,
//! counts by its link.

use super::{Target, View};
use crate::format::{Held, Role, Wp};
use crate::tables::Slot;
use crate::{Env, FilterPolicy, ShadowFrame};

impl<E: Env> View<'_, E> {
    /// Whether the entry at `slot`, as it is, is narrow.
    pub(crate) fn is_narrow(self, slot: Slot) -> bool {
        let entry = self.read(slot);
        if !self.basis.tables.is_mapped(entry) || !entry.rights().user {
            return false;
        }
        match self.child(slot) {
            Some(child) => self.is_narrow_link(slot, child),
            None => self.is_guests(slot) && entry.held() != Held::Nothing,
        }
    }

    /// Whether the entry at `slot` would be narrow if it were this.
    pub(crate) fn would_be_narrow(self, slot: Slot, target: Target) -> bool {
        match target {
            _ if self.basis.config.filter == FilterPolicy::Present => false,
            Target::Page { rights, held, .. } => {
                rights.user && held != Held::Nothing && self.is_guests(slot)
            }
            Target::Link(child, _) => self.is_narrow_link(slot, child),
            _ => false,
        }
    }

    /// Whether the page is one whose narrow entries matter: of a guest table, with CR0.WP set.
    pub(crate) fn is_guests(self, slot: Slot) -> bool {
        matches!(self.basis.tables.key(slot.frame()).role, Role::Guest { wp: Wp::On, .. })
    }

    /// Whether this links a large page of user mode, which the guest may write, to an identity
    /// page. Writes to any frame below may be held back, now or since long ago: the right is given
    /// back eagerly to some mappings only.
    fn is_narrow_link(self, slot: Slot, child: ShadowFrame) -> bool {
        matches!(self.basis.tables.key(child).role, Role::Direct { .. })
            && self.is_guests(slot)
            && self.guest_entry(slot).is_some_and(|entry| entry.user() && entry.writable())
    }
}
