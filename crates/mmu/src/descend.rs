//! Tables linked ahead of their use: those of an address space that has just come into use.
//!
//! What a new process touches first it touches in a few places, each in page tables of its own. So when the first of them
//! is linked into a root, what else the root leads to is linked, too, as far as it is little. (Only in the lower half: the
//! upper one is the kernel's, and in use already. Not as soon as the root is loaded: most of what the kernel has yet to
//! write there it writes before it uses any.)

use umbra_paging::{ENTRIES, Level};

use crate::derive::Target;
use crate::format::Role;
use crate::policy::WritePolicy;
use crate::tables::GROUP;
use crate::tables::slots;
use crate::{Env, Mmu};

/// Tables that are linked ahead in one exit.
const MAX_TABLES: u32 = 12;

impl<P: WritePolicy> Mmu<P> {
    /// Links tables below the root that the vCPU runs on.
    pub(crate) fn link_ahead(&mut self, env: &mut impl Env, root: u32) {
        let is_table = matches!(self.tables.source(root).role, Role::Guest { .. });
        // Nothing is reclaimed for a guess.
        let room = self.tables.pool().live() + 2 * MAX_TABLES <= self.tables.pool().count();
        if is_table && room && self.config.ahead && !self.guest.has_loose() {
            let mut left = MAX_TABLES;
            self.link_below(env, root, ENTRIES / 2, &mut left);
        }
    }

    /// Links the tables that the first entries of a page reference, and what is below those that were not linked before.
    /// False if there is no more to be done.
    fn link_below(&mut self, env: &mut impl Env, frame: u32, entries: usize, left: &mut u32) -> bool {
        let page = self.tables.pool().id(frame);
        let look = self.tables.encodings().look();
        let mut groups = self.tables.pool().busy(frame) & (u64::MAX >> (64 - entries / GROUP));
        while let Some((group, pending)) = self.tables.next_of(env, frame, &mut groups, |entry| entry == look)
        {
            for slot in slots(frame, group, pending) {
                let mut paid = false;
                if let Target::Missing(source) = self.view(env).target(slot, false) {
                    paid = true;
                    if *left == 0 || !matches!(source.role, Role::Guest { .. }) {
                        return false;
                    }
                    *left -= 1;
                    self.provide(env, source);
                }
                // What was provided may have taken the place of this page: a table can have several roles.
                if self.tables.pool().frame_of(page).is_none() {
                    return false;
                }
                self.entries(env).refresh_now(slot);
                let Some(child) = self.tables.child(env, slot) else { continue };
                let role = self.tables.source(child).role;
                let deeper = matches!(role, Role::Guest { level, .. } if level != Level::L1);
                // What was there already costs as much to look through.
                if deeper && !paid {
                    if *left == 0 {
                        return false;
                    }
                    *left -= 1;
                }
                if deeper
                    && !(self.link_below(env, child, ENTRIES, left)
                        && self.tables.pool().frame_of(page).is_some())
                {
                    return false;
                }
            }
        }
        true
    }
}
