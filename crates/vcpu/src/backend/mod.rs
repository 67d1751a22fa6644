//! The interface to a vendor's virtualization extension: what it does for one virtual CPU.
//!
//! Each vendor has one type that implements [`Backend`], and with it one trait per subject:
//! [`Registers`], [`ControlRegisters`], [`AddressSpace`], [`Retirement`], [`Events`] and
//! [`Isolation`]. Nobody else asks which vendor it is. Where CPUs differ in what they can do,
//! [`Capabilities`] says so, and the shared code does the rest.

mod address_space;
mod controls;
mod events;
mod exit;
mod isolation;
mod registers;
mod retirement;

use alloc::string::String;

pub use address_space::{AddressSpace, Cr3Target};
pub use controls::ControlRegisters;
pub use events::{Events, Windows};
pub use exit::{Exit, Refusal};
pub use isolation::Isolation;
pub use registers::{CodeMode, Registers, rflags};
pub use retirement::Retirement;

/// One virtual CPU in hardware.
pub trait Backend:
    Registers + ControlRegisters + AddressSpace + Retirement + Events + Isolation
{
    /// What this CPU's extension can do beyond the least that every backend does.
    fn capabilities(&self) -> Capabilities;

    /// The extension and what of it is in use, for the user to read.
    fn describe(&self) -> String;

    /// Runs the guest until it leaves.
    ///
    /// # Errors
    /// The hardware refuses to run it.
    fn enter(&mut self) -> Result<Exit, Refusal>;
}

/// What an extension can do beyond the least that every backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The guest can have RDTSCP and IA32_TSC_AUX.
    pub rdtscp: bool,
    /// The guest can have INVPCID.
    pub invpcid: bool,
    /// Page faults exit by their error code, as any [`umbra_mmu::GuestFaults`] wants it. Without it
    /// only [`umbra_mmu::GuestFaults::Trap`] is possible: all page faults exit.
    pub fault_filter: bool,
    /// The guest can be allowed to read CR3 without an exit while the real one holds its value.
    pub cr3_reads: bool,
    /// How many values of CR3 the guest can be allowed to load without an exit; zero if its reads
    /// of CR3 cannot be allowed as well.
    pub cr3_targets: usize,
    /// INVLPG and INVPCID can be left to the CPU. Changes of CR4.PGE may exit even so.
    pub native_flushes: bool,
}
