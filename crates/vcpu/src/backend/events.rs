//! Delivery of events to the guest.

use crate::event::Event;

/// Which events wait until the guest can take them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Exit as soon as the guest can take interrupts.
    pub interrupt: bool,
    /// Exit as soon as the guest can take NMIs.
    pub nmi: bool,
}

/// Injection, and when it is possible.
pub trait Events {
    /// The event whose delivery the last exit interrupted, to be delivered again.
    ///
    /// A software event may be left out where the CPU does not tell the length of its instruction:
    /// RIP is still at that instruction, which then runs again.
    fn interrupted_event(&self) -> Option<Event>;
    /// Delivers an event at the next entry.
    fn inject(&mut self, event: Event);
    /// Whether the guest could take an interrupt at the next instruction. A debug trap comes before
    /// it.
    fn interruptible(&self) -> bool;
    /// Whether the guest could take an NMI at the next instruction. A debug trap comes before it.
    fn nmi_ready(&self) -> bool;
    /// Blocks NMIs, as the delivery of one does, or ends that.
    fn block_nmis(&mut self, blocked: bool);
    /// Asks for exits when pending events can be taken.
    fn set_windows(&mut self, windows: Windows);
}
