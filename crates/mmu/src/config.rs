//! How an MMU is set up.

use core::fmt;

use umbra_paging::{Features, Gfn, Hfn, Hpa, Pfec};

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

impl GuestFaults {
    /// What VMX must be told so that the right page faults exit. There are no other filters.
    ///
    /// ```
    /// use umbra_mmu::GuestFaults;
    /// use umbra_paging::Pfec;
    ///
    /// let filter = GuestFaults::Present.pfec_filter();
    /// assert!(filter.exits(Pfec::PRESENT | Pfec::WRITE), "a protection fault exits");
    /// assert!(!filter.exits(Pfec::WRITE | Pfec::USER), "a not-present fault is the guest's");
    /// ```
    pub const fn pfec_filter(self) -> PfecFilter {
        let none = Pfec::empty();
        match self {
            GuestFaults::Trap => PfecFilter { bitmap_bit: true, mask: none, matched: none },
            GuestFaults::Present => {
                PfecFilter { bitmap_bit: true, mask: Pfec::PRESENT, matched: Pfec::PRESENT }
            }
            GuestFaults::User => PfecFilter {
                bitmap_bit: false,
                mask: Pfec::USER.union(Pfec::RSVD),
                matched: Pfec::USER,
            },
        }
    }
}

/// Which page faults exit, by their error code (SDM, "Exceptions" in "Other Causes of VM Exits").
///
/// Those whose error code, as far as `mask` says, is `matched` exit if `bitmap_bit` is set; if it
/// is clear, all others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfecFilter {
    /// Bit 14 of the exception bitmap.
    pub bitmap_bit: bool,
    /// The page-fault error-code mask.
    pub mask: Pfec,
    /// The page-fault error-code match.
    pub matched: Pfec,
}

impl PfecFilter {
    /// Whether a page fault with this error code exits.
    pub const fn exits(self, code: Pfec) -> bool {
        (code.intersection(self.mask).bits() == self.matched.bits()) == self.bitmap_bit
    }
}

/// Which of the filters that let guest faults through is chosen. [`Encodings::not_present`] rules
/// out all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilterPolicy {
    /// [`GuestFaults::Present`].
    Present,
    /// [`GuestFaults::User`] whenever that is right.
    User,
    /// The one that would have saved the guest more exits of late.
    #[default]
    Auto,
}

/// The constants of an MMU.
///
/// ```
/// use umbra_mmu::{Config, Encodings};
/// use umbra_paging::Features;
///
/// // A guest that sees 36 physical address bits, on a CPU that has 40.
/// let encodings = Encodings::reserved(40).expect("reserved bits are left");
/// let mut config = Config::new(Features::new(36, false), encodings);
/// config.vcpus = 2;
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The CPU that the guest sees. Its MAXPHYADDR is at most the real CPU's, which the encodings
    /// know.
    pub features: Features,
    /// How Trapping entries look to the real CPU. [`Encodings::reserved`], once tested on the real
    /// CPU, if guest faults may go around the hypervisor, [`Encodings::not_present`] for
    /// [`GuestFaults::Trap`].
    pub encodings: Encodings,
    /// Which page faults may go straight to the guest, if the encodings allow any to do so.
    pub filter: FilterPolicy,
    /// How many roots each vCPU may have [loadable](crate::Mmu::allow_native_load), its current
    /// one among them. Zero if none is to be.
    pub loadable_roots: usize,
    /// Whether CR3 loads exit all the same, as on CPUs without CR3-target values. Loadable roots
    /// then serve so that the guest reads CR3 without an exit, and unsync tables do not withdraw
    /// them.
    pub cr3_loads_exit: bool,
    /// Whether a table's translations are all made when it is built or attached, and not one by one
    /// as they are used: there is no reason to switch it off but to see what it is worth.
    pub eager: bool,
    /// Whether the tables of an address space that comes into use are linked before they are used:
    /// saves an exit for each that is, and costs time for each that is not.
    pub prefetch_tables: bool,
    /// Whether A is set in entries that the guest is likely to write through next, where its write
    /// faults come entry after entry: each saves an exit.
    pub prefetch_accessed: bool,
    /// Whether an exit is told from the shadow alone where it can be: saves a walk of the guest's
    /// tables. There is no reason to switch it off but to see what it is worth.
    pub shadow_walk: bool,
    /// Virtual CPUs.
    pub vcpus: usize,
    /// Whether [`Mmu::audit_changed`](crate::Mmu::audit_changed) will be called: keeps a log of
    /// changed entries.
    pub log_changes: bool,
}

