//! Intel VMX without EPT and without unrestricted guest.
//!
//! [`capabilities`] says what the CPU has, and [`setup`] fills the VMCS. [`Vmx`] runs the guest by
//! way of [`enter`], [`exits`] decodes why it came back, and [`failure`] puts a refused VM entry
//! into words. Each other file implements one trait of [`umbra_vcpu::backend`].
#![allow(unsafe_code, reason = "the VMX instructions and the way into the guest")]

mod address_space;
mod capabilities;
mod controls;
mod enter;
mod events;
mod exits;
mod failure;
mod instructions;
mod isolation;
mod reason;
mod registers;
mod retirement;
mod setup;
mod vmcs;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::arch::asm;

use umbra_vcpu::backend::{self, Backend, Exit, Refusal};
use umbra_vcpu::control::cr4_more;
use umbra_vcpu::entry::Entry;
use umbra_vcpu::event::{self, Event};
use x86::msr;
use x86::vmx::vmcs::control::{PrimaryControls, SecondaryControls};
use x86::vmx::vmcs::{control, guest, ro};

use crate::hw::cpu;
use crate::hw::descriptors::Tables;
use crate::hw::phys::HostPage;
use capabilities::{Capabilities, fixed_bits};
use enter::GeneralRegisters;
use exits::info;
use isolation::Saved;
use vmcs::{Translations, Vmcs};

const CR4_VMXE: u64 = 1 << 13;
/// CPUID.1:ECX.XSAVE.
const CPUID_1_ECX_XSAVE: u32 = 1 << 26;

/// The guest's VPID on a CPU with VPIDs; 0 is the hypervisor.
const VPID: u16 = 1;

/// No breakpoints; the bit that is always set.
const DR7_AT_START: u64 = 0x400;

/// Exceptions that exit: #DB, #PF (as the filter says), #AC, #MC. A guest can make delivery of #DB
/// and #AC raise them anew without end (CVE-2015-5307, CVE-2015-8104), which only an intercept
/// breaks.
const EXCEPTIONS: u64 =
    bit(event::DEBUG) | PAGE_FAULT | bit(event::ALIGNMENT_CHECK) | bit(event::MACHINE_CHECK);
const PAGE_FAULT: u64 = bit(event::PAGE_FAULT);

/// #MF exits while the guest's CR0.NE is clear: it does not get it then, but an interrupt.
const FPU_ERROR: u64 = bit(event::FPU_ERROR);

/// The bit of a vector in the exception bitmap.
const fn bit(vector: u8) -> u64 {
    1 << vector
}

const BLOCKED_BY_STI: u64 = 1 << 0;
const BLOCKED_BY_MOV_SS: u64 = 1 << 1;
const BLOCKED_BY_STI_OR_MOV_SS: u64 = BLOCKED_BY_STI | BLOCKED_BY_MOV_SS;
const BLOCKED_BY_NMI: u64 = 1 << 3;

/// IA32_DEBUGCTL.LBR: record branches.
const DEBUGCTL_LBR: u64 = 1 << 0;
/// IA32_DEBUGCTL.BTF: TF steps from branch to branch.
const DEBUGCTL_BTF: u64 = 1 << 1;

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
    registers: GeneralRegisters,
    launched: bool,
    /// Whether translations carry a VPID, so that they survive VM exits, and how to forget them.
    translations: Option<Translations>,
    secondary: SecondaryControls,
    /// Primary controls as they stand in the VMCS.
    primary: u64,
    /// The exception bitmap as it stands in the VMCS, but for isolation.
    exceptions: u64,
    /// VM-entry controls without "IA-32e mode guest".
    entry: u64,
    /// "IA-32e mode guest" as it stands in the VMCS: EFER.LMA of the guest.
    long_mode: bool,
    cr0_fixed: (u64, u64),
    cr4_fixed: (u64, u64),
    /// How many CR3-target values the CPU has; zero if reads of CR3 always exit.
    cr3_targets: usize,
    cr3_reads: bool,
    /// The guest uses PAE paging.
    pae_paging: bool,
    /// Flushes of the guest exit.
    flush_exits: bool,
    /// CR4 bits that flush when they change, and that the guest may change without an exit.
    cr4_flush: u64,
    /// RIP as it stands in the VMCS.
    rip: u64,
    /// RFLAGS as it stands in the VMCS.
    rflags: u64,
    /// IDT-vectoring information of the last exit.
    vectoring: u64,
    /// VM-exit interruption information of the last exit; zero unless that was for an exception or
    /// an NMI.
    interruption: u64,
    /// While an instruction runs in an address space of its own: what to put back after it.
    before_isolation: Option<Saved>,
    _msr_bitmap: Box<HostPage>,
}

