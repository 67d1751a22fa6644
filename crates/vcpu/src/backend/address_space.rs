//! Which uses of the shadow tables exit, and flushes of what the CPU has cached of them.

use umbra_mmu::{GuestFaults, LoadableRoot, Tlb};
use umbra_paging::Cr3Value;

use crate::cr3_targets;

/// A value of CR3 that the guest may load without an exit: a loadable root, and its PCID and bit
/// 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr3Target(u64);

impl Cr3Target {
    /// `value`, if it names this root.
    pub fn new(root: LoadableRoot, value: u64) -> Option<Cr3Target> {
        let named = cr3_targets::root(value) == root.gfn().base().raw();
        let bits = Cr3Value::PCID | cr3_targets::NO_FLUSH;
        named.then_some(Cr3Target(root.gfn().base().raw() | value & bits))
    }

    /// The value.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// The guest's address space as the CPU translates it. At the start all page faults exit, and so do
/// all loads and reads of CR3 and all flushes.
pub trait AddressSpace {
    /// How the shadow MMU flushes what hardware has cached for this guest.
    type Tlb: Tlb;

    /// The flushes, for the MMU's environment.
    fn tlb(&self) -> Self::Tlb;

    /// The guest gets these of its page faults without an exit. All but [`GuestFaults::Trap`] need
    /// [`Capabilities::fault_filter`](super::Capabilities::fault_filter).
    fn set_guest_faults(&mut self, guest_faults: GuestFaults);

    /// The guest may load these values into CR3 without an exit, no others; and read CR3 if
    /// `reads`. There are no more than
    /// [`Capabilities::cr3_targets`](super::Capabilities::cr3_targets).
    fn set_cr3_targets(&mut self, targets: &[Cr3Target], reads: bool);

    /// Whether INVLPG, INVPCID and changes of CR4.PGE must exit. They may exit if not: see
    /// [`Capabilities::native_flushes`](super::Capabilities::native_flushes).
    fn set_flush_exits(&mut self, exit: bool);
}
