//! The configuration that the boot image carries for the hypervisor (multiboot2 module `config`).

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Whether not-present faults of the guest may go around the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestFaults {
    /// They go straight to the guest where the CPU allows it.
    Bypass,
    /// Every page fault exits.
    Trap,
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
    /// Shadow frames in the pool, `None` for the default.
    pub shadow_frames: Option<u32>,
    /// The live auditor, off if `None`.
    pub audit: Option<Audit>,
    /// Whether every exit is to be reported.
    pub trace: bool,
    /// The guest kernel's command line, all of it: a multiboot kernel expects its own name first.
    pub append: String,
    /// A multiboot kernel's modules: the string of each. Their bytes are boot modules, too ([`module_name`]).
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
