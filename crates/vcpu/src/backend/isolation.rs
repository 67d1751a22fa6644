//! Runs of a single instruction in an address space of its own.

use crate::isolation::{Page, Space};

/// A way for one instruction that nothing else of the guest can disturb.
pub trait Isolation {
    /// From now on the guest runs in this address space: no traps and no interrupts come, and every
    /// exception and CPUID exit.
    fn isolate<P: Page>(&mut self, space: &Space<P>);
    /// Undoes that; RIP, general-purpose registers and flags stay, but for RFLAGS.TF.
    fn end_isolation(&mut self);
}
