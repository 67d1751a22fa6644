//! Intel VMX without EPT and without unrestricted guest.
//!
//! [`capabilities`] says what the CPU has, [`Vmx`] sets up the VMCS and runs the guest by way of [`enter`],
//! [`exits`] decodes why it came back, [`failure`] puts a refused VM entry into words.
#![allow(unsafe_code, reason = "the VMX instructions and the way into the guest")]

mod capabilities;
mod enter;
mod exits;
mod failure;
mod instructions;
mod vmcs;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::arch::asm;

use umbra_emulator::{DescriptorTable, Rights, Segment, SegmentRegister, SystemSegment, TableRegister};
use umbra_mmu::{Root, RootFormat, Tlb};
use umbra_paging::{Gva, cr0, cr4, efer};
use x86::msr;
use x86::vmx::vmcs::control::{EntryControls, PrimaryControls, SecondaryControls};
use x86::vmx::vmcs::{control, guest, host, ro};

use crate::entry::{Entry, Mode};
use crate::hw::cpu;
use crate::hw::descriptors::{CODE, DATA, TSS, Tables};
use crate::hw::phys::HostPage;
use crate::vcpu::backend::{Backend, CodeMode, Exit, Filter, Refusal, Windows, rflags};
use crate::vcpu::breakpoints::Breakpoints;
use crate::vcpu::control::{Controls, cr4_more, efer_more};
use crate::vcpu::event::Event;
use crate::vcpu::sandbox::{Page, Space};
use capabilities::{Capabilities, fixed_bits};
use enter::Registers;
use exits::info;
use vmcs::Vmcs;

const CR4_VMXE: u64 = 1 << 13;
/// CPUID.1:ECX.XSAVE.
const CPUID_1_ECX_XSAVE: u32 = 1 << 26;

/// CR0 bits that the guest changes without an exit: MP, EM, TS and AM mean the same for the real CPU.
const CR0_GUEST: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 18;
/// The real CR4 always has these: PAE for the shadow tables, MCE for the hypervisor, which a machine check must
/// not shut down without a word.
const CR4_REAL: u64 = cr4::PAE | 1 << 6;
/// CR4 bits that the guest changes without an exit: TSD, DE, OSFXSR and OSXMMEXCPT, which every 64-bit CPU has.
const CR4_GUEST: u64 = 1 << 2 | 1 << 3 | 1 << 9 | 1 << 10;
/// The real CR0 of a guest always has these: NE for VMX, WP for the tracking of guest page tables.
const CR0_REAL: u64 = cr0::PE | cr0::PG | cr0::WP | 1 << 5;
/// CD and NW of the guest have no effect: its memory is write-back always.
const CR0_NOT_REAL: u64 = 3 << 29;

/// CR3-target values that are made use of: CPUs have no more (SDM, "CR3-Target Controls").
const MAX_CR3_TARGETS: usize = 4;

/// The guest's VPID on a CPU with VPIDs; 0 is the hypervisor.
const VPID: u16 = 1;

/// The VPID of instructions that run in an address space of their own.
const ISOLATED_VPID: u16 = 2;

/// What changes while an instruction runs in an address space of its own.
const ISOLATED: [u32; 7] = [
    guest::CR3,
    guest::DR7,
    guest::INTERRUPTIBILITY_STATE,
    guest::PENDING_DBG_EXCEPTIONS,
    control::EXCEPTION_BITMAP,
    control::PAGE_FAULT_ERR_CODE_MASK,
    control::PAGE_FAULT_ERR_CODE_MATCH,
];

/// What is put back after that.
struct Isolation {
    saved: [(u32, u64); ISOLATED.len()],
    primary: u64,
    /// RFLAGS.TF.
    trap: u64,
}

/// No breakpoints; the bit that is always set.
const DR7_AT_START: u64 = 0x400;

/// MSRs that mean nothing to the hypervisor, which uses neither SYSCALL nor SWAPGS: the guest has the real ones. FS
/// and GS bases are in the VMCS.
const PASSED_MSRS: &[u32] = &[
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_KERNEL_GSBASE,
    msr::IA32_FS_BASE,
    msr::IA32_GS_BASE,
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
];

