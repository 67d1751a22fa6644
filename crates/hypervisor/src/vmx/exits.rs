//! From the exit reason to [`Exit`] (SDM, "VMX Basic Exit Reasons" and "Exit Qualification").

use core::arch::asm;

use umbra_emulator::{Segment, Source};
use umbra_paging::Gva;
use umbra_vcpu::backend::{CodeMode, Exit, Registers, rflags};
use umbra_vcpu::breakpoints::Breakpoints;
use umbra_vcpu::event::{Event, EventKind, MACHINE_CHECK, PAGE_FAULT, Raiser};
use x86::vmx::vmcs::{guest, ro};

use super::{BLOCKED_BY_NMI, DEBUGCTL_BTF, DEBUGCTL_LBR, Vmx, reason};

/// Interruption-information fields (SDM, "Format of the VM-Exit Interruption-Information Field").
pub mod info {
    /// The field holds an event.
    pub const VALID: u64 = 1 << 31;
    /// An error code belongs to it.
    pub const ERROR_CODE: u64 = 1 << 11;
    /// VM-exit interruption information: IRET had just unblocked NMIs.
    pub const NMI_UNBLOCKING: u64 = 1 << 12;
    /// The vector.
    pub const VECTOR: u64 = 0xff;
    /// The event's type starts here.
    pub const TYPE_SHIFT: u32 = 8;
    /// The type.
    pub const TYPE: u64 = 7 << TYPE_SHIFT;
    /// Type external interrupt.
    pub const TYPE_INTERRUPT: u64 = 0;
    /// Type NMI.
    pub const TYPE_NMI: u64 = 2;
    /// Type hardware exception.
    pub const TYPE_EXCEPTION: u64 = 3;
    /// Type software interrupt.
    pub const TYPE_INT_N: u64 = 4;
    /// Type privileged software exception.
    pub const TYPE_INT1: u64 = 5;
    /// Type software exception.
    pub const TYPE_INT3_OR_INTO: u64 = 6;
    /// Type and vector of a #PF.
    pub const PAGE_FAULT: u64 = TYPE_EXCEPTION << TYPE_SHIFT | super::PAGE_FAULT as u64;
}

/// The event type's number in interruption information.
pub fn event_type(kind: EventKind) -> u64 {
    match kind {
        EventKind::Interrupt => info::TYPE_INTERRUPT,
        EventKind::Nmi => info::TYPE_NMI,
        EventKind::Exception => info::TYPE_EXCEPTION,
        EventKind::Software { raiser: Raiser::IntN, .. } => info::TYPE_INT_N,
        EventKind::Software { raiser: Raiser::Int1, .. } => info::TYPE_INT1,
        EventKind::Software { raiser: Raiser::Int3OrInto, .. } => info::TYPE_INT3_OR_INTO,
    }
}

impl Vmx {
    /// Decodes the exit with basic reason `reason`.
    #[inline(never)]
    pub(super) fn decode(&self, reason: u32) -> Exit {
        let qualification = || self.vmcs.read(ro::EXIT_QUALIFICATION);
        match reason {
            reason::EXCEPTION_OR_NMI => self.exception_or_nmi(),
            reason::EXTERNAL_INTERRUPT => Exit::Interrupt,
            reason::TRIPLE_FAULT => Exit::TripleFault,
            // Signals to the machine, not to the guest.
            reason::INIT_SIGNAL | reason::STARTUP_IPI | reason::IO_SMI | reason::OTHER_SMI => {
                Exit::Nothing
            }
            reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
            reason::NMI_WINDOW => Exit::NmiWindow,
            reason::TASK_SWITCH => task_switch(qualification()),
            reason::CPUID => Exit::Cpuid,
            reason::HLT => Exit::Halt,
            reason::INVD | reason::WBINVD => Exit::CacheControl,
            reason::INVLPG => Exit::Invlpg(Gva::new(qualification())),
            reason::RDPMC => Exit::ReadCounter,
            reason::GETSEC
            | reason::VMCALL..=reason::VMXON
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::RDTSCP
            | reason::INVVPID
            | reason::XSAVES
            | reason::XRSTORS => Exit::Undefined,
            reason::CONTROL_REGISTER => control_register(qualification()),
            reason::IO => io(qualification()),
            reason::RDMSR => Exit::ReadMsr,
            reason::WRMSR => Exit::WriteMsr,
            reason::XSETBV => Exit::Xsetbv,
            reason::INVPCID => {
                let operand = self.vmcs.read(ro::VMEXIT_INSTRUCTION_INFO);
                Exit::Invpcid {
                    kind: self.gpr((operand >> 28 & 0xf) as u8),
                    descriptor: self.memory_operand(operand, qualification()),
                }
            }
            other => Exit::Unexpected(other.into()),
        }
    }

