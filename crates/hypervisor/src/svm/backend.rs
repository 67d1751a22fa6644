//! One virtual CPU in SVM.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;

use umbra_paging::cr0;
use umbra_vcpu::backend::{self, Backend, Events, Exit, Refusal, rflags};
use umbra_vcpu::breakpoints::Breakpoints;
use umbra_vcpu::entry::{Entry, Mode};
use umbra_vcpu::event::{DEBUG, Event, EventKind};
use umbra_vcpu::svm::capabilities::{Capabilities, VM_CR, is_candidate};
use umbra_vcpu::svm::exits::{code, decode};
use umbra_vcpu::svm::failure::{SVME, describe};
use umbra_vcpu::svm::permissions::{IO_MAP, MSR_MAP, msr_map};
use umbra_vcpu::svm::vmcb::{
    Register, Save, Vmcb, intercept1, intercept2, intercept3, interrupt, part,
};
use x86::msr;

use super::controls::IA32_DEBUGCTL;
use super::enter::{GeneralRegisters, enter};
use super::instructions;
use super::isolation::Saved;
use super::tlb::Request;
use crate::hw::descriptors::Tables;
use crate::hw::phys::{HostPage, hpa_of};
use crate::hw::{cpu, interrupts};

/// VM_HSAVE_PA: the page in which VMRUN keeps the host's state.
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// CPUID.1:ECX.XSAVE.
const CPUID_1_ECX_XSAVE: u32 = 1 << 26;
/// CPUID.8000_0001H:EDX.RDTSCP.
const CPUID_RDTSCP: u32 = 1 << 27;

/// The real CR0 of a guest always has these. PG: without nested paging a guest that ran without it
/// would address the host's memory. WP: for the tracking of guest page tables. NE: the platform has
/// no line for the other way.
pub(super) const CR0_REAL: u64 = cr0::PE | cr0::PG | cr0::WP | 1 << 5;

/// Exceptions that exit: #DB, #GP, #PF, #AC, #MC. A guest can make delivery of #DB and #AC raise
/// them anew without end (CVE-2015-5307, CVE-2015-8104). #GP is what user mode gets of SVM's own
/// instructions, where a guest without SVM has #UD.
pub(super) const EXCEPTIONS: u32 = 1 << 1 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 18;

/// Always intercepted: what belongs to the host, and what the virtual CPU does itself. A task
/// switch loads CR3 from the TSS. Of INT n whose delivery page-faults Bochs 2.7 leaves another
/// event in EXITINTINFO, so the emulator carries it out.
const INTERCEPTS_1: u32 = intercept1::INTR
    | intercept1::NMI
    | intercept1::SMI
    | intercept1::INIT
    | intercept1::VINTR
    | intercept1::RDPMC
    | intercept1::CPUID
    | intercept1::RSM
    | intercept1::INT_N
    | intercept1::INVD
    | intercept1::HLT
    | intercept1::INVLPG
    | intercept1::INVLPGA
    | intercept1::IO
    | intercept1::MSR
    | intercept1::TASK_SWITCH
    | intercept1::SHUTDOWN;
/// EFER.SVME is set under VMRUN, so every instruction of SVM is live unless it is intercepted:
/// VMLOAD and VMSAVE take host-physical addresses, CLGI would hang the host.
const INTERCEPTS_2: u32 = intercept2::VMRUN
    | intercept2::VMMCALL
    | intercept2::VMLOAD
    | intercept2::VMSAVE
    | intercept2::STGI
    | intercept2::CLGI
    | intercept2::SKINIT
    | intercept2::ICEBP
    | intercept2::WBINVD
    | intercept2::MONITOR
    | intercept2::MWAIT
    | intercept2::MWAIT_ARMED
    | intercept2::XSETBV
    | intercept2::RDPRU;
/// INVPCID comes with the flushes.
pub(super) const INTERCEPTS_3: u32 = intercept3::INVLPGB
    | intercept3::ILLEGAL_INVLPGB
    | intercept3::INVPCID
    | intercept3::MCOMMIT
    | intercept3::TLBSYNC;

