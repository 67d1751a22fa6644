//! The loop: enter, answer the exit, count it.

use umbra_devices::Platform;
use umbra_emulator::Recent;
use umbra_machine::canary::Canary;
use umbra_mmu::Mmu;
use umbra_telemetry::{ExitCause, GuestExit, GuestFaults};
use umbra_vcpu::backend::{Backend, Exit, Refusal};
use umbra_vcpu::control::Controls;
use umbra_vcpu::cpuid::{Cpuid, xcr0};
use umbra_vcpu::event::Event;

use super::VCPU;
use super::accounts::Accounts;
use super::address_space::AddressSpace;
use super::audit::Auditor;
use super::console::Console;
use super::events::Deliveries;
use super::guest_cpu::GuestCpu;
use super::instruction::Instruction;
use super::policy::Writes;
use super::progress::FaultHistory;
use super::sandbox::Sandbox;
use super::time::Time;
use super::trace::Tracer;
use crate::env::Env;
use crate::hw::cpu;
use crate::hw::interrupts::MACHINE_BROKEN;
use crate::hw::phys::SpareArea;
use crate::telemetry;

/// What a virtual CPU is made of.
pub struct Parts<B: Backend> {
    /// The hardware.
    pub backend: B,
    /// The shadow MMU, on `env`.
    pub mmu: Mmu<Writes>,
    /// Guest memory, shadow frames and TLB.
    pub env: Env<B::Tlb>,
    /// The pattern in the host's memory that nobody uses.
    pub canary: Canary<SpareArea>,
    /// The devices, at time 0.
    pub platform: Platform,
    /// What the user types and sees.
    pub console: Console,
    /// The CPU that the guest sees.
    pub cpuid: Cpuid,
    /// Ticks of the time-stamp counter in a second.
    pub tsc_hz: u64,
    /// The guest's first control registers.
    pub controls: Controls,
    /// What the user has chosen.
    pub settings: Settings,
    /// Checks the shadow MMU, if that is asked for.
    pub auditor: Option<Auditor>,
    /// Reports every exit, if that is asked for.
    pub tracer: Option<Tracer>,
}

/// What the user has chosen, as far as this CPU can do it.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Which of its own page faults the guest gets without an exit.
    pub guest_faults: GuestFaults,
    /// Whether all loads of CR3 exit.
    pub cr3_loads_exit: bool,
    /// Whether flushes of the guest need not exit while no table is unsync.
    pub native_flushes: bool,
    /// Whether simple instructions are carried out the short way.
    pub fast_emulation: bool,
}

/// The virtual CPU and everything that it uses. Each field's state is private to the file of its
/// subject.
pub struct Vcpu<B: Backend> {
    pub(super) backend: B,
    pub(super) mmu: Mmu<Writes>,
    pub(super) env: Env<B::Tlb>,
    pub(super) platform: Platform,
    pub(super) cpu: GuestCpu,
    pub(super) space: AddressSpace,
    pub(super) events: Deliveries,
    /// The instruction that is carried out in answer to the exit.
    pub(super) instruction: Instruction,
    pub(super) faults: FaultHistory,
    pub(super) time: Time,
    pub(super) console: Console,
    pub(super) settings: Settings,
    /// The simple instructions that took the short way last.
    pub(super) recent: Recent,
    /// Where the CPU carries out what the emulator does not know.
    pub(super) sandbox: Sandbox,
    pub(super) accounts: Accounts,
    pub(super) auditor: Option<Auditor>,
    pub(super) tracer: Option<Tracer>,
    pub(super) canary: Canary<SpareArea>,
    /// Set by whatever ends the guest.
    pub(super) end: Option<GuestExit>,
}

impl<B: Backend> Vcpu<B> {
    /// A virtual CPU whose time starts now.
    pub fn new(parts: Parts<B>) -> Vcpu<B> {
        let Parts {
            backend,
            mmu,
            env,
            canary,
            platform,
            console,
            cpuid,
            tsc_hz,
            controls,
            settings,
            auditor,
            tracer,
        } = parts;
        // A small pool leaves fewer loadable roots than the CPU has room for.
        let space = AddressSpace::new(mmu.root(&env, VCPU), mmu.loadable_roots());
        let mut vcpu = Vcpu {
            backend,
            mmu,
            env,
            platform,
            cpu: GuestCpu::new(cpuid, tsc_hz, controls),
            space,
            events: Deliveries::default(),
            instruction: Instruction::default(),
            faults: FaultHistory::default(),
            time: Time::new(),
            console,
            settings,
            recent: Recent::new(),
            sandbox: Sandbox::new(),
            accounts: Accounts::default(),
            auditor,
            tracer,
            canary,
            end: None,
        };
        vcpu.backend.set_tsc_offset(vcpu.time.tsc_offset());
        vcpu.load_controls(controls);
        if vcpu.cpu.cpuid().has_xcr0() {
            vcpu.backend.set_xcr0(xcr0::X87);
        }
        vcpu
    }

