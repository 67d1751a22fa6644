//! Model-specific registers that exit.

use umbra_devices::Platform;
use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::arch_capabilities::IA32_ARCH_CAPABILITIES;
use umbra_vcpu::backend::Backend;
use umbra_vcpu::event::Event;

use super::Vcpu;

const IA32_TSC: u32 = 0x10;
const IA32_PLATFORM_ID: u32 = 0x17;
const IA32_FEATURE_CONTROL: u32 = 0x3a;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_PAT: u32 = 0x277;
const IA32_EFER: u32 = 0xc000_0080;

/// Locked with VMX off.
const FEATURE_CONTROL: u64 = 1;
/// A microcode revision that no list of bad ones has.
const MICROCODE: u64 = 1 << 32;
/// Fast strings; branch trace storage and PEBS do not exist.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// IA32_PAT at reset.
pub const PAT: u64 = 0x0007_0406_0007_0406;

/// The access raises #GP(0).
struct GeneralProtection;

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

    fn read_msr(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        match msr {
            IA32_TSC => Ok(self.clock.read_tsc()),
            IA32_EFER => Ok(self.controls.efer),
            IA32_PAT => Ok(self.pat),
            IA32_PLATFORM_ID => Ok(0),
            IA32_FEATURE_CONTROL => Ok(FEATURE_CONTROL),
            IA32_BIOS_SIGN_ID => Ok(MICROCODE),
            IA32_MISC_ENABLE => Ok(MISC_ENABLE),
            IA32_ARCH_CAPABILITIES => self.cpuid.arch_capabilities().ok_or(GeneralProtection),
            _ if Platform::owns_msr(msr) => {
                self.platform.msr_read(self.clock.now(), msr).map_err(|_| GeneralProtection)
            }
            _ => self.backend.read_msr(msr).ok_or(GeneralProtection),
        }
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        match msr {
            IA32_TSC => {
                self.clock.write_tsc(value);
                self.platform.set_tsc_offset(self.clock.now(), self.clock.written());
                self.backend.set_tsc_offset(self.clock.tsc_offset());
            }
            IA32_EFER => {
                self.refresh_controls();
                let new = self.controls.write_efer(value, &self.known).map_err(|_| GeneralProtection)?;
                self.load_controls(new);
            }
            IA32_PAT if is_pat(value) => self.pat = value,
            // Loading microcode begins with a zero here.
            IA32_BIOS_SIGN_ID => (),
            IA32_MISC_ENABLE if value == MISC_ENABLE => (),
            _ if Platform::owns_msr(msr) => {
                let before = self.platform.lapic_page();
                self.platform.msr_write(self.clock.now(), msr, value).map_err(|_| GeneralProtection)?;
                if self.platform.lapic_page() != before {
                    self.moved_apic();
                }
            }
            _ if self.backend.write_msr(msr, value) => (),
            _ => return Err(GeneralProtection),
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

/// Whether each byte is a memory type (SDM, "IA32_PAT MSR").
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|memory_type| matches!(memory_type, 0 | 1 | 4..=7))
}