/// Accesses to control registers that exit, a bit for each.
const CR_WRITES: u16 = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 8;
pub(super) const CR_READS: u16 = CR3_READ | 1 << 8;
/// MOV from CR3: while the real one does not hold the guest's value.
pub(super) const CR3_READ: u16 = 1 << 3;

/// The guest's ASID.
pub(super) const ASID: u32 = 1;

/// DR6 and DR7 with nothing but the bits that are always set.
const DR6_AT_START: u64 = 0xffff_0ff0;
pub(super) const DR7_AT_START: u64 = 0x400;

/// Nothing but the bit that is always set.
const RFLAGS_AT_START: u64 = 1 << 1;

/// A permission map.
#[repr(C, align(4096))]
struct Map<const BYTES: usize>([u8; BYTES]);

/// Memory that the CPU knows by its physical address, filled with zeros.
fn zeroed<const BYTES: usize>() -> Box<Map<BYTES>> {
    // SAFETY: zeros are a valid value.
    unsafe { Box::<Map<BYTES>>::new_zeroed().assume_init() }
}

/// The guest's virtual CPU in SVM.
pub struct Svm {
    pub(super) vmcb: Box<Vmcb>,
    pub(super) registers: GeneralRegisters,
    pub(super) capabilities: Capabilities,
    /// Parts of the VMCB that were written since the last entry.
    pub(super) changed: u32,
    /// CR0 and CR4 as the guest reads them.
    pub(super) cr0: u64,
    pub(super) cr4: u64,
    /// CR3 as it was set: no load of it goes without an exit.
    pub(super) cr3: u64,
    pub(super) flushes: Rc<Request>,
    /// Exits are asked for as soon as the guest can take an interrupt.
    pub(super) interrupt_window: bool,
    pub(super) nmis_blocked: bool,
    /// Bits of DR6 for the #DB that comes before the next instruction: the VMCB has no place for
    /// it.
    pub(super) pending_debug: u64,
    /// The last instruction carried out has loaded SS.
    pub(super) held_by_mov_ss: bool,
    /// Whether the CPU has IA32_DEBUGCTL.
    pub(super) has_debugctl: bool,
    /// IA32_DEBUGCTL as the guest reads it.
    pub(super) debugctl: u64,
    /// The exceptions that exit, but for isolation.
    pub(super) exceptions: u32,
    pub(super) has_rdtscp: bool,
    /// While an instruction runs in an address space of its own.
    pub(super) isolation: Option<Saved>,
    _host_save: Box<HostPage>,
    _host: Box<HostPage>,
    _msr_map: Box<Map<MSR_MAP>>,
    _io_map: Box<Map<IO_MAP>>,
}

impl Svm {
    /// Whether this is a CPU that has SVM, or one of a vendor that has no other extension.
    pub fn is_candidate() -> bool {
        is_candidate(|leaf| cpu::cpuid(leaf, 0))
    }

