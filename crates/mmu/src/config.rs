//! How an MMU is set up.

use core::fmt;

use umbra_paging::{Features, Hpa};

use crate::Encodings;

/// What is to become of page faults: which of them the CPU must deliver to the guest by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFaults {
    /// None: every page fault exits.
    Trap,
    /// Those with P = 0: shadow entries separate the guest's not-present faults from host faults.
    Present,
    /// Those of user mode without RSVD: also the guest's protection faults, as long as no shadow
    /// entry that user mode can use has fewer rights than the guest's (I4).
    User,
}

/// Which of the filters that let guest faults through is chosen. [`Encodings::not_present`] rules
/// out all of them.
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
    /// The CPU that the guest sees. Its MAXPHYADDR is at most the real CPU's, which the encodings know.
    pub features: Features,
    /// How Pending entries look to the real CPU. [`Encodings::reserved`], once tested on the real CPU, if guest
    /// faults may go around the hypervisor, [`Encodings::not_present`] for [`GuestFaults::Trap`].
    pub encodings: Encodings,
    /// Which page faults may go straight to the guest, if the encodings allow any to do so.
    pub filter: FilterPolicy,
    /// How many roots each vCPU may load without an exit, beside its current one: see
    /// [`Mmu::offer_root`]. Zero if CR3 loads all exit.
    ///
    /// [`Mmu::offer_root`]: crate::Mmu::offer_root
    pub loadable_roots: usize,
    /// Whether a table's translations are all made when it is built or attached, and not one by one
    /// as they are used: there is no reason to switch it off but to see what it is worth.
    pub eager: bool,
    /// Whether the tables of an address space that comes into use are linked before they are used:
    /// saves an exit for each that is, and costs time for each that is not.
    pub ahead: bool,
    /// Virtual CPUs.
    pub vcpus: usize,
    /// Whether [`Mmu::audit_changed`](crate::Mmu::audit_changed) will be called: keeps a log of
    /// changed entries.
    pub log_changes: bool,
}

/// The fewest shadow frames that one vCPU needs: the tables that one instruction can touch (SDM
/// vol. 1: at most a page-crossing instruction, two page-crossing operands, and an event's
/// descriptors and stack), each with its way down from the root.
pub const MIN_FRAMES_PER_VCPU: u32 = 48;

/// Why an MMU cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Fewer shadow frames than [`MIN_FRAMES_PER_VCPU`] per vCPU: (there are, needed).
    TooFewFrames(u32, u32),
    /// More shadow frames, or more guest memory, than the reverse map can number.
    TooLarge,
    /// A shadow frame at or above 4 GiB: PAE roots must lie below (CR3 has 32 bits outside long
    /// mode).
    FrameAbove4G(Hpa),
    /// The guest's MAXPHYADDR is above the real CPU's: (guest, real). The real CPU would refuse
    /// addresses that the guest may use.
    WiderThanHost(u8, u8),
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
            ConfigError::WiderThanHost(guest, host) => write!(
                f,
                "the guest's MAXPHYADDR {guest} is above the real CPU's {host}: show the guest at most {host}"
            ),
            ConfigError::FrameAbove4G(hpa) => write!(f, "the shadow frame at {hpa:#x} lies above 4 GiB"),
        }
    }
}

impl core::error::Error for ConfigError {}
