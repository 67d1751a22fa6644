//! The gpa->hpa map is about to change.

use core::ops::Range;

use umbra_paging::Gfn;

use super::Cx;
use crate::Env;
use crate::guest::REGION;
use crate::tables::List;

impl<E: Env> Cx<'_, E> {
    /// Makes sure that nothing maps, or is built from, these guest frames.
    pub(crate) fn revoke(&mut self, gfns: Range<Gfn>) {
        let end = gfns.end.min(self.env.end());
        let mut gfn = gfns.start;
        while gfn < end {
            self.zap_tables(gfn);
            self.move_roots_home(gfn);
            self.shadow.basis.tables_mut().look_all(self.env, List::Gfn(gfn.raw() as u32));
            self.shadow
                .basis
                .tables_mut()
                .look_all(self.env, List::Region((gfn.raw() / REGION) as u32));
            gfn = gfn + 1;
        }
        // Identity pages and MMIO entries may say "no memory" where there is some now.
        if self.shadow.guest_mut().next_generation() {
            // No MMIO entry of the first round may count as current in the second.
            self.zap_all();
        }
        for gfn in gfns.start.raw()..end.raw() {
            self.shadow.guest_mut().forget_backing(Gfn::new(gfn));
        }
        self.flush();
    }
}