impl Config {
    /// One vCPU of a guest that sees this CPU. Which page faults go to the guest is chosen by what
    /// it would have saved; all CR3 loads exit; tables are filled at once, and linked ahead; no
    /// change is logged for the auditor.
    pub const fn new(features: Features, encodings: Encodings) -> Config {
        Config {
            features,
            encodings,
            filter: FilterPolicy::Auto,
            loadable_roots: 0,
            cr3_loads_exit: false,
            eager: true,
            prefetch_tables: true,
            prefetch_accessed: true,
            shadow_walk: true,
            vcpus: 1,
            log_changes: false,
        }
    }
}

/// The fewest shadow frames that one vCPU needs: the tables that one instruction can touch (SDM
/// vol. 1: at most a page-crossing instruction, two page-crossing operands, and an event's
/// descriptors and stack), each with its way down from the root.
pub const MIN_FRAMES_PER_VCPU: u32 = 48;

/// Why an MMU cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// Fewer shadow frames than [`MIN_FRAMES_PER_VCPU`] per vCPU.
    TooFewFrames {
        /// So many there are.
        frames: u32,
        /// So many are needed.
        needed: u32,
    },
    /// More shadow frames than the reverse map can number: 2^20.
    TooManyFrames {
        /// So many there are.
        frames: u32,
    },
    /// More guest memory than the reverse map can number: 4 TiB.
    TooMuchMemory {
        /// Where it ends.
        end: Gfn,
    },
    /// A shadow frame at or above 4 GiB: PAE roots must lie below (CR3 has 32 bits outside long
    /// mode).
    FrameAbove4G {
        /// Where it lies.
        hpa: Hpa,
    },
    /// Two guest frames have the same host frame. Writes are seen by guest frame, so a table could
    /// be written by way of the other.
    SharedFrame {
        /// One of them.
        gfn: Gfn,
        /// The other.
        other: Gfn,
        /// Where both lie.
        hfn: Hfn,
    },
    /// The guest's MAXPHYADDR is above the real CPU's, which would refuse addresses that the guest
    /// may use.
    WiderThanHost {
        /// The guest's.
        guest: u8,
        /// The real CPU's.
        host: u8,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::TooFewFrames { frames, needed } => {
                write!(f, "{frames} shadow frames are too few: at least {needed} are needed")
            }
            ConfigError::TooManyFrames { frames } => {
                write!(f, "{frames} shadow frames are too many: at most 2^20 are supported")
            }
            ConfigError::TooMuchMemory { end } => {
                write!(
                    f,
                    "guest memory up to {:#x} is too much: at most 4 TiB are supported",
                    end.base()
                )
            }
            ConfigError::SharedFrame { gfn, other, hfn } => write!(
                f,
                "the guest frames {:#x} and {:#x} have the same host frame {:#x}: give each its own",
                gfn.raw(),
                other.raw(),
                hfn.raw()
            ),
            ConfigError::WiderThanHost { guest, host } => write!(
                f,
                "the guest's MAXPHYADDR {guest} is above the real CPU's {host}: show the guest at most {host}"
            ),
            ConfigError::FrameAbove4G { hpa } => {
                write!(f, "the shadow frame at {hpa:#x} lies above 4 GiB")
            }
        }
    }
}

impl core::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host faults are those on Trapping entries (RSVD), on tracked tables and on clean pages (P
    /// and W, of a supervisor or, without I4, of user mode), and those of a supervisor where a walk
    /// must tell. All of them exit.
    #[test]
    fn the_filters_for_every_error_code() {
        for raw in 0..64 {
            let code = Pfec::from_bits_truncate(raw);
            let exits = |guest_faults: GuestFaults| guest_faults.pfec_filter().exits(code);
            let (present, user) = (code.contains(Pfec::PRESENT), code.contains(Pfec::USER));
            let reserved = code.contains(Pfec::RSVD);
            assert!(exits(GuestFaults::Trap));
            assert_eq!(exits(GuestFaults::Present), present, "{code:?}");
            assert_eq!(exits(GuestFaults::User), !user || reserved, "{code:?}");
            // RSVD comes with P always (SDM, "Page-Fault Exceptions").
            if reserved && present {
                assert!(exits(GuestFaults::Present) && exits(GuestFaults::User), "{code:?}");
            }
        }
    }
}
