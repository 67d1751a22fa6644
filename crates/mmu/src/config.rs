//! How an MMU is set up, what it counts and what it answers.

use core::fmt;

use umbra_paging::{Features, Gpa, GuestFault, Hpa};

use crate::{Encodings, Event};

/// What is to become of page faults: which of them the CPU must deliver to the guest by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFaults {
    /// None: every page fault exits.
    Trap,
    /// Those with P = 0: shadow entries separate the guest's not-present faults from host faults.
    Present,
    /// Those of user mode without RSVD: also the guest's protection faults, as long as no shadow entry that user mode
    /// can use has fewer rights than the guest's (I4).
    User,
}

/// Which of the filters that let guest faults through is chosen. [`Encodings::not_present`] rules out all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilterPolicy {
    /// [`GuestFaults::Present`].
    Present,
    /// [`GuestFaults::User`] whenever that is right.
    User,
    /// The one that would have spared the guest more exits of late.
    #[default]
    Auto,
}

/// The constants of an MMU.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The CPU that the guest sees.
    pub features: Features,
    /// How Pending entries look. [`Encodings::reserved`], once tested on the real CPU, if guest faults may go around the
    /// hypervisor, [`Encodings::not_present`] for [`GuestFaults::Trap`].
    pub encodings: Encodings,
    /// Which page faults may go straight to the guest, if the encodings allow any to do so.
    pub filter: FilterPolicy,
    /// How many roots each vCPU may load without an exit, beside its current one: see [`Mmu::offer_root`]. Zero if CR3
    /// loads all exit.
    ///
    /// [`Mmu::offer_root`]: crate::Mmu::offer_root
    pub loadable_roots: usize,
    /// Whether a table's translations are all made when it is built or attached, and not one by one as they are used:
    /// there is no reason to switch it off but to see what it is worth.
    pub eager: bool,
    /// Whether the tables of an address space that comes into use are linked before they are used: saves an exit for each
    /// that is, and costs time for each that is not.
    pub ahead: bool,
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
    /// Guest tables detached.
    pub detached: u64,
    /// Guest tables attached again.
    pub attached: u64,
    /// Roots moved to where the guest's CR3 points, and back.
    pub roots_moved: u64,
    /// Changes between [`GuestFaults::Present`] and [`GuestFaults::User`].
    pub filter_switches: u64,
}

impl Counters {
    pub(crate) fn count(&mut self, event: Event) {
        match event {
            Event::Built(_) => self.built += 1,
            Event::Zapped(_) => self.zapped += 1,
            Event::Reclaimed => self.reclaimed += 1,
            Event::Split { .. } => self.splits += 1,
            Event::Flushed => self.flushes += 1,
            Event::Detached(_) => self.detached += 1,
            Event::Attached { .. } => self.attached += 1,
            Event::RootMoved(_) => self.roots_moved += 1,
            Event::Filter(_) => self.filter_switches += 1,
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
    /// A table was detached for a write to it: let the guest execute that again, it will not be seen.
    Detach,
    /// A shadow table was built, attached or linked.
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
    /// [`Mmu::write_guest`](crate::Mmu::write_guest). If that is not possible, give the frame up with
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