/// Exceptions that exit: #DB, #PF (as the filter says), #AC, #MC. A guest can make delivery of #DB and #AC raise them
/// anew without end (CVE-2015-5307, CVE-2015-8104), which only an intercept breaks.
const EXCEPTIONS: u64 = 1 << 1 | PAGE_FAULT | 1 << 17 | 1 << 18;
const PAGE_FAULT: u64 = 1 << 14;

/// #MF exits while the guest's CR0.NE is clear: it does not get it then, but an interrupt.
const FPU_ERROR: u64 = 1 << 16;
const CR0_NE: u64 = 1 << 5;

const BLOCKED_BY_STI_OR_MOV_SS: u64 = 0b11;
const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
const BLOCKED_BY_NMI: u64 = 1 << 3;

/// Pending debug exceptions: a breakpoint on data or a port that is enabled was met; bits 0 to 3 say which.
const PENDING_ENABLED_BREAKPOINT: u64 = 1 << 12;
/// Pending debug exceptions: single step.
const PENDING_SINGLE_STEP: u64 = 1 << 14;
/// IA32_DEBUGCTL.LBR: record branches.
const DEBUGCTL_LBR: u64 = 1 << 0;
/// IA32_DEBUGCTL.BTF: TF steps from branch to branch.
const DEBUGCTL_BTF: u64 = 1 << 1;

const IA32_DEBUGCTL: u32 = 0x1d9;

/// Nothing but the bit that is always set.
const RFLAGS_AT_START: u64 = 1 << 1;

/// Access rights of a segment register in a VMCS (SDM, "Guest Register State").
mod rights {
    /// Execute/read, accessed, DPL 0, present, 64-bit.
    pub const CODE_64: u64 = 0xa09b;
    /// Execute/read, accessed, DPL 0, present, 32-bit, granular.
    pub const CODE_32: u64 = 0xc09b;
    /// Read/write, accessed, DPL 0, present, 32-bit, granular.
    pub const DATA: u64 = 0xc093;
    /// Busy TSS.
    pub const TSS: u64 = 0x8b;
    /// A null selector.
    pub const UNUSABLE: u64 = 1 << 16;
    /// CS.L.
    pub const LONG: u64 = 1 << 13;
    /// CS.D or SS.B.
    pub const DEFAULT_32: u64 = 1 << 14;
}

/// The guest's virtual CPU in VMX.
pub struct Vmx {
    vmcs: Vmcs,
    registers: Registers,
    launched: bool,
    /// Whether INVVPID takes a single address.
    invvpid_by_address: bool,
    secondary: SecondaryControls,
    /// Primary controls as they stand in the VMCS.
    primary: u64,
    /// Bits of the exception bitmap that are set whatever the page-fault filter says.
    exceptions: u64,
    /// The page-fault filter's bit in it.
    page_faults: u64,
    /// VM-entry controls without "IA-32e mode guest".
    entry: u64,
    /// "IA-32e mode guest" as it stands in the VMCS: EFER.LMA of the guest.
    long_mode: bool,
    cr0_fixed: (u64, u64),
    cr4_fixed: (u64, u64),
    /// How many CR3-target values the CPU has; zero if reads of CR3 always exit.
    cr3_targets: usize,
    /// CR4 bits that flush when they change, and that the guest may change without an exit.
    cr4_flush: u64,
    /// RIP as it stands in the VMCS.
    rip: u64,
    /// RFLAGS as it stands in the VMCS.
    rflags: u64,
    /// IDT-vectoring information of the last exit.
    vectoring: u64,
    /// VM-exit interruption information of the last exit; zero unless that was for an exception or an NMI.
    interruption: u64,
    /// While an instruction runs in an address space of its own.
    isolation: Option<Isolation>,
    _msr_bitmap: Box<HostPage>,
}

