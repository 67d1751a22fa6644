//! The CPU as the guest sees it: its control registers, and what CPUID shows of it.

use umbra_vcpu::control::{Controls, Known};
use umbra_vcpu::cpuid::{Cpuid, xcr0};
use umbra_vcpu::msr::PAT_AT_RESET;

/// What the guest's CPU is, and the registers of it that no hardware keeps.
pub struct GuestCpu {
    cpuid: Cpuid,
    /// What follows from `cpuid`.
    known: Known,
    /// CR0 and CR4 as of the last `Vcpu::refresh_controls`.
    controls: Controls,
    /// IA32_PAT, which is only stored: guest memory is write-back.
    pat: u64,
    /// XCR0, if there is one.
    xcr0: u64,
}

impl GuestCpu {
    /// A CPU that CPUID shows so, with these control registers.
    pub fn new(cpuid: Cpuid, controls: Controls) -> GuestCpu {
        GuestCpu { known: cpuid.known(), cpuid, controls, pat: PAT_AT_RESET, xcr0: xcr0::X87 }
    }

    /// CPUID.
    pub fn cpuid(&self) -> &Cpuid {
        &self.cpuid
    }

    /// The bits of control registers that it knows.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// The control registers.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }

    /// The same, to be changed: what runs the guest must follow.
    pub fn controls_mut(&mut self) -> &mut Controls {
        &mut self.controls
    }

    /// IA32_PAT.
    pub fn pat(&self) -> u64 {
        self.pat
    }

    /// Writes IA32_PAT.
    pub fn set_pat(&mut self, value: u64) {
        self.pat = value;
    }

    /// XCR0, if there is one.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// XCR0 has this value now.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }
}
