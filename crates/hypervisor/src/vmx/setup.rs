//! The VMCS before the first VM entry.

use umbra_vcpu::entry::{Entry, Mode};
use x86::vmx::vmcs::control::{PrimaryControls, SecondaryControls};
use x86::vmx::vmcs::{control, guest, host};

use super::capabilities::Capabilities;
use super::controls::{CR0_GUEST, CR4_GUEST};
use super::vmcs::Vmcs;
use super::{DR7_AT_START, EXCEPTIONS, VPID, enter, rights};
use crate::hw::cpu;
use crate::hw::descriptors::{CODE, DATA, TSS, Tables};

/// Nothing but the bit that is always set.
pub const RFLAGS_AT_START: u64 = 1 << 1;

/// What exits, and what VM entries and exits load and save.
pub fn write_controls(vmcs: &mut Vmcs, capabilities: &Capabilities, msr_bitmap: u64) {
    let fields = [
        (control::PINBASED_EXEC_CONTROLS, capabilities.pin.into()),
        (control::PRIMARY_PROCBASED_EXEC_CONTROLS, capabilities.primary.into()),
        (control::VMEXIT_CONTROLS, capabilities.exit.into()),
        (control::VMENTRY_CONTROLS, capabilities.entry.into()),
        (control::EXCEPTION_BITMAP, EXCEPTIONS),
        (control::PAGE_FAULT_ERR_CODE_MASK, 0),
        (control::PAGE_FAULT_ERR_CODE_MATCH, 0),
        (control::CR3_TARGET_COUNT, 0),
        (control::VMEXIT_MSR_STORE_COUNT, 0),
        (control::VMEXIT_MSR_LOAD_COUNT, 0),
        (control::VMENTRY_MSR_LOAD_COUNT, 0),
        (control::VMENTRY_INTERRUPTION_INFO_FIELD, 0),
        (control::MSR_BITMAPS_ADDR_FULL, msr_bitmap),
        (control::TSC_OFFSET_FULL, 0),
        (control::CR0_GUEST_HOST_MASK, !CR0_GUEST),
        (control::CR4_GUEST_HOST_MASK, !CR4_GUEST),
        (guest::LINK_PTR_FULL, u64::MAX),
    ];
    // SAFETY: no memory is reached without CR3, which `set_controls` gives; every load of CR3
    // exits, and the MSR bitmap passes only MSRs that the hypervisor does not use.
    fields.into_iter().for_each(|(field, value)| unsafe { vmcs.write_guarded(field, value) });
    if capabilities.primary & PrimaryControls::SECONDARY_CONTROLS.bits() != 0 {
        let secondary = capabilities.secondary;
        // SAFETY: no EPT among them; the VPID is the guest's alone.
        unsafe {
            vmcs.write_guarded(control::SECONDARY_PROCBASED_EXEC_CONTROLS, secondary.bits().into());
            if secondary.contains(SecondaryControls::ENABLE_VPID) {
                vmcs.write_guarded(control::VPID, VPID.into());
            }
        }
    }
}

/// The hypervisor as it is now, except RSP, which `enter` writes.
pub fn write_host_state(vmcs: &mut Vmcs, tables: &Tables) {
    let fields = [
        (host::CR0, cpu::cr0()),
        (host::CR3, cpu::cr3()),
        (host::CR4, cpu::cr4()),
        (host::CS_SELECTOR, CODE.bits().into()),
        (host::SS_SELECTOR, DATA.bits().into()),
        (host::DS_SELECTOR, DATA.bits().into()),
        (host::ES_SELECTOR, DATA.bits().into()),
        (host::FS_SELECTOR, 0),
        (host::GS_SELECTOR, 0),
        (host::TR_SELECTOR, TSS.bits().into()),
        (host::FS_BASE, 0),
        (host::GS_BASE, 0),
        (host::TR_BASE, tables.tss),
        (host::GDTR_BASE, tables.gdt),
        (host::IDTR_BASE, tables.idt),
        (host::IA32_SYSENTER_CS, 0),
        (host::IA32_SYSENTER_ESP, 0),
        (host::IA32_SYSENTER_EIP, 0),
        (host::RIP, enter::exit_address()),
    ];
    // SAFETY: the hypervisor as it runs, which does not change it.
    fields.into_iter().for_each(|(field, value)| unsafe { vmcs.write_guarded(field, value) });
}

/// The guest at its first instruction.
pub fn write_guest_state(vmcs: &mut Vmcs, entry: &Entry) {
    let code = match entry.mode {
        Mode::Long { .. } => rights::CODE_64,
        Mode::Protected => rights::CODE_32,
    };
    // ES, CS, SS, DS, FS, GS, LDTR, TR; the fields of each lie 2 apart.
    for number in 0..8 {
        let (selector, limit, access) = match number {
            1 => (entry.gdt.code, 0xffff_ffff, code),
            6 => (0, 0, rights::UNUSABLE),
            7 => (0, 0xffff, rights::TSS),
            _ => (entry.gdt.data, 0xffff_ffff, rights::DATA),
        };
        vmcs.write(guest::ES_SELECTOR + 2 * number, selector.into());
        vmcs.write(guest::ES_BASE + 2 * number, 0);
        vmcs.write(guest::ES_LIMIT + 2 * number, limit);
        vmcs.write(guest::ES_ACCESS_RIGHTS + 2 * number, access);
    }
    let fields = [
        (guest::GDTR_BASE, entry.gdt.base.raw()),
        (guest::GDTR_LIMIT, entry.gdt.limit.into()),
        (guest::IDTR_BASE, 0),
        (guest::IDTR_LIMIT, 0),
        (guest::RIP, entry.rip),
        (guest::RSP, entry.rsp),
        (guest::RFLAGS, RFLAGS_AT_START),
        (guest::DR7, DR7_AT_START),
        (guest::IA32_DEBUGCTL_FULL, 0),
        (guest::IA32_SYSENTER_CS, 0),
        (guest::IA32_SYSENTER_ESP, 0),
        (guest::IA32_SYSENTER_EIP, 0),
        (guest::INTERRUPTIBILITY_STATE, 0),
        (guest::ACTIVITY_STATE, 0),
        (guest::PENDING_DBG_EXCEPTIONS, 0),
    ];
    fields.into_iter().for_each(|(field, value)| vmcs.write(field, value));
}