impl Vmx {
    /// Enters VMX root operation and prepares a guest that starts at `entry`. Its control registers must be
    /// set before it runs.
    ///
    /// # Errors
    /// A sentence: this CPU's VMX cannot.
    pub fn new(tables: &Tables, entry: &Entry) -> Result<Vmx, String> {
        let capabilities = Capabilities::read()?;
        let cr0_fixed = fixed_bits(msr::IA32_VMX_CR0_FIXED0, msr::IA32_VMX_CR0_FIXED1);
        let cr4_fixed = fixed_bits(msr::IA32_VMX_CR4_FIXED0, msr::IA32_VMX_CR4_FIXED1);
        let cr0 = cpu::cr0();
        if cr0 & cr0_fixed.0 != cr0_fixed.0 {
            return Err(format!("this CPU's VMX wants CR0 {:#x}, and it is {cr0:#x}", cr0_fixed.0));
        }
        let xsave = if cpu::cpuid(1, 0).ecx & CPUID_1_ECX_XSAVE != 0 { cr4_more::OSXSAVE } else { 0 };
        let cr4 = cpu::cr4() | cr4_fixed.0 | CR4_VMXE | xsave;
        // SAFETY: VMXE allows VMXON and OSXSAVE allows XSETBV; neither changes how compiled code runs.
        unsafe { asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags)) };
        // SAFETY: CR0 and CR4 have the bits that VMX fixes, and this is the one call.
        let mut vmcs =
            unsafe { Vmcs::load(&capabilities) }.map_err(|e| format!("VMX cannot be switched on: {e}"))?;
        let msr_bitmap = vmcs::msr_bitmap(PASSED_MSRS);
        write_controls(&mut vmcs, &capabilities, msr_bitmap.hpa().raw());
        write_host_state(&mut vmcs, tables);
        write_guest_state(&mut vmcs, entry);
        let mut registers = Registers::new();
        registers.gpr[0] = entry.rax;
        registers.gpr[3] = entry.rbx;
        registers.gpr[6] = entry.rsi;
        Ok(Vmx {
            vmcs,
            registers,
            launched: false,
            invvpid_by_address: capabilities.invvpid_by_address,
            secondary: capabilities.secondary,
            primary: capabilities.primary.into(),
            exceptions: EXCEPTIONS & !PAGE_FAULT,
            page_faults: PAGE_FAULT,
            entry: capabilities.entry.into(),
            long_mode: false,
            cr0_fixed,
            cr4_fixed,
            cr3_targets: capabilities.cr3_targets,
            cr4_flush: 0,
            rip: entry.rip,
            rflags: RFLAGS_AT_START,
            vectoring: 0,
            interruption: 0,
            isolation: None,
            _msr_bitmap: msr_bitmap,
        })
    }

    /// Whether translations carry a VPID, so that they survive VM exits.
    pub fn has_vpid(&self) -> bool {
        self.secondary.contains(SecondaryControls::ENABLE_VPID)
    }

    /// Whether the guest can have RDTSCP.
    pub fn has_rdtscp(&self) -> bool {
        self.secondary.contains(SecondaryControls::ENABLE_RDTSCP)
    }

    /// Whether the guest can have INVPCID.
    pub fn has_invpcid(&self) -> bool {
        self.secondary.contains(SecondaryControls::ENABLE_INVPCID)
    }

    /// A segment register by its number in the VMCS; the fields of each lie 2 apart.
    fn read_segment(&self, number: u32) -> SegmentRegister {
        let field = |first: u32| self.vmcs.read(first + 2 * number);
        SegmentRegister {
            selector: field(guest::ES_SELECTOR) as u16,
            base: field(guest::ES_BASE),
            limit: field(guest::ES_LIMIT) as u32,
            rights: Rights(field(guest::ES_ACCESS_RIGHTS) as u32),
        }
    }

    fn write_segment(&mut self, number: u32, value: SegmentRegister) {
        self.vmcs.write(guest::ES_SELECTOR + 2 * number, value.selector.into());
        self.vmcs.write(guest::ES_BASE + 2 * number, value.base);
        self.vmcs.write(guest::ES_LIMIT + 2 * number, value.limit.into());
        self.vmcs.write(guest::ES_ACCESS_RIGHTS + 2 * number, value.rights.0.into());
    }

    fn update(&mut self, field: u32, value: u64) {
        if self.vmcs.read(field) != value {
            self.vmcs.write(field, value);
        }
    }

    fn switch_primary(&mut self, bit: PrimaryControls, on: bool) {
        let bit = u64::from(bit.bits());
        let primary = if on { self.primary | bit } else { self.primary & !bit };
        if primary != self.primary {
            self.primary = primary;
            self.vmcs.write(control::PRIMARY_PROCBASED_EXEC_CONTROLS, primary);
        }
    }
}

