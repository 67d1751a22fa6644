//! Model-specific registers that exit.

use umbra_msrs::{Answer, Refused, Source};
use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::backend::Backend;
use umbra_vcpu::event::Event;

use super::Vcpu;

pub const IA32_MISC_ENABLE: u32 = 0x1a0;

impl<B: Backend> Vcpu<B> {
    pub(super) fn read_msr_exit(&mut self) -> ExitCause {
        match self.read_msr(self.backend.gpr(1) as u32) {
            Ok(value) => {
                self.backend.set_gpr(0, value & 0xffff_ffff);
                self.backend.set_gpr(2, value >> 32);
                self.skip();
            }
            Err(Refused) => self.raise(Event::general_protection()),
        }
        ExitCause::Msr
    }

    pub(super) fn write_msr_exit(&mut self) -> ExitCause {
        let value = self.backend.gpr(2) << 32 | self.backend.gpr(0) & 0xffff_ffff;
        match self.write_msr(self.backend.gpr(1) as u32, value) {
            Ok(()) => self.skip(),
            Err(Refused) => self.raise(Event::general_protection()),
        }
        ExitCause::Msr
    }

    fn read_msr(&mut self, msr: u32) -> Result<u64, Refused> {
        let source = match self.cpu.msrs_mut().read(msr)? {
            Answer::Done(value) => return Ok(value),
            Answer::Ask(source) => source,
        };
        match source {
            Source::Tsc => Ok(self.time.read_tsc()),
            Source::Frequency => Ok(self.time.now()),
            Source::Efer => Ok(self.cpu.controls().efer),
            Source::ArchCapabilities => self.cpu.cpuid().arch_capabilities().ok_or(Refused),
            Source::Apic => self.platform.msr_read(self.time.now(), msr).map_err(|_| Refused),
            Source::Hardware => self.backend.read_msr(msr).ok_or(Refused),
        }
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), Refused> {
        let source = match self.cpu.msrs_mut().write(msr, value)? {
            Answer::Done(()) => {
                if msr == IA32_MISC_ENABLE {
                    self.cpu.refresh_known(self.dynamic());
                }
                return Ok(());
            }
            Answer::Ask(source) => source,
        };
        match source {
            Source::Tsc => {
                self.time.write_tsc(value);
                self.platform.set_tsc_offset(self.time.now(), self.time.written());
                self.backend.set_tsc_offset(self.time.tsc_offset());
            }
            Source::Efer => {
                self.refresh_controls();
                let new =
                    self.cpu.controls().write_efer(value, self.cpu.known()).map_err(|_| Refused)?;
                self.load_controls(new);
            }
            Source::Apic => {
                let before = self.platform.lapic_page();
                self.platform.msr_write(self.time.now(), msr, value).map_err(|_| Refused)?;
                if self.platform.lapic_page() != before {
                    self.moved_apic();
                }
            }
            Source::Hardware if self.backend.write_msr(msr, value) => (),
            Source::Frequency | Source::ArchCapabilities | Source::Hardware => return Err(Refused),
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
