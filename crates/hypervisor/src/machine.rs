//! The machine that boot hands to the virtual CPU.

use umbra_devices::Platform;
use umbra_machine::canary::Canary;
use umbra_telemetry::BootConfig;
use umbra_vcpu::entry::Entry;

use crate::hw::descriptors;
use crate::hw::phys::{FramePool, GuestRam, SpareArea};

/// Whether the guest has a TSC-deadline timer, which CPUID must show then: it needs one exit where
/// the counting timer needs an emulated store.
pub const TSC_DEADLINE: bool = true;

/// Everything that the virtual CPU needs.
pub struct Machine {
    /// What the user asked for.
    pub config: BootConfig,
    /// The guest's memory, loaded.
    pub ram: GuestRam,
    /// The shadow MMU's frames.
    pub pool: FramePool,
    /// The pattern in what is nobody's.
    pub canary: Canary<SpareArea>,
    /// The guest's first instruction and what it finds there.
    pub entry: Entry,
    /// The guest's devices, at time 0.
    pub platform: Platform,
    /// Ticks of its time in a second.
    pub tsc_hz: u64,
    /// The host's descriptor tables.
    pub tables: descriptors::Tables,
}