fn write_controls(vmcs: &mut Vmcs, capabilities: &Capabilities, msr_bitmap: u64) {
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
    fields.into_iter().for_each(|(field, value)| vmcs.write(field, value));
    if capabilities.primary & PrimaryControls::SECONDARY_CONTROLS.bits() != 0 {
        vmcs.write(control::SECONDARY_PROCBASED_EXEC_CONTROLS, capabilities.secondary.bits().into());
        if capabilities.secondary.contains(SecondaryControls::ENABLE_VPID) {
            vmcs.write(control::VPID, VPID.into());
        }
    }
}

/// The hypervisor as it is now, except RSP, which `enter` writes.
fn write_host_state(vmcs: &mut Vmcs, tables: &Tables) {
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
    fields.into_iter().for_each(|(field, value)| vmcs.write(field, value));
}

fn write_guest_state(vmcs: &mut Vmcs, entry: &Entry) {
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

/// LDTR and TR follow the segment registers in the VMCS.
fn system_segment_number(segment: SystemSegment) -> u32 {
    match segment {
        SystemSegment::Ldtr => 6,
        SystemSegment::Tr => 7,
    }
}

/// The fields that hold base and limit of a descriptor table.
fn table_fields(table: DescriptorTable) -> (u32, u32) {
    match table {
        DescriptorTable::Gdt => (guest::GDTR_BASE, guest::GDTR_LIMIT),
        DescriptorTable::Idt => (guest::IDTR_BASE, guest::IDTR_LIMIT),
    }
}

/// Flushes of the guest's translations.
pub struct VmxTlb {
    has_vpid: bool,
    /// Whether INVVPID takes a single address.
    by_address: bool,
}

impl Tlb for VmxTlb {
    fn flush(&mut self) {
        // Without VPIDs every VM entry and exit flushes everything, globals included (SDM, "Operations that
        // Invalidate TLBs and Paging-Structure Caches").
        if self.has_vpid {
            Vmcs::invalidate(VPID);
        }
    }

    fn flush_page(&mut self, _vcpu: usize, _gva: Gva) {
        // No type of INVVPID drops the intermediate entries of other addresses, but those that drop everything.
        self.flush();
    }

    fn flush_fault(&mut self, _vcpu: usize, gva: Gva) {
        if self.has_vpid && self.by_address && gva.is_canonical() {
            Vmcs::invalidate_address(VPID, gva);
        } else {
            self.flush();
        }
    }
}

impl Backend for Vmx {
    type Tlb = VmxTlb;

    fn tlb(&self) -> VmxTlb {
        VmxTlb { has_vpid: self.has_vpid(), by_address: self.invvpid_by_address }
    }

    fn enter(&mut self) -> Result<Exit, Refusal> {
        // SAFETY: the host state is that of the hypervisor (`write_host_state`), which does not change it; guest
        // CR3 is a root of the shadow MMU (`set_controls`), and so is every value that the guest may load by itself
        // (`set_cr3_targets`): these map the guest's memory only, as a sandbox maps its own (`isolate`); the MSR bitmap passes only MSRs that the hypervisor
        // does not use.
        let failed = unsafe { enter::enter(&raw mut self.registers, self.launched) };
        if failed != 0 {
            let number = if failed == 1 { 0 } else { self.vmcs.read(ro::VM_INSTRUCTION_ERROR) as u32 };
            let error =
                if failed == 1 { instructions::VmFail::Invalid } else { instructions::VmFail::Valid(number) };
            return Err(Refusal::Host(format!("VM entry failed: {error} ({})", failure::state(&self.vmcs))));
        }
        const ENTRY_FAILURE: u64 = 1 << 31;
        let reason = self.vmcs.read(ro::EXIT_REASON);
        let basic = reason as u32 & 0xffff;
        if reason & ENTRY_FAILURE != 0 {
            return Err(failure::describe(&self.vmcs, basic));
        }
        self.launched = true;
        self.rip = self.vmcs.read(guest::RIP);
        self.rflags = self.vmcs.read(guest::RFLAGS);
        self.vectoring = self.vmcs.read(ro::IDT_VECTORING_INFO);
        self.interruption = if basic == 0 { self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO) } else { 0 };
        let vectored = self.vectoring & info::VALID != 0;
        if vectored || self.interruption & info::NMI_UNBLOCKING != 0 {
            self.repair_nmi_blocking();
        }
        if self.interruption & (info::TYPE | info::VECTOR) == info::PAGE_FAULT {
            if !vectored {
                self.keep_resume_flag();
            }
            return Ok(self.page_fault());
        }
        let exit = self.decode(basic);
        if exit == Exit::Reflect(Event::debug()) {
            self.accept_debug_exception();
        }
        Ok(exit)
    }

    fn interrupted_event(&self) -> Option<Event> {
        if self.vectoring & info::VALID == 0 { None } else { Some(self.vectored_event()) }
    }

    fn gpr(&self, number: u8) -> u64 {
        if number == 4 { self.vmcs.read(guest::RSP) } else { self.registers.gpr[usize::from(number & 15)] }
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        if number == 4 {
            self.vmcs.write(guest::RSP, value);
        } else {
            self.registers.gpr[usize::from(number & 15)] = value;
        }
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
        self.vmcs.write(guest::RIP, rip);
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        if rflags != self.rflags {
            self.rflags = rflags;
            self.vmcs.write(guest::RFLAGS, rflags);
        }
    }

    fn cpl(&self) -> u8 {
        // SS.DPL is the CPL (SDM, "Guest Register State").
        (self.vmcs.read(guest::SS_ACCESS_RIGHTS) >> 5 & 3) as u8
    }

    fn code_mode(&self) -> CodeMode {
        let access = self.vmcs.read(guest::CS_ACCESS_RIGHTS);
        if access & rights::LONG != 0 && self.long_mode {
            CodeMode::Bits64
        } else if access & rights::DEFAULT_32 != 0 {
            CodeMode::Bits32
        } else {
            CodeMode::Bits16
        }
    }

    fn stack_mode(&self) -> CodeMode {
        if self.code_mode() == CodeMode::Bits64 {
            CodeMode::Bits64
        } else if self.vmcs.read(guest::SS_ACCESS_RIGHTS) & rights::DEFAULT_32 != 0 {
            CodeMode::Bits32
        } else {
            CodeMode::Bits16
        }
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        self.read_segment(segment as u32)
    }

    fn set_segment(&mut self, segment: Segment, value: SegmentRegister) {
        self.write_segment(segment as u32, value);
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        // In 64-bit mode the other segments start at 0, whatever their descriptors say.
        if !matches!(segment, Segment::Fs | Segment::Gs) && self.code_mode() == CodeMode::Bits64 {
            return 0;
        }
        self.vmcs.read(guest::ES_BASE + 2 * segment as u32)
    }

    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister {
        self.read_segment(system_segment_number(segment))
    }

    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister) {
        self.write_segment(system_segment_number(segment), value);
    }

    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister {
        let (base, limit) = table_fields(table);
        TableRegister { base: self.vmcs.read(base), limit: self.vmcs.read(limit) as u16 }
    }

    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister) {
        let (base, limit) = table_fields(table);
        self.vmcs.write(base, value.base);
        self.vmcs.write(limit, value.limit.into());
    }

    fn has_16_bit_tss(&self) -> bool {
        const BUSY_16: u64 = 3;
        self.vmcs.read(guest::TR_ACCESS_RIGHTS) & 0xf == BUSY_16
    }

    fn cr0(&self) -> u64 {
        self.vmcs.read(control::CR0_READ_SHADOW) & !CR0_GUEST | self.vmcs.read(guest::CR0) & CR0_GUEST
    }

    fn cr4(&self) -> u64 {
        let own = CR4_GUEST | self.cr4_flush;
        self.vmcs.read(control::CR4_READ_SHADOW) & !own | self.vmcs.read(guest::CR4) & own
    }

    fn set_controls(&mut self, controls: &Controls, root: Root, loadable: bool) {
        let paging_off = root.format == RootFormat::Pae;
        self.long_mode = !paging_off;
        let real_cr0 = (controls.cr0 & !CR0_NOT_REAL | CR0_REAL | self.cr0_fixed.0) & self.cr0_fixed.1;
        let without = if paging_off { cr4::SMEP | cr4::SMAP | cr4::PCIDE } else { 0 };
        let real_cr4 = (controls.cr4 & !without | CR4_REAL | self.cr4_fixed.0) & self.cr4_fixed.1;
        let entry = if paging_off {
            self.entry
        } else {
            self.entry | u64::from(EntryControls::IA32E_MODE_GUEST.bits())
        };
        let pcid = if paging_off { 0 } else { controls.pcid() };
        let cr3 = if loadable { controls.cr3 } else { root.hpa.raw() | pcid };
        debug_assert!(!loadable || cr3 & !0xfff == root.hpa.raw(), "an identity root lies where CR3 says");
        let fpu_error = if controls.cr0 & CR0_NE == 0 { FPU_ERROR } else { 0 };
        self.exceptions = self.exceptions & !FPU_ERROR | fpu_error;
        self.update(control::EXCEPTION_BITMAP, self.exceptions | self.page_faults);
        self.update(control::CR0_READ_SHADOW, controls.cr0);
        self.update(control::CR4_READ_SHADOW, controls.cr4);
        self.update(guest::CR0, real_cr0);
        self.update(guest::CR4, real_cr4);
        self.update(guest::CR3, cr3);
        self.update(control::VMENTRY_CONTROLS, entry);
        // LMA and LME of the guest come from "IA-32e mode guest", those of the host from "host address-space
        // size" (SDM, "Loading Guest Control Registers, Debug Registers, and MSRs"); the rest is real.
        const OWN: u64 = efer_more::SCE | efer::NXE;
        let real = cpu::read_msr(msr::IA32_EFER);
        let wanted = real & !OWN | controls.efer & OWN;
        if real != wanted {
            // SAFETY: the hypervisor's page tables have no NX bits, and it uses no SYSCALL.
            unsafe { cpu::write_msr(msr::IA32_EFER, wanted) };
        }
    }

    fn set_cr2(&mut self, gva: Gva) {
        // SAFETY: the hypervisor takes no page faults that it returns from.
        unsafe { asm!("mov cr2, {}", in(reg) gva.raw(), options(nomem, nostack, preserves_flags)) };
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
        // SAFETY: the caller checked the value against CPUID; the hypervisor uses no extended state, and CR4.OSXSAVE is
        // set if there is XSETBV at all.
        unsafe {
            asm!(
                "xsetbv",
                in("ecx") 0,
                in("eax") value as u32,
                in("edx") (value >> 32) as u32,
                options(nomem, nostack, preserves_flags),
            );
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(control::TSC_OFFSET_FULL, offset);
    }

    fn instruction_length(&self) -> u8 {
        self.vmcs.read(ro::VMEXIT_INSTRUCTION_LEN) as u8
    }

    fn is_plain(&self) -> bool {
        self.code_mode() == CodeMode::Bits64
            && self.rflags() & rflags::TF == 0
            && !Breakpoints::enabled(self.vmcs.read(guest::DR7))
    }

    fn breakpoints(&self) -> Breakpoints {
        let dr7 = self.vmcs.read(guest::DR7);
        if !Breakpoints::enabled(dr7) {
            return Breakpoints::default();
        }
        let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
        // SAFETY: reading changes nothing. They are the guest's all the time.
        unsafe {
            asm!(
                "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
                out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3,
                options(nomem, nostack, preserves_flags)
            );
        }
        Breakpoints::new([dr0, dr1, dr2, dr3], dr7, self.cr4() & cr4_more::DE != 0)
    }

    fn retire(&mut self, met: u8) {
        self.clear(guest::INTERRUPTIBILITY_STATE, BLOCKED_BY_STI_OR_MOV_SS);
        let flags = self.rflags();
        if flags & rflags::RF != 0 {
            self.set_rflags(flags & !rflags::RF);
        }
        let mut due = 0;
        if met != 0 {
            due |= PENDING_ENABLED_BREAKPOINT | u64::from(met);
        }
        if flags & rflags::TF != 0 && self.vmcs.read(guest::IA32_DEBUGCTL_FULL) & DEBUGCTL_BTF == 0 {
            due |= PENDING_SINGLE_STEP;
        }
        if due != 0 {
            let pending = self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS);
            self.vmcs.write(guest::PENDING_DBG_EXCEPTIONS, pending | due);
        }
    }

    fn block_by_mov_ss(&mut self) {
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE);
        self.vmcs.write(guest::INTERRUPTIBILITY_STATE, state | BLOCKED_BY_MOV_SS);
    }

    fn block_nmis(&mut self, blocked: bool) {
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & !BLOCKED_BY_NMI;
        let bit = if blocked { BLOCKED_BY_NMI } else { 0 };
        self.update(guest::INTERRUPTIBILITY_STATE, state | bit);
    }

    fn clear_local_breakpoints(&mut self) {
        /// L0 to L3 and LE.
        const LOCAL: u64 = 0x155;
        let dr7 = self.vmcs.read(guest::DR7);
        self.update(guest::DR7, dr7 & !LOCAL);
    }

    fn report_task_switch_trap(&mut self) {
        const BT: u64 = 1 << 15;
        let dr6: u64;
        // SAFETY: the debug registers DR0 to DR3 and DR6 are the guest's all the time.
        unsafe { asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags)) };
        // SAFETY: as above; all bits written exist.
        unsafe { asm!("mov dr6, {}", in(reg) dr6 | BT, options(nomem, nostack, preserves_flags)) };
    }

    fn debug_trap_due(&self) -> bool {
        const DUE: u64 = PENDING_ENABLED_BREAKPOINT | PENDING_SINGLE_STEP;
        self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS) & DUE != 0
    }

    fn inject(&mut self, event: Event) {
        // Delivery ends what STI and MOV SS block; VM entry refuses the state otherwise if RFLAGS.TF is set (SDM,
        // "Checks on Guest Non-Register State", pending debug exceptions).
        self.clear(guest::INTERRUPTIBILITY_STATE, BLOCKED_BY_STI_OR_MOV_SS);
        let mut field =
            info::VALID | exits::event_type(event.kind) << info::TYPE_SHIFT | u64::from(event.vector);
        if let Some(error_code) = event.error_code {
            field |= info::ERROR_CODE;
            self.vmcs.write(control::VMENTRY_EXCEPTION_ERR_CODE, error_code.into());
        }
        if event.instruction_length != 0 {
            self.vmcs.write(control::VMENTRY_INSTRUCTION_LEN, event.instruction_length.into());
        }
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, field);
    }

    fn interruptible(&self) -> bool {
        self.rflags() & rflags::IF != 0
            && self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & BLOCKED_BY_STI_OR_MOV_SS == 0
            && self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS) == 0
    }

    fn nmi_ready(&self) -> bool {
        self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & (BLOCKED_BY_NMI | BLOCKED_BY_STI_OR_MOV_SS) == 0
            && self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS) == 0
    }

    fn set_windows(&mut self, windows: Windows) {
        self.switch_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING, windows.interrupt);
        self.switch_primary(PrimaryControls::NMI_WINDOW_EXITING, windows.nmi);
    }

    fn set_page_fault_filter(&mut self, filter: Filter) {
        self.page_faults = if filter.bitmap_bit { PAGE_FAULT } else { 0 };
        self.update(control::EXCEPTION_BITMAP, self.exceptions | self.page_faults);
        self.vmcs.write(control::PAGE_FAULT_ERR_CODE_MASK, filter.mask.bits().into());
        self.vmcs.write(control::PAGE_FAULT_ERR_CODE_MATCH, filter.matched.bits().into());
    }

    fn cr3_targets(&self) -> usize {
        self.cr3_targets
    }

    fn set_cr3_targets(&mut self, values: &[u64], reads: bool) {
        assert!(values.len() <= self.cr3_targets, "the CPU has so many CR3 targets");
        const TARGETS: [u32; MAX_CR3_TARGETS] = [
            control::CR3_TARGET_VALUE0,
            control::CR3_TARGET_VALUE1,
            control::CR3_TARGET_VALUE2,
            control::CR3_TARGET_VALUE3,
        ];
        for (field, &value) in TARGETS.into_iter().zip(values) {
            self.vmcs.write(field, value);
        }
        self.update(control::CR3_TARGET_COUNT, values.len() as u64);
        self.switch_primary(PrimaryControls::CR3_STORE_EXITING, !reads);
    }

    fn cr3(&self) -> u64 {
        self.vmcs.read(guest::CR3)
    }

    fn isolate<P: Page>(&mut self, space: &Space<P>) {
        const WINDOWS: PrimaryControls =
            PrimaryControls::INTERRUPT_WINDOW_EXITING.union(PrimaryControls::NMI_WINDOW_EXITING);
        let saved = ISOLATED.map(|field| (field, self.vmcs.read(field)));
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE);
        let isolated = [
            (guest::CR3, space.root().raw()),
            (guest::DR7, DR7_AT_START),
            (guest::INTERRUPTIBILITY_STATE, state & !BLOCKED_BY_STI_OR_MOV_SS),
            (guest::PENDING_DBG_EXCEPTIONS, 0),
            (control::EXCEPTION_BITMAP, u32::MAX.into()),
            (control::PAGE_FAULT_ERR_CODE_MASK, 0),
            (control::PAGE_FAULT_ERR_CODE_MATCH, 0),
        ];
        isolated.into_iter().for_each(|(field, value)| self.vmcs.write(field, value));
        self.isolation = Some(Isolation { saved, primary: self.primary, trap: self.rflags & rflags::TF });
        self.switch_primary(WINDOWS, false);
        self.set_rflags(self.rflags & !(rflags::TF | rflags::RF));
        if self.has_vpid() {
            self.vmcs.write(control::VPID, ISOLATED_VPID.into());
            Vmcs::invalidate(ISOLATED_VPID);
        }
    }

    fn end_isolation(&mut self) {
        let Some(Isolation { saved, primary, trap }) = self.isolation.take() else { return };
        saved.into_iter().for_each(|(field, value)| self.vmcs.write(field, value));
        self.primary = primary;
        self.vmcs.write(control::PRIMARY_PROCBASED_EXEC_CONTROLS, primary);
        self.set_rflags(self.rflags | trap);
        if self.has_vpid() {
            self.vmcs.write(control::VPID, VPID.into());
        }
    }

    fn set_flush_exits(&mut self, exit: bool) {
        let (cr4, own) = (self.cr4(), if exit { 0 } else { cr4::PGE });
        self.switch_primary(PrimaryControls::INVLPG_EXITING, exit);
        // What the guest reads stays what it was.
        self.vmcs.write(control::CR4_READ_SHADOW, cr4);
        self.cr4_flush = own;
        self.vmcs.write(control::CR4_GUEST_HOST_MASK, !(CR4_GUEST | own));
    }
}
