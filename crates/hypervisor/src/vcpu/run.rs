//! The loop: enter, answer the exit, count it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use umbra_devices::{Mark, Platform};
use umbra_emulator::Recent;
use umbra_machine::canary::Canary;
use umbra_machine::upkeep::Upkeep;
use umbra_mmu::{Mmu, Root};
use umbra_msrs::Registers;
use umbra_telemetry::trace::Record;
use umbra_telemetry::{ExitCause, ExitCounts, GuestExit, GuestFaults, Message, MmuCounters, Stats};
use umbra_vcpu::backend::{Backend, Exit, Refusal, Windows, rflags};
use umbra_vcpu::control::{Controls, Known};
use umbra_vcpu::cpuid::{Cpuid, Dynamic, xcr0};
use umbra_vcpu::cr3_targets::Targets;
use umbra_vcpu::event::{Combined, DEBUG, Event, EventKind, combine};
use umbra_vcpu::phases::{BOOT, Phases, Totals};

use super::audit::Auditor;
use super::clock::Clock;
use super::interrupts::Alarm;
use super::page_fault::Progress;
use super::policy::Writes;
use super::sandbox::Sandbox;
use super::trace::Tracer;
use crate::env::Env;
use crate::hw::cpu;
use crate::hw::phys::SpareArea;
use crate::telemetry;

/// Nothing can be trusted after that, whatever was running.
pub const MACHINE_CHECK: &str = "the machine reports a hardware error (machine check)";

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
    /// What the user is to see in time.
    pub upkeep: Upkeep,
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
    /// Whether flushes of the guest need not exit while no table is loose.
    pub native_flushes: bool,
    /// Whether simple instructions are carried out the short way.
    pub quick_stores: bool,
}

