//! What the embedder says about the machine.

/// How much memory the guest has, and where. CMOS and `fw_cfg` report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    /// Bytes from gpa 0 up, the legacy hole below 1 MiB included.
    pub below_4g: u64,
    /// Bytes from gpa 4 GiB up.
    pub above_4g: u64,
}

impl RamLayout {
    /// All guest memory in bytes.
    pub fn total(&self) -> u64 {
        self.below_4g.saturating_add(self.above_4g)
    }
}

/// What a [`Platform`](crate::Platform) is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlatformConfig {
    /// Guest memory.
    pub ram: RamLayout,
    /// Ticks of `now` in a second.
    pub tsc_hz: u64,
    /// UTC at `now == 0`, in seconds since 1970-01-01.
    pub wall_clock_unix_seconds: u64,
    /// MAXPHYADDR that the guest's CPUID shows: higher bits of `IA32_APIC_BASE` are reserved.
    pub physical_address_bits: u8,
    /// Whether the guest's CPUID shows the TSC-deadline timer (leaf 1, ECX bit 24). Without it
    /// `IA32_TSC_DEADLINE` raises #GP.
    pub tsc_deadline: bool,
}
