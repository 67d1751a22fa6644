//! The guest's control registers and the MSRs that hardware keeps for it.

use umbra_mmu::{LoadableRoot, Root, RootFormat};
use umbra_paging::{Gva, cr0, cr4, efer};
use umbra_vcpu::backend::{ControlRegisters, Cr3Target};
use umbra_vcpu::control::{Controls, cr0_more, cr4_more, efer_more};
use x86::msr;
use x86::vmx::vmcs::control::EntryControls;
use x86::vmx::vmcs::{control, guest};

use super::{DEBUGCTL_BTF, DEBUGCTL_LBR, FPU_ERROR, Vmx};
use crate::hw::cpu;

/// CR0 bits that the guest changes without an exit: MP, EM, TS and AM mean the same for the real
/// CPU.
pub const CR0_GUEST: u64 = cr0_more::MP | cr0_more::EM | cr0_more::TS | cr0_more::AM;
/// The real CR4 always has these: PAE for the shadow tables, MCE for the hypervisor, which a
/// machine check must not shut down without a word.
const CR4_REAL: u64 = cr4::PAE | 1 << 6;
/// CR4 bits that the guest changes without an exit: TSD, DE, OSFXSR and OSXMMEXCPT, which every
/// 64-bit CPU has.
pub const CR4_GUEST: u64 = cr4_more::TSD | cr4_more::DE | cr4_more::OSFXSR | cr4_more::OSXMMEXCPT;
/// The real CR0 of a guest always has these: NE for VMX, WP for the tracking of guest page tables.
const CR0_REAL: u64 = cr0::PE | cr0::PG | cr0::WP | cr0_more::NE;
/// CD and NW of the guest have no effect: its memory is write-back always.
const CR0_NOT_REAL: u64 = cr0_more::CD | cr0_more::NW;

const IA32_DEBUGCTL: u32 = 0x1d9;

impl ControlRegisters for Vmx {
    fn cr0(&self) -> u64 {
        self.vmcs.read(control::CR0_READ_SHADOW) & !CR0_GUEST
            | self.vmcs.read(guest::CR0) & CR0_GUEST
    }

    fn cr2(&self) -> u64 {
        // The real one is the guest's all the time.
        cpu::cr2()
    }

    fn set_cr2(&mut self, gva: Gva) {
        cpu::set_cr2(gva.raw());
    }

    fn cr3(&self) -> u64 {
        self.vmcs.read(guest::CR3)
    }

    fn cr4(&self) -> u64 {
        let own = CR4_GUEST | self.cr4_flush;
        self.vmcs.read(control::CR4_READ_SHADOW) & !own | self.vmcs.read(guest::CR4) & own
    }

    fn set_controls(&mut self, controls: &Controls, root: Root, loadable: Option<LoadableRoot>) {
        // A guest with PAE or 32-bit paging runs on PAE tables, as one with paging off does.
        let pae_root = root.format() == RootFormat::Pae;
        let paging_off = controls.cr0 & cr0::PG == 0;
        self.long_mode = !pae_root;
        let real_cr0 =
            (controls.cr0 & !CR0_NOT_REAL | CR0_REAL | self.cr0_fixed.0) & self.cr0_fixed.1;
        let without = if paging_off { cr4::SMEP | cr4::SMAP | cr4::PCIDE } else { 0 };
        let real_cr4 = (controls.cr4 & !without | CR4_REAL | self.cr4_fixed.0) & self.cr4_fixed.1;
        let entry = if pae_root {
            self.entry
        } else {
            self.entry | u64::from(EntryControls::IA32E_MODE_GUEST.bits())
        };
        let pcid = if pae_root { 0 } else { controls.pcid() };
        let cr3 = match loadable {
            Some(own) => {
                let target = Cr3Target::new(own, controls.cr3);
                target.expect("the loadable root is that of the guest's CR3").value()
            }
            None => root.hpa().raw() | pcid,
        };
        if controls.pae_paging() != self.pae_paging {
            self.pae_paging = controls.pae_paging();
            self.cr4_flush = self.own_flush_bits();
            self.write_cr4_mask();
        }
        let fpu_error = if controls.cr0 & cr0_more::NE == 0 { FPU_ERROR } else { 0 };
        self.exceptions = self.exceptions & !FPU_ERROR | fpu_error;
        self.update(control::EXCEPTION_BITMAP, self.exceptions);
        self.update(control::CR0_READ_SHADOW, controls.cr0);
        self.update(control::CR4_READ_SHADOW, controls.cr4);
        // SAFETY: CR3 is a root of the shadow MMU (`Root`, `LoadableRoot`), which maps the guest's
        // memory only; paging and WP are on, and the paging mode is that of the root's format.
        unsafe {
            self.update_guarded(guest::CR0, real_cr0);
            self.update_guarded(guest::CR4, real_cr4);
            self.update_guarded(guest::CR3, cr3);
            self.update_guarded(control::VMENTRY_CONTROLS, entry);
        }
        // LMA and LME of the guest come from "IA-32e mode guest", those of the host from "host
        // address-space size" (SDM, "Loading Guest Control Registers, Debug Registers, and MSRs");
        // the rest is real.
        const OWN: u64 = efer_more::SCE | efer::NXE;
        let real = cpu::read_msr(msr::IA32_EFER);
        // CR4.PAE is always set in the real CPU. A guest without it must not see fetches reported
        // in error codes (SDM, "Page-Fault Exceptions", I/D), nor has it NX.
        let legacy32 = !paging_off && controls.cr4 & cr4::PAE == 0;
        let own = if legacy32 { controls.efer & OWN & !efer::NXE } else { controls.efer & OWN };
        let wanted = real & !OWN | own;
        if real != wanted {
            // SAFETY: the hypervisor's page tables have no NX bits, and it uses no SYSCALL.
            unsafe { cpu::write_msr(msr::IA32_EFER, wanted) };
        }
    }

    fn read_msr(&self, number: u32) -> Option<u64> {
        match number {
            msr::IA32_TSC_AUX if self.has_rdtscp() => Some(cpu::read_msr(number)),
            IA32_DEBUGCTL => Some(self.vmcs.read(guest::IA32_DEBUGCTL_FULL)),
            _ => None,
        }
    }

    fn write_msr(&mut self, number: u32, value: u64) -> bool {
        match number {
            msr::IA32_TSC_AUX if self.has_rdtscp() && value >> 32 == 0 => {
                // SAFETY: the hypervisor does not use RDTSCP.
                unsafe { cpu::write_msr(number, value) };
                true
            }
            // What is recorded cannot be read: the table of registers says why.
            IA32_DEBUGCTL if value & !(DEBUGCTL_LBR | DEBUGCTL_BTF) == 0 => {
                self.vmcs.write(guest::IA32_DEBUGCTL_FULL, value);
                true
            }
            _ => false,
        }
    }

    fn set_xcr0(&mut self, value: u64) {
        cpu::set_xcr0(value);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(control::TSC_OFFSET_FULL, offset);
    }
}
