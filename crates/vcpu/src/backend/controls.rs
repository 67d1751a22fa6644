//! Control and model-specific registers.

use umbra_mmu::{LoadableRoot, Root};
use umbra_paging::Gva;

use crate::control::Controls;

/// The guest's control registers and MSRs, as far as hardware keeps them.
pub trait ControlRegisters {
    /// CR0 as the guest reads it; it may have changed parts of it without an exit.
    fn cr0(&self) -> u64;
    /// CR2 as the guest reads it. A page fault that exits leaves it as it was.
    fn cr2(&self) -> u64;
    /// Sets CR2.
    fn set_cr2(&mut self, gva: Gva);
    /// The real CR3, which the guest may have loaded without an exit.
    fn cr3(&self) -> u64;
    /// CR4 as the guest reads it; it may have changed parts of it without an exit.
    fn cr4(&self) -> u64;
    /// Gives the guest new control registers, which run on the shadow `root`. It is loadable if the
    /// guest's own CR3 is the right one for it. What the guest reaches follows from these two
    /// types, which only the MMU makes.
    ///
    /// # Panics
    /// `loadable` is another root than that of `controls`.
    fn set_controls(&mut self, controls: &Controls, root: Root, loadable: Option<LoadableRoot>);

    /// Reads an MSR that hardware keeps for the guest; none if this is no such MSR.
    fn read_msr(&self, msr: u32) -> Option<u64>;
    /// Writes an MSR that hardware keeps for the guest; false if it is none or does not take the
    /// value.
    fn write_msr(&mut self, msr: u32, value: u64) -> bool;
    /// Sets an extended control register to a value that was checked.
    fn set_xcr0(&mut self, value: u64);
    /// From now on the guest's time-stamp counter is the machine's plus `offset`.
    fn set_tsc_offset(&mut self, offset: u64);
}
