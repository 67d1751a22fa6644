//! How an MMU is set up, what it counts and what it answers.

use core::fmt;

use umbra_paging::{Features, Gpa, GuestFault, Hpa};

use crate::{Encodings, Event};

/// What is to become of page faults that the guest's own tables raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFaults {
    /// Not-present faults go straight to the guest: shadow entries separate them from host faults.
    Bypass,
    /// Every page fault exits.
    Trap,
}

/// The constants of an MMU.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The CPU that the guest sees.
    pub features: Features,
    /// How Pending entries look. [`Encodings::reserved`], once tested on the real CPU, for
    /// [`GuestFaults::Bypass`], [`Encodings::not_present`] for [`GuestFaults::Trap`].
    pub encodings: Encodings,
    /// Virtual CPUs.
    pub vcpus: usize,
    /// Whether [`Mmu::audit_changed`](crate::Mmu::audit_changed) will be called: keeps a log of changed entries.
    pub log_changes: bool,
}

/// The fewest shadow frames that one vCPU needs: the tables that one instruction can touch (SDM vol. 1: at
/// most a page-crossing instruction, two page-crossing operands, and an event's descriptors and stack), each
/// with its way down from the root.
pub const MIN_FRAMES_PER_VCPU: u32 = 48;

/// Why an MMU cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Fewer shadow frames than [`MIN_FRAMES_PER_VCPU`] per vCPU: (there are, needed).
    TooFewFrames(u32, u32),
    /// More shadow frames, or more guest memory, than the reverse map can number.
    TooLarge,
    /// A shadow frame at or above 4 GiB: PAE roots must lie below (CR3 has 32 bits outside long mode).
    FrameAbove4G(Hpa),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::TooFewFrames(have, need) => {
                write!(f, "{have} shadow frames are too few: at least {need} are needed")
            }
            ConfigError::TooLarge => {
                f.write_str("at most 2^20 shadow frames and 4 TiB of guest memory are supported")
            }
            ConfigError::FrameAbove4G(hpa) => write!(f, "the shadow frame at {hpa:#x} lies above 4 GiB"),
        }
    }
}

impl core::error::Error for ConfigError {}

/// What the MMU did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Shadow pages built.
    pub built: u64,
    /// Shadow pages zapped, for whatever reason.
    pub zapped: u64,
    /// Of these, zapped to make room.
    pub reclaimed: u64,
    /// Large guest pages that had to be mapped by smaller ones.
    pub splits: u64,
    /// Full TLB flushes.
    pub flushes: u64,
}

impl Counters {
    pub(crate) fn count(&mut self, event: Event) {
        match event {
            Event::Built(_) => self.built += 1,
            Event::Zapped(_) => self.zapped += 1,
            Event::Reclaimed => self.reclaimed += 1,
            Event::Split { .. } => self.splits += 1,
            Event::Flushed => self.flushes += 1,
            Event::Loosened(_) | Event::Tightened(_) => (),
        }
    }
}

/// The paging format of a shadow root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootFormat {
    /// A PML4 table of 4-level paging.
    Long4,
    /// Four PAE PDPTEs, 32-byte aligned: EFER.LMA must be clear.
    Pae,
}

/// What the real CR3 must hold (the PCID aside) when a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Where the root structure lies.
    pub hpa: Hpa,
    /// Its format.
    pub format: RootFormat,
}

/// The work that a host fault made necessary. Where several apply, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// A shadow table was built or linked.
    Link,
    /// A guest dirty bit was set.
    Dirty,
    /// A guest accessed bit was set.
    Accessed,
    /// A shadow leaf entry was installed, or found installed already.
    Install,
}

/// What a page-fault exit turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// A host fault, dealt with: let the guest execute the instruction again.
    Resume(Work),
    /// A guest fault: inject it.
    Guest(GuestFault),
    /// The access goes to no memory, or it writes memory that is not writable: emulate the instruction.
    Mmio {
        /// Where it goes.
        gpa: Gpa,
    },
    /// The access writes a tracked guest page table: emulate the instruction, writing through
    /// [`Mmu::write_guest`](crate::Mmu::write_guest), or give the frame up with
    /// [`Mmu::release`](crate::Mmu::release) and let the guest execute it again.
    TableWrite {
        /// Where it goes.
        gpa: Gpa,
    },
    /// An access that the guest's tables allow, but that no shadow entry can allow: a supervisor write that
    /// only CR0.WP = 0 permits, where allowing it would allow more, or a walk through tables that are no
    /// memory. Emulate the instruction.
    Override {
        /// Where it goes.
        gpa: Gpa,
    },
}
