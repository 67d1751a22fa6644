//! Interrupts to the guest, the alarm clock behind its timers and what the user is to see, and HLT.

use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::backend::{Backend, Windows, rflags};
use umbra_vcpu::control::cr0_more;
use umbra_vcpu::event::Event;

use super::Vcpu;
use super::clock::Clock;
use crate::hw::{console, cpu, timer};

/// Console input that waits for the guest to read it. What comes beyond is lost, as on a real line: the host's
/// commands come the same way, and must not wait for a guest that never reads.
const MAX_TYPED: usize = 64 << 10;

/// The machine's one-shot timer, which brings the guest back when a timer of its platform is due,
/// or the hypervisor's upkeep.
#[derive(Default)]
pub struct Alarm {
    /// The platform's own deadline when it was set.
    device: Option<u64>,
    /// The time of the platform that it is set to: [`NOT_SET`](Alarm::NOT_SET), or [`NEVER`](Alarm::NEVER).
    set_to: u64,
}

impl Alarm {
    /// In the past, so that it is set at the next look.
    const NOT_SET: u64 = 0;
    const NEVER: u64 = u64::MAX;

    /// Forgets what it is set to, so that it is set anew.
    pub fn reset(&mut self) {
        self.set_to = Alarm::NOT_SET;
    }

    /// Something is due earlier than when it was set.
    pub fn ring_by(&mut self, at: Option<u64>) {
        if at.is_some_and(|at| at < self.set_to) {
            self.reset();
        }
    }

    /// Sets it to the same time of the platform again, after that has been taken back.
    pub fn set_again(&self, clock: &Clock) {
        if !matches!(self.set_to, Alarm::NOT_SET | Alarm::NEVER) {
            timer::arm(clock.machine_tsc(self.set_to));
        }
    }
}

impl<B: Backend> Vcpu<B> {
    /// Brings the platform up to date and sets up the next entry: the event to deliver, or the windows to wait
    /// for; the shadow root; the alarm.
    pub(super) fn prepare_entry(&mut self) {
        self.run_platform();
        // Mostly there is nothing to deliver or to wait for.
        if self.pending.is_some() || self.platform.has_event() || self.windows != Windows::default() {
            self.choose_event();
        }
        let guest_faults = self.mmu.guest_faults();
        if guest_faults != self.guest_faults {
            self.guest_faults = guest_faults;
            self.backend.set_guest_faults(guest_faults);
        }
        let flushes_exit = !self.settings.native_flushes || self.mmu.has_loose_tables();
        if flushes_exit != self.flushes_exit {
            self.flushes_exit = flushes_exit;
            self.backend.set_flush_exits(flushes_exit);
        }
        self.refresh_targets();
    }

    /// Delivers an event at the next entry, if one waits that the guest can take, and waits for what it cannot.
    #[inline(never)]
    fn choose_event(&mut self) {
        if self.pending.is_none() {
            if self.platform.nmi_pending() && self.backend.nmi_ready() && self.platform.take_nmi() {
                self.pending = Some(Event::nmi());
            } else if self.platform.pending_interrupt() && self.backend.interruptible() {
                self.pending = self.platform.acknowledge().map(Event::interrupt);
            }
        }
        let windows =
            Windows { interrupt: self.platform.pending_interrupt(), nmi: self.platform.nmi_pending() };
        if windows != self.windows {
            self.windows = windows;
            self.backend.set_windows(windows);
        }
        if let Some(event) = self.pending.take() {
            self.note(|exit| exit.delivers = Some(event.vector));
            self.backend.inject(event);
        }
    }

    /// Hands over what was typed and lets timers fire that are due; sets the alarm for the next.
    #[inline]
    fn run_platform(&mut self) {
        let is_set =
            self.platform.next_deadline() == self.alarm.device && self.alarm.set_to > self.clock.now();
        // Mostly there is nothing to do.
        if !is_set || timer::has_fired() || console::has_input() || !self.typed.is_empty() {
            self.serve_platform();
        }
    }

    /// When this CPU must be back although nothing happens.
    fn next_deadline(&self) -> u64 {
        self.platform.next_deadline().into_iter().chain(self.upkeep.next()).min().unwrap_or(Alarm::NEVER)
    }

    /// Shows the user what is due.
    fn keep_up(&mut self, now: u64) {
        if self.upkeep.output_is_due(now) {
            self.flush_output();
        }
        if self.upkeep.screen_is_due(now) {
            self.look_at_screen(now);
        }
    }

    #[inline(never)]
    fn serve_platform(&mut self) {
        if console::has_input() {
            let typed = &mut self.typed;
            console::poll(&mut |byte| {
                if typed.len() < MAX_TYPED {
                    typed.push_back(byte);
                }
            });
            if console::finish_requested() {
                self.end = Some(GuestExit::Stopped);
            }
        }
        while self.platform.console_input_room() > 0
            && let Some(byte) = self.typed.pop_front()
        {
            self.platform.console_input(&[byte]);
        }
        if timer::take_fired() {
            self.alarm.reset();
        }
        let now = self.clock.now();
        if self.next_deadline() <= now {
            self.platform.advance(now);
            self.keep_up(now);
        }
        let deadline = self.next_deadline();
        self.alarm.device = self.platform.next_deadline();
        if self.alarm.set_to != deadline {
            if deadline != Alarm::NEVER {
                timer::arm(self.clock.machine_tsc(deadline));
            }
            self.alarm.set_to = deadline;
        }
    }

    pub(super) fn halt_exit(&mut self) -> ExitCause {
        self.skip();
        self.flush_output();
        if self.backend.debug_trap_due() {
            // It ends HLT as soon as it begins (SDM, "HLT"): a single step, or a breakpoint on what MOV SS has read,
            // which came first.
            return ExitCause::Hlt;
        }
        self.wait_for_event();
        ExitCause::Hlt
    }

    /// Whether the guest has CR0.NE clear: the x87 FPU reports errors by a line to the PICs, as in a PC/AT. The real
    /// CR0.NE is always set, as VMX wants it.
    pub(super) fn reports_fpu_errors_by_line(&self) -> bool {
        self.backend.cr0() & cr0_more::NE == 0
    }

    /// An error of the x87 FPU, reported by its line. The instruction that has met it waits for an interrupt, and
    /// begins anew (SDM vol. 1, "MS-DOS Compatibility Sub-mode"). IGNNE#, which would let it pass, is not
    /// modelled: nothing tells when the guest has cleared the error.
    pub(super) fn fpu_error_exit(&mut self) -> ExitCause {
        self.progress.made();
        self.platform.report_fpu_error();
        self.wait_for_event();
        ExitCause::Other
    }

    /// Sleeps until the guest can take an event, or ends it if none can come.
    fn wait_for_event(&mut self) {
        let interrupts_on = self.backend.rflags() & rflags::IF != 0;
        loop {
            self.run_platform();
            let nmis_on = self.backend.nmi_ready();
            let wakes = (nmis_on && self.platform.nmi_pending())
                || (interrupts_on && self.platform.pending_interrupt());
            if wakes || self.end.is_some() {
                return;
            }
            let can_wake = interrupts_on || (nmis_on && self.platform.nmi_can_come());
            if !can_wake {
                self.end = Some(GuestExit::Halted);
                return;
            }
            cpu::idle();
        }
    }
}
