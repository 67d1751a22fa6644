//! A real CPU, and what it has latched at its last VM entry.
//!
//! What a CPU enters the guest with it keeps until it exits: the page-fault filter, the CR3-target
//! values, which instructions exit, the control registers. On several CPUs another one may change
//! what they should be meanwhile. So a vCPU enters in three steps, as KVM's do (`IN_GUEST_MODE` and
//! requests): it asks the MMU what to enter with, publishes that it enters, and looks whether it
//! was asked to leave since it asked; then it asks again.

use arrayvec::ArrayVec;
use umbra_paging::{Cr3Value, Gfn};

use crate::hardware::{Control, Filter, PageFault, PagingUnit};
use crate::memory::PhysAddr;
use crate::registers::Registers;

/// What a CPU enters the guest with.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// How often vCPUs had been made to leave the guest when this was asked for.
    pub(super) epoch: u64,
    pub(super) control: Control,
    pub(super) filter: Filter,
    pub(super) flushes_exit: bool,
    pub(super) targets: Vec<Cr3Value>,
}

/// How far a CPU has come into the guest.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    /// It has left.
    Out,
    /// It knows what to enter with.
    Asked(Entry),
    /// It has published that it enters, and has not looked at the epoch yet.
    Published(Entry),
    /// It has looked at the epoch, and has not published that it enters: the wrong way round.
    Checked(Entry),
    /// It is in the guest.
    Inside(Entry),
}

/// In which order a CPU publishes that it enters, and looks whether it has to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// It publishes first: the only right way.
    PublishFirst,
    /// It looks first: who makes all vCPUs leave in between does not see it.
    CheckFirst,
    /// It does not look.
    NoCheck,
}

/// How an access ended.
pub(super) enum Attempt {
    /// It took place there.
    Done(ArrayVec<PhysAddr, 2>),
    /// The CPU delivered this fault.
    Delivered(PageFault),
    /// The CPU exited with this fault.
    Exits(PageFault),
}

pub(super) struct RealCpu {
    pub(super) unit: PagingUnit,
    /// Everything that is cached is dropped before the next instruction.
    pub(super) owed: bool,
    pub(super) presence: Presence,
    /// The guest's registers.
    pub(super) registers: Registers,
    /// The root that it has loaded without an exit, until the MMU is told.
    pub(super) loaded: Option<Gfn>,
}

impl RealCpu {
    pub(super) fn new(unit: PagingUnit, registers: Registers) -> RealCpu {
        RealCpu { unit, owed: false, presence: Presence::Out, registers, loaded: None }
    }

    pub(super) fn pay_flush(&mut self) {
        if std::mem::take(&mut self.owed) {
            self.unit.caches_mut().clear();
        }
    }

    pub(super) fn is_out(&self) -> bool {
        matches!(self.presence, Presence::Out)
    }

    /// What the CPU is in the guest with, or may still enter it with while the epoch is this.
    pub(super) fn entry(&self, epoch: u64) -> Option<&Entry> {
        match &self.presence {
            Presence::Out => None,
            Presence::Asked(entry) | Presence::Published(entry) | Presence::Checked(entry) => {
                (entry.epoch == epoch).then_some(entry)
            }
            Presence::Inside(entry) => Some(entry),
        }
    }

    /// Makes it leave the guest, if it has published that it enters.
    pub(super) fn kick(&mut self) {
        if matches!(self.presence, Presence::Published(_) | Presence::Inside(_)) {
            self.presence = Presence::Out;
        }
    }

    /// One step on its way into the guest. False if it is there, or has to ask the MMU first.
    pub(super) fn proceed(&mut self, protocol: Protocol, epoch: u64) -> bool {
        let now = std::mem::replace(&mut self.presence, Presence::Out);
        self.presence = match (now, protocol) {
            (Presence::Asked(entry), Protocol::PublishFirst | Protocol::NoCheck) => {
                Presence::Published(entry)
            }
            (Presence::Asked(entry), Protocol::CheckFirst) if entry.epoch == epoch => {
                Presence::Checked(entry)
            }
            (Presence::Published(entry), Protocol::PublishFirst) if entry.epoch == epoch => {
                Presence::Inside(entry)
            }
            (Presence::Published(entry), Protocol::NoCheck) | (Presence::Checked(entry), _) => {
                Presence::Inside(entry)
            }
            (Presence::Asked(_) | Presence::Published(_), _) => return true,
            (there @ (Presence::Out | Presence::Inside(_)), _) => {
                self.presence = there;
                return false;
            }
        };
        if matches!(self.presence, Presence::Inside(_)) {
            self.pay_flush();
        }
        true
    }
}
