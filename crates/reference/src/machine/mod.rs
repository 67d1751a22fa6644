//! Machines that programs run on: the bare one, and any that stands on a shadow MMU.

mod bare;
mod shadow;

use std::rc::Rc;

use umbra_paging::Access;

pub use bare::Bare;
pub use shadow::{Delivery, Shadow, ShadowConfig};

use crate::coverage::{Coverage, Moment};
use crate::hardware::Temper;
use crate::memory::{PhysAddr, Ram};
use crate::oracle::{Change, Observed, Piece};
use crate::program::HostEvent;
use crate::registers::{Cpu, Invalidation, Privileged, Registers};
use crate::universe::Universe;

/// How a machine is when a program begins.
pub struct Start {
    /// The CPU that the guest sees.
    pub model: Cpu,
    /// How many of them.
    pub cpus: usize,
    /// What all of them have in their registers.
    pub registers: Registers,
    /// Guest memory.
    pub memory: Ram,
    /// The linear pages that will be accessed.
    pub universe: Rc<Universe>,
    /// How hostile the hardware's caches are.
    pub temper: Temper,
    /// Seeds every random choice.
    pub seed: u64,
}

/// The machine did something that no machine may do, whatever the guest sees of it: made no progress, let the
/// guest at memory that is not its own, or found its invariants broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

/// A machine with virtual CPUs that execute one step of a program at a time.
pub trait Machine {
    /// One of its CPUs accesses memory: one or two pieces, at most 8 bytes in all, each within a page.
    ///
    /// # Errors
    /// See [`Broken`].
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken>;

    /// One of its CPUs executes a privileged instruction. `after` are the registers that it leaves, and
    /// `invalidation` what it must invalidate.
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

    /// A device or the hypervisor writes guest memory, within a page.
    ///
    /// # Errors
    /// See [`Broken`].
    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken>;

    /// The host does something. Machines without one ignore it.
    ///
    /// # Errors
    /// See [`Broken`].
    fn host(&mut self, event: HostEvent) -> Result<(), Broken>;

    /// Lets the CPUs speculate.
    fn speculate(&mut self);

    /// The words of guest memory (by guest-physical address) that changed since the last call.
    ///
    /// # Errors
    /// Memory changed that is not the guest's.
    fn take_changes(&mut self) -> Result<Vec<Change>, Broken>;

    /// Checks what can be checked from inside. `full` asks for everything rather than what changed.
    ///
    /// # Errors
    /// See [`Broken`].
    fn audit(&mut self, full: bool) -> Result<(), Broken>;

    /// What happened inside since the last call. Machines that do not say have nothing to say.
    fn take_moment(&mut self) -> Moment {
        Moment::default()
    }

    /// Adds what the machine counted over its whole life.
    fn count(&self, coverage: &mut Coverage);
}