    /// Switches SVM on and prepares a guest that starts at `entry`. Its control registers must be
    /// set before it runs.
    ///
    /// # Errors
    /// A sentence: this CPU's SVM cannot.
    pub fn new(_: &Tables, entry: &Entry) -> Result<Svm, String> {
        let capabilities =
            Capabilities::find(|leaf| cpu::cpuid(leaf, 0), || cpu::try_read_msr(VM_CR))?;
        if cpu::cpuid(1, 0).ecx & CPUID_1_ECX_XSAVE != 0 {
            cpu::allow_xsetbv();
        }
        // If an instruction exits that the guest has stepped on, Bochs 2.7 keeps the trap that was
        // due behind it, and raises it in the host.
        interrupts::ignore_debug_traps();
        let (host_save, host) = (HostPage::new(), HostPage::new());
        let (mut msrs, mut ports) = (zeroed::<MSR_MAP>(), zeroed::<IO_MAP>());
        msr_map(cpu::PASSED_MSRS, &mut msrs.0);
        ports.0.fill(0xff);
        // SAFETY: SVME and the page change nothing for compiled code; the page is the CPU's from
        // now on.
        unsafe {
            cpu::write_msr(msr::IA32_EFER, cpu::read_msr(msr::IA32_EFER) | SVME);
            cpu::write_msr(VM_HSAVE_PA, host_save.hpa().raw());
            instructions::vmsave(host.hpa());
        }
        let mut vmcb = Box::<Vmcb>::default();
        let control = &mut vmcb.control;
        control.cr_writes = CR_WRITES;
        control.exceptions = EXCEPTIONS;
        control.intercept1 = INTERCEPTS_1;
        control.intercept2 = INTERCEPTS_2;
        control.intercept3 = INTERCEPTS_3;
        control.io_map = hpa_of(&*ports).raw();
        control.msr_map = hpa_of(&*msrs).raw();
        control.asid = ASID;
        write_guest_state(&mut vmcb.save, entry);
        let mut registers =
            GeneralRegisters { gpr: [0; 16], guest: hpa_of(&*vmcb).raw(), host: host.hpa().raw() };
        registers.gpr[3] = entry.rbx;
        registers.gpr[6] = entry.rsi;
        let flushes = Rc::new(Request::default());
        flushes.flush();
        Ok(Svm {
            vmcb,
            registers,
            capabilities,
            changed: part::ALL,
            cr0: 0,
            cr4: 0,
            cr3: 0,
            flushes,
            interrupt_window: false,
            nmis_blocked: false,
            pending_debug: 0,
            held_by_mov_ss: false,
            has_debugctl: cpu::try_read_msr(IA32_DEBUGCTL).is_some(),
            has_rdtscp: cpu::cpuid(0x8000_0001, 0).edx & CPUID_RDTSCP != 0,
            debugctl: 0,
            exceptions: EXCEPTIONS,
            isolation: None,
            _host_save: host_save,
            _host: host,
            _msr_map: msrs,
            _io_map: ports,
        })
    }

    /// What keeps the guest in, whatever was written to the VMCB before.
    fn check(&self) {
        let (control, save) = (&self.vmcb.control, &self.vmcb.save);
        assert!(
            save.cr0 & CR0_REAL == CR0_REAL,
            "a guest without paging would address the host's memory"
        );
        assert!(save.efer & SVME != 0 && control.asid != 0, "VMRUN wants SVME and a guest's ASID");
        assert!(
            control.intercept1 & INTERCEPTS_1 | intercept1::INVLPG == INTERCEPTS_1,
            "intercepts are on"
        );
        assert!(control.intercept2 == INTERCEPTS_2, "instructions of SVM are intercepted");
        assert!(control.cr_writes == CR_WRITES, "no CR3 is loaded without an exit");
        assert!(control.exceptions & EXCEPTIONS == EXCEPTIONS, "page faults are intercepted");
        assert!(control.nested_paging == 0, "guest-physical addresses are no host-physical ones");
    }

    /// A load of a control register that was not seen.
    fn escaped(&self) -> Option<Refusal> {
        let save = &self.vmcb.save;
        let shutdown = self.vmcb.control.exit_code == code::SHUTDOWN;
        if shutdown || (save.cr3 == self.cr3 && save.cr0 & CR0_REAL == CR0_REAL) {
            return None;
        }
        Some(Refusal::Host(format!(
            "the guest has loaded CR3 {:#x} or CR0 {:#x} without an exit, by a task switch that this machine does not \
             intercept; run this guest on another machine, such as ryzen or penryn",
            save.cr3, save.cr0
        )))
    }

    /// The ASID of isolated instructions.
    pub(super) fn isolated_asid(&self) -> u32 {
        super::isolation::ISOLATED_ASID.min(self.capabilities.asids - 1)
    }

    pub(super) fn switch_intercept1(&mut self, bit: u32, on: bool) {
        let control = &mut self.vmcb.control;
        let value = if on { control.intercept1 | bit } else { control.intercept1 & !bit };
        if value != control.intercept1 {
            control.intercept1 = value;
            self.changed |= part::INTERCEPTS;
        }
    }
}

