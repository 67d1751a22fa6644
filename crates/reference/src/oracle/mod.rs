//! Which outcomes of an access bare hardware allows, by the guest's own tables and their history.
//!
//! The oracle keeps, for each prefix of its universe of linear addresses, everything that a CPU
//! *may* have cached since the last flush that would have dropped it. An access may then be decided
//! by a walk from the root now, by a walk below any of these structures, or by any of these
//! translations.

mod allowed;
mod possible;
mod raced;

use std::rc::Rc;

use umbra_paging::Gva;

pub use allowed::{Candidate, Observed, Piece};
pub use raced::{Open, Step};

use crate::hardware::{Control, PagingMode};
use crate::memory::{PhysAddr, PhysicalMemory, Ram};
use crate::registers::Invalidation;
use crate::universe::Universe;
use possible::Possible;

/// The judge of one guest: its memory and, for each CPU, what may be cached.
#[derive(Clone, Debug)]
pub struct Oracle {
    universe: Rc<Universe>,
    memory: Ram,
    cpus: Vec<(Control, Possible)>,
}

/// Takes out of what a CPU may have cached what a page fault at `gva` drops.
fn drop_faulted(universe: &Universe, control: &Control, possible: &mut Possible, gva: Gva) {
    if let Some(path) = universe.tree(&control.mode).path(gva) {
        possible.page_fault(control.pcid, path);
    }
}

/// Adds what a CPU may cache of memory as it is now.
fn learn(universe: &Universe, memory: &Ram, control: &Control, possible: &mut Possible) {
    if control.mode != PagingMode::Off {
        possible.learn(universe.tree(&control.mode), memory, control);
    }
}

/// A word of guest memory, and what the machine under test has there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where: a multiple of 8.
    pub at: PhysAddr,
    /// The new value.
    pub value: u64,
}

impl Oracle {
    /// A judge for CPUs in these states, with nothing cached before `memory` became what it is.
    pub fn new(universe: Rc<Universe>, memory: Ram, cpus: &[Control]) -> Oracle {
        let possible = Possible::new(&universe);
        let cpus = cpus.iter().map(|&control| (control, possible.clone())).collect();
        let mut oracle = Oracle { universe, memory, cpus };
        oracle.learn();
        oracle
    }

    /// The guest's memory as the oracle expects it.
    pub fn memory(&self) -> &Ram {
        &self.memory
    }

    /// The state of a CPU.
    pub fn control(&self, cpu: usize) -> &Control {
        &self.cpus[cpu].0
    }

    /// A CPU executed an instruction that left it in this state.
    pub fn executed(&mut self, cpu: usize, control: Control, invalidation: Invalidation) {
        let (state, possible) = &mut self.cpus[cpu];
        *state = control;
        let tree = self.universe.tree(&control.mode);
        let path = |gva: Gva| tree.path(gva).map(|path| &path[..]);
        match invalidation {
            Invalidation::Nothing => (),
            Invalidation::Page(gva) => {
                // A page outside the universe has no translations here, but the structures go all
                // the same.
                possible.invlpg(control.pcid, path(gva));
            }
            Invalidation::Context => possible.drop_pcid(control.pcid),
            Invalidation::Address(pcid, gva) => possible.drop_address(pcid, path(gva)),
            Invalidation::Pcid(pcid) => possible.drop_pcid(pcid),
            Invalidation::AllButGlobals => possible.drop_all_but_globals(),
            Invalidation::All => possible.clear(),
        }
        self.learn();
    }

    /// A page fault at `gva` was delivered: it invalidated what might make it recur.
    fn faulted(&mut self, cpu: usize, gva: Gva) {
        let (control, possible) = &mut self.cpus[cpu];
        drop_faulted(&self.universe, control, possible, gva);
        self.learn();
    }

    /// Adds what may be cached of memory as it is now. Idempotent; called after every change.
    fn learn(&mut self) {
        for (control, possible) in &mut self.cpus {
            learn(&self.universe, &self.memory, control, possible);
        }
    }

    /// Whether one frame is in use as a table at two levels, as far as any CPU may have cached.
    pub fn aliased_at_two_levels(&self) -> bool {
        self.cpus.iter().any(|(_, possible)| possible.aliased_at_two_levels())
    }

    /// A word as it is expected.
    pub fn expected(&self, at: PhysAddr) -> u64 {
        self.memory.read(at)
    }
}
