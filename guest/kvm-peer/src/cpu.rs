//! The virtual CPU's state at the guest's first instruction, and what CPUID shows.

use anyhow::{Context, Result};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};

/// Where and how the guest starts: flat, interrupts off.
pub struct Entry {
    /// The page tables of a guest that starts in 64-bit mode. One without them starts in 32-bit
    /// mode, without paging.
    pub cr3: Option<u64>,
    /// The first instruction.
    pub rip: u64,
    /// A small stack.
    pub rsp: u64,
    /// The boot parameters.
    pub rsi: u64,
    /// The descriptor table.
    pub gdt: u64,
    /// Its last byte's offset.
    pub gdt_limit: u16,
}

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 1 << 1;

/// Bits of CPUID leaf 1 that the hypervisor hides too: x2APIC, TSC deadline, VMX in ECX; MCE, MTRR,
/// MCA in EDX.
const HIDDEN_1_ECX: u32 = 1 << 21 | 1 << 24 | 1 << 5;
const HIDDEN_1_EDX: u32 = 1 << 7 | 1 << 12 | 1 << 14;
/// The leaf that counters of performance are described in.
const PMU_LEAF: u32 = 0xa;
/// KVM's own leaves: without them the guest uses no paravirtual clock, interrupts or flushes.
const HYPERVISOR_LEAVES: core::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;

/// Sets CPUID and registers.
///
/// # Errors
/// KVM's.
pub fn prepare(kvm: &Kvm, vcpu: &VcpuFd, entry: &Entry) -> Result<()> {
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    cpuid.retain(|leaf| !HYPERVISOR_LEAVES.contains(&leaf.function));
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => {
                leaf.ecx &= !HIDDEN_1_ECX;
                leaf.edx &= !HIDDEN_1_EDX;
                // One processor with APIC id 0.
                leaf.ebx = leaf.ebx & 0xffff | 1 << 16;
            }
            PMU_LEAF => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            _ => (),
        }
    }
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;

    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let is_64 = u8::from(entry.cr3.is_some());
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 0xb,
        present: 1,
        s: 1,
        l: is_64,
        db: 1 - is_64,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 0x18, type_: 0x3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (entry.gdt, entry.gdt_limit);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = match entry.cr3 {
        Some(cr3) => (CR0_PE | CR0_PG, cr3, CR4_PAE, EFER_LME_LMA),
        None => (CR0_PE, 0, 0, 0),
    };
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let registers = kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rsi: entry.rsi,
        rflags: RFLAGS,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&registers).context("KVM_SET_REGS")
}
