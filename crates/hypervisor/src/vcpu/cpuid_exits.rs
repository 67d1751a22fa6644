//! CPUID and XSETBV.

use umbra_telemetry::ExitCause;
use umbra_vcpu::backend::Backend;
use umbra_vcpu::control::cr4_more;
use umbra_vcpu::cpuid::Dynamic;
use umbra_vcpu::event::Event;

use super::Vcpu;
use super::msr::IA32_MISC_ENABLE;

impl<B: Backend> Vcpu<B> {
    /// What CPUID shows of the guest's state.
    pub(super) fn dynamic(&self) -> Dynamic {
        Dynamic {
            osxsave: self.backend.cr4() & cr4_more::OSXSAVE != 0,
            xcr0: self.cpu.xcr0(),
            apic: self.platform.lapic_page().is_some(),
            misc_enable: self.cpu.msrs().value(IA32_MISC_ENABLE),
        }
    }

    pub(super) fn cpuid_exit(&mut self) -> ExitCause {
        let dynamic = self.dynamic();
        let (leaf, subleaf) = (self.backend.gpr(0) as u32, self.backend.gpr(1) as u32);
        let result = self.cpu.cpuid().read(leaf, subleaf, dynamic);
        for (gpr, value) in [(0, result.eax), (3, result.ebx), (1, result.ecx), (2, result.edx)] {
            self.backend.set_gpr(gpr, value.into());
        }
        self.skip();
        ExitCause::Cpuid
    }

    pub(super) fn xsetbv_exit(&mut self) -> ExitCause {
        let value = self.backend.gpr(2) << 32 | self.backend.gpr(0) & 0xffff_ffff;
        let is_xcr0 = self.backend.gpr(1) as u32 == 0;
        if self.backend.cpl() == 0 && is_xcr0 && self.cpu.cpuid().allows_xcr0(value) {
            self.backend.set_xcr0(value);
            self.skip();
        } else {
            self.raise(Event::general_protection());
        }
        ExitCause::Other
    }
}
