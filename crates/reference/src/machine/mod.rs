//! Machines that programs run on: the bare one, and any that stands on a shadow MMU.

mod bare;
mod shadow;

use std::fmt;
use std::rc::Rc;

use arrayvec::ArrayVec;
use umbra_paging::Access;

pub use bare::Bare;
pub use shadow::{Delivery, Protocol, Shadow, ShadowConfig};

use crate::coverage::{Coverage, Moment};
use crate::hardware::Temper;
use crate::memory::{PhysAddr, Ram};
use crate::oracle::{Change, Observed, Piece};
use crate::program::HostEvent;
use crate::registers::{Cpu, Invalidation, Privileged, Registers};
use crate::universe::Universe;

/// How a machine is when a program begins: with nothing cached.
pub struct Start {
    /// The CPU that the guest sees.
    pub model: Cpu,
    /// How many of them.
    pub cpus: usize,
    /// What all of them have in their registers.
    pub registers: Registers,
    /// Guest memory, in [pieces](Ram::pieces): [`END`](crate::universe::END) frames, of which
    /// [`HOLE`](crate::universe::HOLE) is no memory, and perhaps
    /// [`HIGH_FRAMES`](crate::universe::HIGH_FRAMES). Only the frames in
    /// [`HOT`](crate::universe::HOT) and [`HIGH`](crate::universe::HIGH) are not all zero.
    pub memory: Ram,
    /// The linear pages that will be accessed.
    pub universe: Rc<Universe>,
    /// How hostile the hardware's caches are.
    pub temper: Temper,
    /// Seeds every random choice.
    pub seed: u64,
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start")
            .field("model", &self.model)
            .field("cpus", &self.cpus)
            .field("registers", &self.registers)
            .field("temper", &self.temper)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// The machine did something that no machine may do, whatever the guest sees of it: made no
/// progress, let the guest at memory that is not its own, or found its invariants broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

/// What a CPU does while another one is at something.
#[derive(Clone, Debug)]
pub enum Deed {
    /// As in [`Machine::access`].
    Access {
        /// How it goes about it.
        access: Access,
        /// Where.
        pieces: ArrayVec<Piece, 2>,
    },
    /// As in [`Machine::execute`].
    Execute {
        /// Which instruction.
        instruction: Privileged,
        /// The registers that it leaves.
        after: Registers,
        /// What it must invalidate.
        invalidation: Invalidation,
    },
}

/// A step that another CPU may take while the next one is under way.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Tells it from the others.
    pub number: usize,
    /// The CPU.
    pub cpu: usize,
    /// What it does.
    pub deed: Deed,
}

/// When other CPUs get further while a step is under way. What they do must not need the
/// hypervisor: then it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preempt {
    /// The moments.
    pub when: When,
    /// The other CPUs have not entered the guest when the step begins: they have only asked with
    /// what to.
    pub entering: bool,
}

/// The moments at which other CPUs get further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// At the points of these numbers, counted from 1; once for each time that a number is named.
    At(Vec<u32>),
    /// At one in so many points, by chance.
    Chance {
        /// Seeds it.
        seed: u64,
        /// How rare it is.
        one_in: u32,
    },
}

/// A planned step that was taken.
#[derive(Clone, Debug)]
pub struct Interleaved {
    /// Which.
    pub number: usize,
    /// What the step that was under way had changed by then, and has not been told yet.
    pub before: Vec<Change>,
    /// What the guest observed of it, if it was an access.
    pub observed: Option<Observed>,
    /// What it changed itself.
    pub changes: Vec<Change>,
}

/// A machine with virtual CPUs that execute one step of a program at a time. The
/// [kit](crate::conformance) runs programs on it.
///
/// Each call is one step, or part of one, and has taken effect when it returns. After every step
/// come [`audit`](Machine::audit), [`speculate`](Machine::speculate) and
/// [`take_changes`](Machine::take_changes).
pub trait Machine {
    /// One of its CPUs accesses memory: one or two pieces, at most 8 bytes in all, each within a
    /// page. Either all of them take place, or the access faults and nothing is written but
    /// accessed and dirty bits.
    ///
    /// # Errors
    /// See [`Broken`].
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken>;

    /// One of its CPUs executes a privileged instruction. `after` are the registers that it leaves,
    /// and `invalidation` what it must invalidate of what the *guest* may have cached, on this CPU;
    /// whatever a hypervisor must flush for its own reasons is its own affair.
    ///
    /// # Errors
    /// See [`Broken`].
    fn execute(
        &mut self,
        cpu: usize,
        instruction: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<(), Broken>;

    /// A device writes guest memory, within a page. It may write page tables.
    ///
    /// # Errors
    /// See [`Broken`].
    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken>;

    /// The host does something that the guest must not notice. By default nothing happens.
    ///
    /// # Errors
    /// See [`Broken`].
    fn host(&mut self, event: HostEvent) -> Result<(), Broken> {
        let _ = event;
        Ok(())
    }

    /// While the next step is under way other CPUs may take these, in their order on each CPU. A
    /// machine whose CPUs take turns leaves this out.
    fn race(&mut self, preempt: Preempt, steps: Vec<Planned>) {
        let _ = (preempt, steps);
    }

    /// Which of the planned steps were taken, in order, and how many points there were at which
    /// some could have been. The others are still to be taken. Asked for after each call that
    /// [`Machine::race`] came before.
    ///
    /// # Errors
    /// See [`Broken`].
    fn take_interleaved(&mut self) -> Result<(Vec<Interleaved>, u32), Broken> {
        Ok((Vec::new(), 0))
    }

    /// Lets the CPUs speculate: call
    /// [`PagingUnit::speculate`](crate::hardware::PagingUnit::speculate) for each, as it would be
    /// once the guest runs again. A machine that leaves this out is tested on hardware which caches
    /// only what was accessed.
    fn speculate(&mut self);

    /// The words of guest memory (by guest-physical address) that changed since the last call: by
    /// accesses, by accessed and dirty bits, by devices. [`Ram`] keeps such a journal.
    ///
    /// # Errors
    /// Memory changed that is not the guest's.
    fn take_changes(&mut self) -> Result<Vec<Change>, Broken>;

    /// Checks what can be checked from inside. `full` asks for everything rather than what changed.
    /// By default nothing is checked.
    ///
    /// # Errors
    /// See [`Broken`].
    fn audit(&mut self, full: bool) -> Result<(), Broken> {
        let _ = full;
        Ok(())
    }

    /// What happened inside since the last call. Machines that do not say have nothing to say.
    fn take_moment(&mut self) -> Moment {
        Moment::default()
    }

    /// Adds what the machine counted over its whole life. By default nothing.
    fn count(&self, coverage: &mut Coverage) {
        let _ = coverage;
    }
}