fn write_guest_state(save: &mut Save, entry: &Entry) {
    /// Execute/read, accessed, DPL 0, present, granular; 64-bit or 32-bit.
    const CODE_64: u16 = 0xa9b;
    const CODE_32: u16 = 0xc9b;
    /// Read/write, accessed, DPL 0, present, 32-bit, granular.
    const DATA: u16 = 0xc93;
    /// Busy TSS, present.
    const TSS: u16 = 0x8b;
    let segment =
        |selector, attributes| Register { selector, attributes, limit: 0xffff_ffff, base: 0 };
    let data = segment(entry.gdt.data, DATA);
    let code = match entry.mode {
        Mode::Long { .. } => CODE_64,
        Mode::Protected => CODE_32,
    };
    save.cs = segment(entry.gdt.code, code);
    for register in [&mut save.es, &mut save.ss, &mut save.ds, &mut save.fs, &mut save.gs] {
        *register = data;
    }
    save.tr = Register { attributes: TSS, limit: 0xffff, ..Register::default() };
    save.gdtr = Register {
        limit: entry.gdt.limit.into(),
        base: entry.gdt.base.raw(),
        ..Register::default()
    };
    save.rip = entry.rip;
    save.rsp = entry.rsp;
    save.rax = entry.rax;
    save.rflags = RFLAGS_AT_START;
    save.dr6 = DR6_AT_START;
    save.dr7 = DR7_AT_START;
}

impl Backend for Svm {
    fn capabilities(&self) -> backend::Capabilities {
        backend::Capabilities {
            rdtscp: self.has_rdtscp,
            // The CPU has it, if CPUID says so.
            invpcid: true,
            fault_filter: false,
            cr3_reads: true,
            // Every load of CR3 is intercepted.
            cr3_targets: 0,
            native_flushes: true,
        }
    }

    fn describe(&self) -> String {
        let Capabilities { asids, next_rip, flush_by_asid, decode_assists, .. } = self.capabilities;
        let has = |there| if there { "with" } else { "without" };
        format!(
            "SVM without nested paging, {asids} ASIDs, {} flush by ASID, {} next RIP, {} decode assists",
            has(flush_by_asid),
            has(next_rip),
            has(decode_assists)
        )
    }

    fn enter(&mut self) -> Result<Exit, Refusal> {
        self.deliver_debug_trap();
        self.choose_flush();
        let window =
            if self.interrupt_window && self.isolation.is_none() { interrupt::V_IRQ } else { 0 };
        self.vmcb.control.interrupt = interrupt::V_INTR_MASKING | interrupt::V_IGN_TPR | window;
        self.changed |= part::INTERRUPTS;
        self.vmcb.control.clean =
            if self.capabilities.clean_bits { part::ALL & !self.changed } else { 0 };
        self.changed = 0;
        self.check();
        // SAFETY: `new` set SVME, VM_HSAVE_PA and the host's page up, and the VMCB lies where it
        // says. CR3 is a root of the shadow MMU (`set_controls`) or of a sandbox (`isolate`): both
        // map memory of their own only. `check` has seen that paging is on, that no instruction of
        // SVM and no load of CR3 goes without an exit. The MSR map passes only MSRs that are
        // switched.
        unsafe { enter(&raw mut self.registers, &raw mut *self.vmcb) };
        let control = &mut self.vmcb.control;
        control.event = 0;
        if control.exit_code == code::INVALID {
            return Err(Refusal::Host(describe(&self.vmcb)));
        }
        if let Some(refusal) = self.escaped() {
            return Err(refusal);
        }
        // Injecting the NMI again blocks them again.
        if self.interrupted_event().is_some_and(|event| event.kind == EventKind::Nmi) {
            self.block_nmis(false);
        }
        let exit = decode(&self.vmcb.control, self.capabilities.decode_assists);
        match exit {
            Exit::Reflect(Event { vector: DEBUG, .. }) => self.accept_debug_exception(),
            // A breakpoint on the instruction was reported already.
            Exit::PageFault { .. }
                if self.interrupted_event().is_none()
                    && Breakpoints::enabled(self.vmcb.save.dr7) =>
            {
                self.vmcb.save.rflags |= rflags::RF;
            }
            _ => (),
        }
        Ok(exit)
    }
}