/// The virtual CPU and everything that it uses.
pub struct Vcpu<B: Backend> {
    pub(super) backend: B,
    pub(super) mmu: Mmu<Writes>,
    pub(super) env: Env<B::Tlb>,
    pub(super) platform: Platform,
    pub(super) upkeep: Upkeep,
    pub(super) cpuid: Cpuid,
    pub(super) known: Known,
    pub(super) clock: Clock,
    pub(super) alarm: Alarm,
    /// Console input that the guest has no room for yet.
    pub(super) typed: VecDeque<u8>,
    /// What the guest sees; CR0 and CR4 as of the last [`Vcpu::refresh_controls`].
    pub(super) controls: Controls,
    /// The shadow root that the backend runs on.
    pub(super) root: Root,
    /// Model-specific registers.
    pub(super) msrs: Registers,
    /// XCR0, if there is one.
    pub(super) xcr0: u64,
    /// The event to deliver at the next entry: interrupted by the last exit, or raised in answer to it.
    pub(super) pending: Option<Event>,
    /// What the guest is left for as soon as it can take it.
    pub(super) windows: Windows,
    /// Set by whatever ends the guest.
    pub(super) end: Option<GuestExit>,
    /// Length of the instruction that exited, if the exit [skips](Exit::skips_instruction) it.
    pub(super) instruction_length: u8,
    /// Breakpoints that the instruction being carried out has met: bits B0 to B3 of DR6.
    pub(super) met: u8,
    /// The instruction being carried out has loaded SS, which holds back what would come behind it.
    pub(super) loaded_ss: bool,
    pub(super) progress: Progress,
    pub(super) settings: Settings,
    /// The simple instructions that took the short way last.
    pub(super) recent: Recent,
    /// Where the CPU carries out what the emulator does not know.
    pub(super) sandbox: Sandbox,
    pub(super) auditor: Option<Auditor>,
    pub(super) tracer: Option<Tracer>,
    canary: Canary<SpareArea>,
    /// Which page faults the guest gets without an exit now.
    pub(super) guest_faults: umbra_mmu::GuestFaults,
    /// The values of CR3 that the guest may load by itself.
    pub(super) targets: Targets,
    /// The CPU is yet to be told of them.
    pub(super) targets_stale: bool,
    /// The guest's own CR3 is the right one for the root that the backend runs on.
    pub(super) root_is_loadable: bool,
    /// [`Mmu::roots_changed`] when the targets were last looked through.
    pub(super) roots_changed: u64,
    /// Whether flushes of the guest exit now.
    pub(super) flushes_exit: bool,
    /// How long the guest ran before the last exit, in ticks of the machine's time-stamp counter.
    pub(super) ran: u64,
    /// The guest's CR2 at the last page-fault exit.
    pub(super) last_cr2: u64,
    counts: ExitCounts,
    phases: Phases,
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
            upkeep,
            cpuid,
            tsc_hz,
            controls,
            settings,
            auditor,
            tracer,
        } = parts;
        let root = mmu.root(&env, 0);
        let known = cpuid.known(Dynamic::AT_RESET);
        // A small pool leaves fewer than the CPU has room for.
        let targets = Targets::new(mmu.loadable_roots());
        let mut vcpu = Vcpu {
            backend,
            mmu,
            env,
            platform,
            upkeep,
            known,
            clock: Clock::new(),
            alarm: Alarm::default(),
            typed: VecDeque::new(),
            controls,
            root,
            msrs: Registers::new(&cpuid.model(tsc_hz)),
            cpuid,
            xcr0: xcr0::X87,
            pending: None,
            windows: Windows::default(),
            end: None,
            instruction_length: 0,
            met: 0,
            loaded_ss: false,
            progress: Progress::default(),
            settings,
            recent: Recent::new(),
            sandbox: Sandbox::new(),
            auditor,
            tracer,
            canary,
            guest_faults: umbra_mmu::GuestFaults::Trap,
            targets,
            targets_stale: false,
            root_is_loadable: false,
            roots_changed: 0,
            flushes_exit: true,
            ran: 0,
            last_cr2: 0,
            counts: ExitCounts::default(),
            phases: Phases::new(),
        };
        vcpu.backend.set_tsc_offset(vcpu.clock.tsc_offset());
        vcpu.backend.set_guest_faults(vcpu.guest_faults);
        vcpu.load_controls(controls);
        if vcpu.cpuid.has_xcr0() {
            vcpu.backend.set_xcr0(vcpu.xcr0);
        }
        vcpu
    }

    /// Runs the guest to its end, reports, and ends the machine.
    pub fn run(mut self) -> ! {
        loop {
            self.prepare_entry();
            if let Some(end) = self.end.take() {
                self.finish(end);
            }
            self.trace_entry();
            let entered = cpu::tsc();
            let exit = match self.backend.enter() {
                Ok(exit) => exit,
                Err(Refusal::Guest(sentence)) => {
                    self.end = Some(GuestExit::Unsupported(alloc::format!(
                        "the guest is in a state that this CPU does not run: {sentence}"
                    )));
                    continue;
                }
                Err(Refusal::Host(sentence)) => telemetry::fail(sentence),
            };
            self.ran = cpu::tsc().wrapping_sub(entered);
            self.follow_cr3();
            self.trace_exit(&exit);
            self.pending = self.backend.interrupted_event();
            self.met = 0;
            if !matches!(exit, Exit::PageFault { .. } | Exit::Interrupt) {
                self.progress.made();
            }
            let cause = self.answer(exit);
            if let Some(cause) = cause {
                self.counts.count(cause);
            }
            self.trace_cause(cause);
            self.audit_exit();
        }
    }

    /// Answers an exit and says under what it counts; phase marks do not.
    fn answer(&mut self, exit: Exit) -> Option<ExitCause> {
        if exit.skips_instruction()
            && let Err(fault) = self.measure_instruction()
        {
            return Some(self.guest_fault(fault));
        }
        let cause = match exit {
            Exit::PageFault { gva, error_code } => self.page_fault_exit(gva, error_code),
            Exit::Io { port, size, input } => return self.io_exit(port, size, input),
            Exit::StringIo => self.string_io_exit(),
            Exit::Reflect(event) if event.is_fpu_error() && self.reports_fpu_errors_by_line() => {
                self.fpu_error_exit()
            }
            Exit::Reflect(event) => {
                // #AC is a fault; #DB and INT1 push the flags as they are.
                if event.kind == EventKind::Exception && event.vector != DEBUG {
                    self.raise(event);
                } else {
                    self.deliver(event);
                }
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
            Exit::MachineCheck => telemetry::fail(MACHINE_CHECK),
            Exit::Unexpected(number) => telemetry::fail(format_args!(
                "the CPU reports an exit that was not asked for: reason {number}"
            )),
        };
        Some(cause)
    }

    /// The name of what is left to the guest, in reports.
    fn filter_name(&self) -> &'static str {
        match self.guest_faults {
            umbra_mmu::GuestFaults::Trap => "trap",
            umbra_mmu::GuestFaults::Present => "present",
            umbra_mmu::GuestFaults::User => "user",
        }
    }

    fn end_with(&mut self, end: GuestExit) -> ExitCause {
        self.end = Some(end);
        ExitCause::Other
    }

    /// The instruction that exited has been carried out: goes on behind it.
    pub(super) fn skip(&mut self) {
        let next = self.next_rip(self.instruction_length.into());
        self.backend.set_rip(next);
        self.backend.retire(self.met);
    }

    /// Raises a fault: of the instruction at RIP, or within the delivery of the event that the exit interrupted.
    pub(super) fn raise(&mut self, fault: Event) {
        // Faults push RF set (SDM, "Instruction-Breakpoint Exception Condition"), and injection leaves that to us.
        self.backend.set_rflags(self.backend.rflags() | rflags::RF);
        self.deliver(fault);
    }

    /// Delivers an exception whose flags are right already.
    fn deliver(&mut self, exception: Event) {
        self.progress.made();
        match combine(self.pending, exception) {
            Combined::Deliver(event) => self.pending = Some(event),
            Combined::TripleFault => self.end = Some(GuestExit::TripleFault),
        }
    }

    /// Everything counted so far.
    fn totals(&self) -> Totals {
        let counters = self.mmu.counters();
        Totals {
            exits: self.counts.clone(),
            mmu: MmuCounters {
                built: counters.built,
                zapped: counters.zapped,
                reclaimed: counters.reclaimed,
                splits: counters.splits,
                flushes: counters.flushes,
                attached: counters.attached,
                detached: counters.detached,
                roots_moved: counters.roots_moved,
                filter_switches: counters.filter_switches,
                live_pages: self.mmu.live_pages().into(),
                metadata_bytes: self.mmu.metadata_bytes() as u64,
            },
            tsc: self.clock.now(),
        }
    }

    /// A phase mark of the guest.
    pub(super) fn mark(&mut self, mark: Mark) {
        let arrived = self.clock.now();
        self.audit_everything();
        self.trace_phase(match mark {
            Mark::BootEnd => Record::PhaseEnd(BOOT),
            Mark::Start { id } => Record::PhaseStart(id),
            Mark::End { id, .. } => Record::PhaseEnd(id),
        });
        // What the mark itself takes belongs to no phase.
        let mut totals = self.totals();
        totals.tsc = match mark {
            Mark::Start { .. } => self.clock.now(),
            Mark::BootEnd | Mark::End { .. } => arrived,
        };
        self.phases.mark(mark, &totals);
    }

    fn finish(mut self, end: GuestExit) -> ! {
        self.audit_everything();
        self.flush_output();
        self.show_last_screen();
        self.finish_trace();
        let totals = self.totals();
        // The guest's time has ended: this costs none of it.
        let canary = self.canary.check();
        if let Err(hpa) = canary {
            self.end = Some(GuestExit::CanaryBroken { hpa: hpa.raw() });
        }
        // What was found wrong now says more than how the guest ended.
        let guest_exit = self.end.take().unwrap_or(end);
        telemetry::end(Stats {
            guest_exit,
            guest_faults: self.settings.guest_faults,
            filter: self.filter_name().into(),
            exits: totals.exits.clone(),
            mmu: totals.mmu,
            tsc: totals.tsc,
            counters: Vec::new(),
            phases: self.phases.finish(&totals),
            audits: self.auditor.as_ref().map_or((0, 0), Auditor::counts),
            canary: canary.ok(),
        })
    }

    /// Sends what the guest printed.
    pub(super) fn flush_output(&mut self) {
        self.upkeep.output_sent();
        let console = self.platform.take_console_output();
        if !console.is_empty() {
            telemetry::send(&Message::Console(console));
        }
        let debug = self.platform.take_debug_output();
        if !debug.is_empty() {
            telemetry::send(&Message::DebugConsole(debug));
        }
    }

    /// Sends what the guest printed if it is worth a message; else it may wait a little for more.
    pub(super) fn flush_output_if_due(&mut self) {
        if self.platform.output_due() {
            self.flush_output();
        } else if self.platform.has_output() {
            self.upkeep.output_waits(self.clock.now());
            self.alarm.ring_by(self.upkeep.next());
        }
    }
}
