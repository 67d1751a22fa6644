//! The virtual CPU's state at the stub's first instruction, and what CPUID shows.

use anyhow::{Context, Result};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};
use umbra_trial::image::Image;
use umbra_trial::layout::{GDT, IDT, TSS, direct};
use umbra_trial::program::Program;
use umbra_trial::stub::{GDT_LIMIT, IDT_LIMIT, KERNEL_CODE, KERNEL_DATA, TASK, TSS_LIMIT};

/// "GenuineIntel" in EBX, EDX, ECX of CPUID leaf 0. The judge follows the SDM; the APM reserves bit
/// 8 of PML4 and PDPT entries, and KVM goes by the guest's vendor.
const VENDOR: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];

/// CPUID.80000001H:EDX.1G-PAGE.
const GIB_PAGES: u32 = 1 << 26;

/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 1 << 1;

/// Sets CPUID and registers.
///
/// # Errors
/// KVM's.
pub fn prepare(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    number: usize,
    program: &Program,
    image: &Image,
) -> Result<()> {
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            0 | 0x8000_0000 => [leaf.ebx, leaf.edx, leaf.ecx] = VENDOR,
            // KVM offers 1 GiB pages with shadow paging whatever the CPU has.
            0x8000_0001 if program.old => leaf.edx &= !GIB_PAGES,
            0x8000_0008 => leaf.eax = leaf.eax & !0xff | u32::from(program.maxphyaddr),
            _ => (),
        }
    }
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;

    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: KERNEL_CODE,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: KERNEL_DATA, type_: 0x3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: direct(TSS[number]).raw(),
        limit: TSS_LIMIT.into(),
        selector: TASK[number],
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (direct(GDT).raw(), GDT_LIMIT);
    (sregs.idt.base, sregs.idt.limit) = (direct(IDT).raw(), IDT_LIMIT);
    (sregs.cr0, sregs.cr3, sregs.cr4) =
        (image.registers.cr0, image.registers.cr3, image.registers.cr4);
    sregs.efer = image.registers.efer;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let registers = kvm_regs { rip: image.entries[number], rflags: RFLAGS, ..kvm_regs::default() };
    vcpu.set_regs(&registers).context("KVM_SET_REGS")
}
