//! The one door through which the hypervisor itself writes guest memory, so that shadows follow.

use umbra_paging::{Gpa, PAGE_SIZE};

use crate::format::Role;
use crate::tables::PageId;
use crate::{Env, Mmu};

impl<P> Mmu<P> {
    /// Writes guest memory: for emulated instructions, and for whatever a device model stores. Bytes that go
    /// to no memory, or to memory that is not writable, are dropped. May cross pages.
    pub fn write_guest(&mut self, env: &mut impl Env, gpa: Gpa, bytes: &[u8]) {
        let (mut gpa, mut bytes) = (gpa, bytes);
        while !bytes.is_empty() {
            let room = (PAGE_SIZE - gpa.page_offset()) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.write_in_page(env, gpa, now);
            bytes = rest;
            gpa = Gpa::new(gpa.raw().wrapping_add(now.len() as u64));
        }
    }

    fn write_in_page(&mut self, env: &mut impl Env, gpa: Gpa, bytes: &[u8]) {
        if let Some(child) = self.entries(env).write(gpa, bytes) {
            self.let_go(env, child);
        }
    }

    /// Detaches a guest table that nothing leads to any more: most likely it is about to be freed, and what it is used for
    /// next need not exit.
    fn let_go(&mut self, env: &mut impl Env, child: PageId) {
        let Some(frame) = self.tables.pool().frame_of(child) else { return };
        let gfn = self.tables.source(frame).gfn;
        let dead =
            matches!(self.tables.source(frame).role, Role::Guest { .. }) && !self.view(env).is_reachable(gfn);
        if dead && self.can_detach(gfn) && !self.guest.has_loose() {
            self.detach(env, &[gfn]);
            self.age_shadows(gfn);
        }
    }
}
