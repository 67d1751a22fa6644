//! The CPU as the guest sees it: its control registers, and what CPUID shows of it.

use umbra_msrs::Registers;
use umbra_vcpu::control::{Controls, Known};
use umbra_vcpu::cpuid::{Cpuid, Dynamic};

use crate::hw::cpu;

/// What the guest's CPU is, and the registers of it that no hardware keeps.
pub struct GuestCpu {
    cpuid: Cpuid,
    /// What follows from `cpuid` and IA32_MISC_ENABLE.
    known: Known,
    /// CR0 and CR4 as of the last `Vcpu::refresh_controls`.
    controls: Controls,
    msrs: Registers,
}

impl GuestCpu {
    /// A CPU that CPUID shows so, with these control registers, and a time-stamp counter that ticks
    /// so often in a second.
    pub fn new(cpuid: Cpuid, tsc_hz: u64, controls: Controls) -> GuestCpu {
        GuestCpu {
            known: cpuid.known(Dynamic::AT_RESET),
            msrs: Registers::new(&cpuid.model(tsc_hz)),
            cpuid,
            controls,
        }
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

    /// What CPUID shows has changed: so does what control registers take.
    pub fn refresh_known(&mut self, dynamic: Dynamic) {
        self.known = self.cpuid.known(dynamic);
    }

    /// Model-specific registers.
    pub fn msrs(&self) -> &Registers {
        &self.msrs
    }

    /// The same, to be changed.
    pub fn msrs_mut(&mut self) -> &mut Registers {
        &mut self.msrs
    }

    /// XCR0, if there is one. QEMU 7.2 lets the guest change it without an exit.
    pub fn xcr0(&self) -> u64 {
        if self.cpuid.has_xcr0() { cpu::xcr0() } else { 0 }
    }
}