    /// Runs the guest to its end, reports, and ends the machine.
    pub fn run(mut self) -> ! {
        loop {
            self.run_platform();
            self.prepare_events();
            self.prepare_address_space();
            if let Some(end) = self.end.take() {
                self.finish(end);
            }
            self.trace_entry();
            let entered = cpu::tsc();
            match self.backend.enter() {
                Ok(exit) => {
                    self.faults.exited_after(cpu::tsc().wrapping_sub(entered));
                    self.begin_answer(&exit);
                    let cause = self.answer(exit);
                    self.end_answer(cause);
                }
                Err(refusal) => self.refuse(refusal),
            }
        }
    }

    /// The CPU does not run the guest.
    #[cold]
    fn refuse(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::Guest(sentence) => {
                self.end = Some(GuestExit::Unsupported(alloc::format!(
                    "the guest is in a state that this CPU does not run: {sentence}"
                )));
            }
            Refusal::Host(sentence) => telemetry::fail(sentence),
        }
    }

    /// Follows what the guest did without an exit, and takes over what the exit interrupted.
    fn begin_answer(&mut self, exit: &Exit) {
        self.follow_cr3();
        self.trace_exit(exit);
        self.events.replace(self.backend.interrupted_event());
        self.instruction.begin();
        if !matches!(exit, Exit::PageFault { .. } | Exit::Interrupt) {
            self.faults.progress_made();
        }
    }

    /// Counts the exit under its cause, and checks what the answer to it has changed.
    fn end_answer(&mut self, cause: Option<ExitCause>) {
        if let Some(cause) = cause {
            self.accounts.count(cause);
        }
        self.trace_cause(cause);
        self.audit_exit();
    }

    /// Answers an exit and says under what it counts; phase marks do not.
    #[inline(always)]
    fn answer(&mut self, exit: Exit) -> Option<ExitCause> {
        if exit.skips_instruction() {
            match self.measure_instruction() {
                Ok(true) => (),
                Ok(false) => return Some(ExitCause::Other),
                Err(fault) => return Some(self.guest_fault(fault)),
            }
        }
        let cause = match exit {
            Exit::PageFault { gva, error_code } => self.page_fault_exit(gva, error_code),
            Exit::Io { port, size, input } => return self.io_exit(port, size, input),
            Exit::StringIo => self.string_io_exit(),
            Exit::Reflect(event) if event.is_fpu_error() && self.reports_fpu_errors_by_line() => {
                self.fpu_error_exit()
            }
            Exit::Reflect(event) => {
                self.reflect(event);
                ExitCause::Other
            }
            Exit::Interrupt | Exit::Nmi => {
                if exit == Exit::Nmi {
                    cpu::end_nmi();
                }
                // An NMI brings the interrupts in that Bochs holds back.
                cpu::take_interrupts();
                self.flush_output();
                ExitCause::Interrupt
            }
            // `prepare_entry` delivers what the window was for.
            Exit::InterruptWindow | Exit::NmiWindow => ExitCause::Interrupt,
            Exit::Undecoded => self.undecoded_exit(),
            Exit::Cpuid => self.cpuid_exit(),
            Exit::Halt => self.halt_exit(),
            Exit::Invlpg(gva) => self.invlpg_exit(gva),
            Exit::Invpcid { kind, descriptor } => self.invpcid_exit(kind, descriptor),
            Exit::MovToCr { cr, gpr } => self.write_cr_exit(cr, gpr),
            Exit::MovFromCr { cr, gpr } => self.read_cr_exit(cr, gpr),
            Exit::Clts => self.clts_exit(),
            Exit::Lmsw(value) => self.lmsw_exit(value),
            Exit::ReadMsr => self.read_msr_exit(),
            Exit::WriteMsr => self.write_msr_exit(),
            Exit::Xsetbv => self.xsetbv_exit(),
            Exit::CacheControl => {
                self.skip();
                ExitCause::Other
            }
            Exit::ReadCounter => {
                self.raise(Event::general_protection());
                ExitCause::Other
            }
            Exit::Undefined => {
                self.raise(Event::invalid_opcode());
                ExitCause::Other
            }
            Exit::Nothing => ExitCause::Other,
            Exit::TripleFault => self.end_with(GuestExit::TripleFault),
            Exit::TaskSwitch { selector, source } => self.task_switch_exit(selector, source),
            Exit::MachineCheck => telemetry::fail(MACHINE_BROKEN),
            Exit::Unexpected(number) => telemetry::fail(format_args!(
                "the CPU reports an exit that was not asked for: reason {number}"
            )),
        };
        Some(cause)
    }

    fn end_with(&mut self, end: GuestExit) -> ExitCause {
        self.end = Some(end);
        ExitCause::Other
    }
}