impl Vmx {
    /// Enters VMX root operation and prepares a guest that starts at `entry`. Its control registers
    /// must be set before it runs.
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
        let xsave =
            if cpu::cpuid(1, 0).ecx & CPUID_1_ECX_XSAVE != 0 { cr4_more::OSXSAVE } else { 0 };
        let cr4 = cpu::cr4() | cr4_fixed.0 | CR4_VMXE | xsave;
        // SAFETY: VMXE allows VMXON and OSXSAVE allows XSETBV; neither changes how compiled code
        // runs.
        unsafe { asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags)) };
        // SAFETY: CR0 and CR4 have the bits that VMX fixes, and this is the one call.
        let mut vmcs = unsafe { Vmcs::load(&capabilities) }
            .map_err(|e| format!("VMX cannot be switched on: {e}"))?;
        let msr_bitmap = vmcs::msr_bitmap(cpu::PASSED_MSRS);
        setup::write_controls(&mut vmcs, &capabilities, msr_bitmap.hpa().raw());
        setup::write_host_state(&mut vmcs, tables);
        setup::write_guest_state(&mut vmcs, entry);
        let mut registers = GeneralRegisters::new();
        registers.gpr[0] = entry.rax;
        registers.gpr[3] = entry.rbx;
        registers.gpr[6] = entry.rsi;
        Ok(Vmx {
            translations: vmcs.translations(&capabilities),
            vmcs,
            registers,
            launched: false,
            secondary: capabilities.secondary,
            primary: capabilities.primary.into(),
            exceptions: EXCEPTIONS,
            entry: capabilities.entry.into(),
            long_mode: false,
            cr0_fixed,
            cr4_fixed,
            cr3_targets: capabilities.cr3_targets,
            cr3_reads: capabilities.cr3_reads,
            pae_paging: false,
            flush_exits: true,
            cr4_flush: 0,
            rip: entry.rip,
            rflags: setup::RFLAGS_AT_START,
            vectoring: 0,
            interruption: 0,
            before_isolation: None,
            _msr_bitmap: msr_bitmap,
        })
    }

    /// Whether the guest can have RDTSCP.
    fn has_rdtscp(&self) -> bool {
        self.secondary.contains(SecondaryControls::ENABLE_RDTSCP)
    }

    fn update(&mut self, field: u32, value: u64) {
        if self.vmcs.read(field) != value {
            self.vmcs.write(field, value);
        }
    }

    /// # Safety
    /// As [`Vmcs::write_guarded`].
    unsafe fn update_guarded(&mut self, field: u32, value: u64) {
        if self.vmcs.read(field) != value {
            // SAFETY: the caller's.
            unsafe { self.vmcs.write_guarded(field, value) };
        }
    }

    fn switch_primary(&mut self, bit: PrimaryControls, on: bool) {
        let bit = u64::from(bit.bits());
        let primary = if on { self.primary | bit } else { self.primary & !bit };
        if primary != self.primary {
            self.primary = primary;
            // SAFETY: a bit that is switched decides what exits: windows, reads of CR3, INVLPG.
            // None lets the guest load a CR3.
            unsafe { self.vmcs.write_guarded(control::PRIMARY_PROCBASED_EXEC_CONTROLS, primary) };
        }
    }
}

impl Backend for Vmx {
    fn capabilities(&self) -> backend::Capabilities {
        backend::Capabilities {
            rdtscp: self.has_rdtscp(),
            invpcid: self.secondary.contains(SecondaryControls::ENABLE_INVPCID),
            fault_filter: true,
            cr3_reads: self.cr3_reads,
            cr3_targets: self.cr3_targets,
            native_flushes: true,
        }
    }

    fn describe(&self) -> String {
        format!(
            "VMX without EPT, VPID {}, {} CR3 targets",
            if self.translations.is_some() { "on" } else { "not there" },
            self.cr3_targets
        )
    }

    fn enter(&mut self) -> Result<Exit, Refusal> {
        // SAFETY: the host state is that of the hypervisor (`write_host_state`), which does not
        // change it. Guest CR3 is a root of the shadow MMU (`set_controls`), and so is every value
        // that the guest may load without an exit (`set_cr3_targets`): these map the guest's memory
        // only, as a sandbox maps its own (`isolate`). The MSR bitmap passes only MSRs that the
        // hypervisor does not use.
        let failed = unsafe { enter::enter(&raw mut self.registers, self.launched) };
        if failed != 0 {
            let number =
                if failed == 1 { 0 } else { self.vmcs.read(ro::VM_INSTRUCTION_ERROR) as u32 };
            let error = if failed == 1 {
                instructions::VmFail::Invalid
            } else {
                instructions::VmFail::Valid(number)
            };
            return Err(Refusal::Host(format!(
                "VM entry failed: {error} ({})",
                failure::state(&self.vmcs)
            )));
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
        self.interruption = if basic == reason::EXCEPTION_OR_NMI {
            self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO)
        } else {
            0
        };
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
}
