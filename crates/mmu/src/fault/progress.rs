//! Progress (I6): an instruction that detaches tables gets further.

use umbra_paging::{Gfn, Gva};

/// How many detaches by one instruction are remembered: more tables than one instruction can write
/// to.
const REMEMBERED: usize = 8;

/// The latest detaches on a vCPU, all by one instruction, since which no other has faulted there.
///
/// A detached table may map the very instruction, stack or operand of the write: then it is
/// attached before the write is repeated, which would exit again, and so on. So what the same
/// instruction has detached is not detached again before another one has faulted, which shows that
/// the guest got further (I6).
#[derive(Default)]
pub(crate) struct Detaches {
    rip: u64,
    gfns: [Option<Gfn>; REMEMBERED],
    next: usize,
}

impl Detaches {
    pub(crate) fn contains(&self, gfn: Gfn) -> bool {
        self.gfns.contains(&Some(gfn))
    }

    /// An instruction has faulted.
    pub(crate) fn fault(&mut self, rip: Gva) {
        if self.rip != rip.raw() {
            *self = Detaches { rip: rip.raw(), ..Detaches::default() };
        }
    }

    pub(crate) fn push(&mut self, gfn: Gfn) {
        self.gfns[self.next % REMEMBERED] = Some(gfn);
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_detaches_of_one_instruction_are_remembered() {
        let mut detaches = Detaches::default();
        detaches.fault(Gva::new(1));
        (0..=REMEMBERED as u64).for_each(|n| detaches.push(Gfn::new(n)));
        detaches.fault(Gva::new(1));
        assert!((1..=REMEMBERED as u64).all(|n| detaches.contains(Gfn::new(n))));
        assert!(!detaches.contains(Gfn::new(0)));
        detaches.fault(Gva::new(2));
        assert!((0..=REMEMBERED as u64).all(|n| !detaches.contains(Gfn::new(n))));
    }
}