    /// The page fault that exited.
    pub(super) fn page_fault(&self) -> Exit {
        Exit::PageFault {
            gva: Gva::new(self.vmcs.read(ro::EXIT_QUALIFICATION)),
            error_code: self.vmcs.read(ro::VMEXIT_INTERRUPTION_ERR_CODE) as u32,
        }
    }

    /// The linear address of a memory operand (SDM, "Format of the VM-Exit Instruction-Information
    /// Field as Used for INVEPT, INVPCID, and INVVPID").
    fn memory_operand(&self, operand: u64, displacement: u64) -> Gva {
        let base = if operand & 1 << 27 == 0 { self.gpr((operand >> 23 & 0xf) as u8) } else { 0 };
        let index = if operand & 1 << 22 == 0 {
            self.gpr((operand >> 18 & 0xf) as u8) << (operand & 3)
        } else {
            0
        };
        let mask = match operand >> 7 & 7 {
            0 => 0xffff,
            1 => 0xffff_ffff,
            _ => u64::MAX,
        };
        let offset = base.wrapping_add(index).wrapping_add(displacement) & mask;
        let segment = Segment::ALL[(operand >> 15 & 7).min(5) as usize];
        let linear = self.segment_base(segment).wrapping_add(offset);
        let mask = if self.code_mode() == CodeMode::Bits64 { u64::MAX } else { 0xffff_ffff };
        Gva::new(linear & mask)
    }

    /// The event in valid IDT-vectoring information, with what belongs to it.
    #[inline(never)]
    pub(super) fn vectored_event(&self) -> Event {
        self.event(self.vectoring, ro::IDT_VECTORING_ERR_CODE)
    }

    /// An exception that is no page fault, or an NMI.
    fn exception_or_nmi(&self) -> Exit {
        let event = self.event(self.interruption, ro::VMEXIT_INTERRUPTION_ERR_CODE);
        match event.kind {
            EventKind::Nmi => Exit::Nmi,
            EventKind::Exception if event.vector == MACHINE_CHECK => Exit::MachineCheck,
            _ => Exit::Reflect(event),
        }
    }

    /// The event that an interruption-information field holds; its error code is in `error_code`.
    fn event(&self, information: u64, error_code: u32) -> Event {
        let software =
            |raiser| EventKind::Software { raiser, length: self.exit_instruction_length() };
        let kind = match information >> info::TYPE_SHIFT & 7 {
            info::TYPE_INTERRUPT => EventKind::Interrupt,
            info::TYPE_NMI => EventKind::Nmi,
            info::TYPE_INT_N => software(Raiser::IntN),
            info::TYPE_INT1 => software(Raiser::Int1),
            info::TYPE_INT3_OR_INTO => software(Raiser::Int3OrInto),
            _ => EventKind::Exception,
        };
        Event {
            kind,
            vector: (information & info::VECTOR) as u8,
            error_code: (information & info::ERROR_CODE != 0)
                .then(|| self.vmcs.read(error_code) as u32),
        }
    }

    /// The VM-exit instruction length, where it is defined.
    pub(super) fn exit_instruction_length(&self) -> u8 {
        self.vmcs.read(ro::VMEXIT_INSTRUCTION_LEN) as u8
    }

