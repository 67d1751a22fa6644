//! Control and model-specific registers.

use umbra_mmu::{LoadableRoot, Root, RootFormat};
use umbra_paging::{Gva, cr0, cr4, efer};
use umbra_vcpu::backend::{ControlRegisters, Cr3Target};
use umbra_vcpu::control::{Controls, cr0_more, efer_more};
use umbra_vcpu::svm::failure::SVME;
use umbra_vcpu::svm::vmcb::part;
use x86::msr;

use super::backend::{CR_READS, CR0_REAL, CR3_READ, EXCEPTIONS, Svm};
use crate::hw::cpu;

/// The real CR4 always has these: PAE for the shadow tables, MCE for the hypervisor, which a
/// machine check must not shut down without a word.
const CR4_REAL: u64 = cr4::PAE | 1 << 6;
/// #MF exits while the guest's CR0.NE is clear: it does not get it then, but an interrupt.
const FPU_ERROR: u32 = 1 << 16;
/// CD and NW of the guest have no effect: its memory is write-back always.
const CR0_NOT_REAL: u64 = 3 << 29;

pub(super) const IA32_DEBUGCTL: u32 = 0x1d9;
/// IA32_DEBUGCTL.LBR: record branches.
pub(super) const DEBUGCTL_LBR: u64 = 1 << 0;
/// IA32_DEBUGCTL.BTF: TF steps from branch to branch.
pub(super) const DEBUGCTL_BTF: u64 = 1 << 1;

impl ControlRegisters for Svm {
    fn cr0(&self) -> u64 {
        self.cr0
    }

    fn cr2(&self) -> u64 {
        self.vmcb.save.cr2
    }

    fn set_cr2(&mut self, gva: Gva) {
        self.vmcb.save.cr2 = gva.raw();
        self.changed |= part::CR2;
        // VMRUN loads it, but Bochs 2.7 leaves that out.
        cpu::set_cr2(gva.raw());
    }

    fn cr3(&self) -> u64 {
        self.vmcb.save.cr3
    }

    fn cr4(&self) -> u64 {
        self.cr4
    }

    fn set_controls(&mut self, controls: &Controls, root: Root, loadable: Option<LoadableRoot>) {
        // A guest with PAE or 32-bit paging runs on PAE tables, as one with paging off does.
        let pae_root = root.format() == RootFormat::Pae;
        let paging_off = controls.cr0 & cr0::PG == 0;
        let without = if paging_off { cr4::SMEP | cr4::SMAP | cr4::PCIDE } else { 0 };
        let pcid = if pae_root { 0 } else { controls.pcid() };
        let long = if pae_root { 0 } else { efer_more::LME | efer::LMA };
        // CR4.PAE is always set in the real CPU. A guest without it must not see fetches reported
        // in error codes, nor has it NX.
        let legacy32 = !paging_off && controls.cr4 & cr4::PAE == 0;
        let own = if legacy32 { efer_more::SCE } else { efer_more::SCE | efer::NXE };
        let save = &mut self.vmcb.save;
        save.cr0 = controls.cr0 & !CR0_NOT_REAL | CR0_REAL;
        save.cr4 = controls.cr4 & !without | CR4_REAL;
        save.cr3 = match loadable {
            Some(own) => {
                let target = Cr3Target::new(own, controls.cr3);
                target.expect("the loadable root is that of the guest's CR3").value()
            }
            None => root.hpa().raw() | pcid,
        };
        save.efer = controls.efer & own | long | SVME;
        let mut reads = CR_READS;
        if loadable.is_some() {
            reads &= !CR3_READ;
        }
        if save.cr0 != controls.cr0 {
            reads |= 1 << 0;
        }
        if save.cr4 != controls.cr4 {
            reads |= 1 << 4;
        }
        self.cr0 = controls.cr0;
        self.cr4 = controls.cr4;
        self.cr3 = save.cr3;
        let fpu_error = if controls.cr0 & cr0_more::NE == 0 { FPU_ERROR } else { 0 };
        self.exceptions = EXCEPTIONS | fpu_error;
        self.vmcb.control.cr_reads = reads;
        self.vmcb.control.exceptions = self.exceptions;
        self.flushes.set_pcids(save.cr4 & cr4::PCIDE != 0);
        self.changed |= part::CONTROL_REGISTERS | part::INTERCEPTS;
    }

    fn read_msr(&self, number: u32) -> Option<u64> {
        match number {
            msr::IA32_TSC_AUX if self.has_rdtscp => Some(cpu::read_msr(number)),
            IA32_DEBUGCTL => Some(self.debugctl),
            _ => None,
        }
    }

    fn write_msr(&mut self, number: u32, value: u64) -> bool {
        match number {
            msr::IA32_TSC_AUX if self.has_rdtscp && value >> 32 == 0 => {
                // SAFETY: the hypervisor does not use RDTSCP.
                unsafe { cpu::write_msr(number, value) };
                true
            }
            // What is recorded cannot be read: the table of registers says why.
            IA32_DEBUGCTL if value & !(DEBUGCTL_LBR | DEBUGCTL_BTF) == 0 => {
                self.set_debugctl(value);
                true
            }
            _ => false,
        }
    }

    fn set_xcr0(&mut self, value: u64) {
        cpu::set_xcr0(value);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
        self.changed |= part::INTERCEPTS;
    }
}

impl Svm {
    /// Sets IA32_DEBUGCTL. The VMCB has no place for it, so BTF is the guest's all the time.
    pub(super) fn set_debugctl(&mut self, value: u64) {
        if self.has_debugctl && (value ^ self.debugctl) & DEBUGCTL_BTF != 0 {
            // SAFETY: it changes what RFLAGS.TF does, which the hypervisor never sets.
            unsafe { cpu::write_msr(IA32_DEBUGCTL, value & DEBUGCTL_BTF) };
        }
        self.debugctl = value;
    }
}
