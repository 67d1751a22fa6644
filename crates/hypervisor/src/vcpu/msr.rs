//! Model-specific registers that exit.

use umbra_devices::{GeneralProtection, Platform};
use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::backend::Backend;
use umbra_vcpu::event::Event;
use umbra_vcpu::msr::{Msr, is_pat};

use super::Vcpu;

impl<B: Backend> Vcpu<B> {
    pub(super) fn read_msr_exit(&mut self) -> ExitCause {
        match self.read_msr(self.backend.gpr(1) as u32) {
            Ok(value) => {
                self.backend.set_gpr(0, value & 0xffff_ffff);
                self.backend.set_gpr(2, value >> 32);
                self.skip();
            }
            Err(GeneralProtection) => self.raise(Event::general_protection()),
        }
        ExitCause::Msr
    }

    pub(super) fn write_msr_exit(&mut self) -> ExitCause {
        let value = self.backend.gpr(2) << 32 | self.backend.gpr(0) & 0xffff_ffff;
        match self.write_msr(self.backend.gpr(1) as u32, value) {
            Ok(()) => self.skip(),
            Err(GeneralProtection) => self.raise(Event::general_protection()),
        }
        ExitCause::Msr
    }

    fn read_msr(&mut self, number: u32) -> Result<u64, GeneralProtection> {
        match Msr::find(number, self.cpuid.vendor()) {
            Msr::Tsc => Ok(self.clock.read_tsc()),
            Msr::Efer => Ok(self.controls.efer),
            Msr::Pat => Ok(self.pat),
            Msr::ArchCapabilities => self.cpuid.arch_capabilities().ok_or(GeneralProtection),
            Msr::Fixed(value, _) => Ok(value),
            Msr::Other if Platform::owns_msr(number) => self.platform.msr_read(self.clock.now(), number),
            Msr::Other => self.backend.read_msr(number).ok_or(GeneralProtection),
        }
    }

    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), GeneralProtection> {
        match Msr::find(number, self.cpuid.vendor()) {
            Msr::Tsc => {
                self.clock.write_tsc(value);
                self.platform.set_tsc_offset(self.clock.now(), self.clock.written());
                self.backend.set_tsc_offset(self.clock.tsc_offset());
            }
            Msr::Efer => {
                self.refresh_controls();
                let new = self.controls.write_efer(value, &self.known)?;
                self.load_controls(new);
            }
            Msr::Pat if is_pat(value) => self.pat = value,
            Msr::Fixed(fixed, write) if write.takes(fixed, value) => (),
            Msr::Other if Platform::owns_msr(number) => {
                let before = self.platform.lapic_page();
                self.platform.msr_write(self.clock.now(), number, value)?;
                if self.platform.lapic_page() != before {
                    self.moved_apic();
                }
            }
            Msr::Other if self.backend.write_msr(number, value) => (),
            Msr::Pat | Msr::ArchCapabilities | Msr::Fixed(..) | Msr::Other => return Err(GeneralProtection),
        }
        Ok(())
    }

    /// The APIC's page shows where there is no memory: the map from gpa to hpa stays as it is.
    fn moved_apic(&mut self) {
        let Some(page) = self.platform.lapic_page() else { return };
        if self.is_ram(page) {
            self.end = Some(GuestExit::Unsupported(alloc::format!(
                "the guest moved its local APIC to {page:#x}, into its memory, which Umbra does not run"
            )));
        }
    }
}
