//! The guest's devices before each entry, and HLT, which waits for them.

use umbra_devices::PlatformEvent;
use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::backend::{Backend, rflags};
use umbra_vcpu::control::cr0_more;

use super::Vcpu;
use crate::hw::cpu;

impl<B: Backend> Vcpu<B> {
    /// Hands over what was typed and lets timers fire that are due; sets the alarm for the next.
    #[inline]
    pub(super) fn run_platform(&mut self) {
        // Mostly there is nothing to do.
        if !self.time.alarm_is_set(self.platform.next_deadline()) || self.console.has_input() {
            self.serve_platform();
        }
    }

    #[inline(never)]
    fn serve_platform(&mut self) {
        let requests = self.console.hand_over(&mut self.platform);
        if requests.finish {
            self.end = Some(GuestExit::Stopped);
        }
        if requests.counts {
            self.send_counts();
        }
        self.time.take_alarm();
        let now = self.time.now();
        let deadlines = [self.platform.next_deadline(), self.console.next_deadline()];
        if deadlines.into_iter().flatten().any(|deadline| deadline <= now) {
            self.platform.advance(now);
            self.show_what_is_due(now);
        }
        self.time.set_alarm(self.platform.next_deadline(), self.console.next_deadline());
    }

    /// Carries out what a device asked for.
    pub(super) fn platform_event(&mut self, event: Option<PlatformEvent>) {
        match event {
            Some(PlatformEvent::Mark(mark)) => self.mark(mark),
            Some(PlatformEvent::End(end)) => self.end = Some(end),
            None => (),
        }
    }

    pub(super) fn halt_exit(&mut self) -> ExitCause {
        self.skip();
        self.flush_output();
        if self.backend.debug_trap_due() {
            // It ends HLT as soon as it begins (SDM, "HLT"): a single step, or a breakpoint on what
            // MOV SS has read, which came first.
            return ExitCause::Hlt;
        }
        self.wait_for_event();
        ExitCause::Hlt
    }

    /// Whether the guest has CR0.NE clear: the x87 FPU reports errors by a line to the PICs, as in
    /// a PC/AT. The real CR0.NE is always set, as the extension wants it.
    pub(super) fn reports_fpu_errors_by_line(&self) -> bool {
        self.backend.cr0() & cr0_more::NE == 0
    }

    /// An error of the x87 FPU, reported by its line. The instruction that has met it waits for an
    /// interrupt, and begins anew (SDM vol. 1, "MS-DOS Compatibility Sub-mode"). IGNNE#, which
    /// would let it pass, is not modelled: nothing tells when the guest has cleared the error.
    pub(super) fn fpu_error_exit(&mut self) -> ExitCause {
        self.faults.progress_made();
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