    /// Does to the debug registers what delivery of #DB would have done (SDM, "Exit Qualification
    /// for Debug Exceptions"): the exit leaves DR6, DR7 and IA32_DEBUGCTL as they were.
    pub(super) fn accept_debug_exception(&mut self) {
        /// B0 to B3, BD, BS.
        const REASONS: u64 = 0x600f;
        const HIT: u64 = 0xf;
        const GENERAL_DETECT: u64 = 1 << 13;
        let reasons = self.vmcs.read(ro::EXIT_QUALIFICATION) & REASONS;
        let dr6: u64;
        // SAFETY: the debug registers DR0 to DR3 and DR6 are the guest's all the time.
        unsafe { asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags)) };
        // SAFETY: as above; all bits written exist.
        unsafe {
            asm!("mov dr6, {}", in(reg) dr6 & !HIT | reasons, options(nomem, nostack, preserves_flags));
        }
        self.clear(guest::DR7, GENERAL_DETECT);
        self.clear(guest::IA32_DEBUGCTL_FULL, DEBUGCTL_LBR | DEBUGCTL_BTF);
    }

    /// Sets RF for the instruction that a page fault interrupted, as delivery would have pushed it
    /// (SDM, "Saving RIP, RSP, RFLAGS, and SSP"): a breakpoint on it was reported already. Bochs
    /// 2.7 leaves that out.
    pub(super) fn keep_resume_flag(&mut self) {
        if Breakpoints::enabled(self.vmcs.read(guest::DR7)) {
            self.set_rflags(self.rflags | rflags::RF);
        }
    }

    /// Clears bits of a field.
    pub(super) fn clear(&mut self, field: u32, bits: u64) {
        let value = self.vmcs.read(field);
        if value & bits != 0 {
            self.vmcs.write(field, value & !bits);
        }
    }

    /// Puts NMI blocking back (SDM, "Information for VM Exits Due to Vectored Events"). Either an
    /// IRET had lifted it when its page fault exited, or an interrupted NMI delivery had not yet
    /// set it.
    pub(super) fn repair_nmi_blocking(&mut self) {
        if self.vectoring & info::VALID != 0 {
            // Injecting the NMI again needs NMIs unblocked (SDM, "Checks on Guest Non-Register
            // State").
            if self.vectoring >> info::TYPE_SHIFT & 7 == info::TYPE_NMI {
                self.clear(guest::INTERRUPTIBILITY_STATE, BLOCKED_BY_NMI);
            }
        } else if self.interruption & info::NMI_UNBLOCKING != 0 {
            let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE);
            self.vmcs.write(guest::INTERRUPTIBILITY_STATE, state | BLOCKED_BY_NMI);
        }
    }
}

/// SDM, "Exit Qualification for I/O Instructions".
fn io(qualification: u64) -> Exit {
    if qualification & 1 << 4 != 0 {
        return Exit::StringIo;
    }
    Exit::Io {
        port: (qualification >> 16) as u16,
        size: (qualification & 7) as u8 + 1,
        input: qualification & 1 << 3 != 0,
    }
}

/// SDM, "Exit Qualification for Task Switches".
fn task_switch(qualification: u64) -> Exit {
    let source = match qualification >> 30 & 3 {
        0 => Source::Call,
        1 => Source::Iret,
        2 => Source::Jmp,
        // Its error code comes with the event.
        _ => Source::Gate { error_code: None },
    };
    Exit::TaskSwitch { selector: qualification as u16, source }
}

/// SDM, "Exit Qualification for Control-Register Accesses".
fn control_register(qualification: u64) -> Exit {
    let cr = (qualification & 0xf) as u8;
    let gpr = (qualification >> 8 & 0xf) as u8;
    match qualification >> 4 & 3 {
        0 => Exit::MovToCr { cr, gpr },
        1 => Exit::MovFromCr { cr, gpr },
        2 => Exit::Clts,
        _ => Exit::Lmsw((qualification >> 16) as u16),
    }
}
