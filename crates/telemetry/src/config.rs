//! The configuration that the boot image carries for the hypervisor (multiboot2 module `config`).

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Which of the guest's own page faults may go around the hypervisor, where the CPU allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestFaults {
    /// None: every page fault exits.
    Trap,
    /// Those on entries that are not present.
    Present,
    /// Those of user mode.
    User,
    /// Whatever saves most by the faults that are seen.
    Auto,
}

impl GuestFaults {
    /// The name in options and results.
    pub const fn name(self) -> &'static str {
        match self {
            GuestFaults::Trap => "trap",
            GuestFaults::Present => "present",
            GuestFaults::User => "user",
            GuestFaults::Auto => "bypass",
        }
    }
}

/// A way around exits that can be switched off, to find out what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mechanism {
    /// Bursts of writes to a guest table detach it instead of being emulated.
    Detach,
    /// Address-space switches to known roots make no exit.
    Cr3,
    /// INVLPG and INVPCID make no exit.
    Invlpg,
    /// Tables are filled whole when they are linked.
    Eager,
    /// Instructions that write tables are emulated by a fast path for the plain ones.
    FastEmulation,
    /// Tables of an address space that comes into use are linked before they are used.
    PrefetchTables,
    /// Where a guest's write faults come entry after entry, A is set in the next entries.
    PrefetchAccessed,
    /// An exit is told from the shadow alone where it can be, without a walk of the guest's tables.
    ShadowWalk,
}

/// Names that options and results had before, and what they are called now.
const ALIASES: [(&str, Mechanism); 2] =
    [("quick", Mechanism::FastEmulation), ("ahead", Mechanism::PrefetchTables)];

impl Mechanism {
    /// All of them.
    pub const ALL: &[Mechanism] = &[
        Mechanism::Detach,
        Mechanism::Cr3,
        Mechanism::Invlpg,
        Mechanism::Eager,
        Mechanism::FastEmulation,
        Mechanism::PrefetchTables,
        Mechanism::PrefetchAccessed,
        Mechanism::ShadowWalk,
    ];

    /// The name in options and results.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Detach => "detach",
            Mechanism::Cr3 => "cr3",
            Mechanism::Invlpg => "invlpg",
            Mechanism::Eager => "eager",
            Mechanism::FastEmulation => "fast_emulation",
            Mechanism::PrefetchTables => "prefetch_tables",
            Mechanism::PrefetchAccessed => "prefetch_accessed",
            Mechanism::ShadowWalk => "shadow_walk",
        }
    }

    /// The name that it had before, if it had another.
    pub fn alias(self) -> Option<&'static str> {
        ALIASES.iter().find(|(_, mechanism)| *mechanism == self).map(|(alias, _)| *alias)
    }

    /// The mechanism with this name, or that had it before.
    pub fn from_name(name: &str) -> Option<Mechanism> {
        let named =
            |mechanism: &Mechanism| mechanism.name() == name || mechanism.alias() == Some(name);
        Mechanism::ALL.iter().copied().find(named)
    }
}

/// How thoroughly the live auditor looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Beside what each exit changed: check everything after this many exits. Never zero.
    pub every: u32,
}

/// All that the hypervisor is told at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// [`PROTOCOL`](crate::PROTOCOL) of the tool that wrote this.
    pub protocol: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// What to do about guest page faults.
    pub guest_faults: GuestFaults,
    /// What is switched off, in the order of [`Mechanism::ALL`].
    pub without: Vec<Mechanism>,
    /// Shadow frames in the pool, `None` for the default.
    pub shadow_frames: Option<u32>,
    /// The live auditor, off if `None`.
    pub audit: Option<Audit>,
    /// Whether every exit is to be reported.
    pub trace: bool,
    /// Whether the text on the guest's screen is to be reported.
    pub screen: bool,
    /// What the guest's kernel calls itself, or its file's name: only for reports.
    pub kernel: String,
    /// The guest kernel's command line, all of it: a multiboot kernel expects its own name first.
    pub append: String,
    /// A multiboot kernel's modules: the string of each. Their bytes are boot modules, too
    /// ([`module_name`]).
    pub modules: Vec<String>,
}

/// What the boot image calls a multiboot kernel's module.
pub fn module_name(index: usize) -> String {
    alloc::format!("module{index}")
}

impl BootConfig {
    /// Bytes of the largest `config` module; nearly all of them are command lines.
    pub const MAX_BYTES: usize = 64 << 10;

    /// The bytes of the `config` module.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a BootConfig always serializes into a growing vector")
    }

    /// Reads the bytes of the `config` module.
    ///
    /// # Errors
    /// The bytes are not a configuration of this [`PROTOCOL`](crate::PROTOCOL).
    pub fn from_bytes(bytes: &[u8]) -> Result<BootConfig, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for &mechanism in Mechanism::ALL {
            assert_eq!(Mechanism::from_name(mechanism.name()), Some(mechanism));
            assert!(
                mechanism
                    .alias()
                    .is_none_or(|alias| Mechanism::from_name(alias) == Some(mechanism))
            );
        }
        assert_eq!(Mechanism::from_name("quick"), Some(Mechanism::FastEmulation));
        assert_eq!(Mechanism::from_name("all"), None);
    }
}
