//! Events and task switches that the hypervisor carries out: where the CPU cannot do it on the
//! guest's memory, or does not do it for a guest at all.

use umbra_emulator::{
    Cpu, Error, EventKind as Kind, Segment, Source, SystemCpu, deliver, task_switch,
};
use umbra_telemetry::ExitCause;
use umbra_vcpu::backend::{Backend, rflags};
use umbra_vcpu::event::{Event, EventKind, Raiser};

use super::Vcpu;

impl<B: Backend> Vcpu<B> {
    /// Delivers the event under way with accesses of the hypervisor's own, and what its delivery
    /// raises instead: the cause of the exit, if that was a page fault.
    pub(super) fn deliver_by_software(&mut self) -> Option<ExitCause> {
        let mut cause = None;
        while self.end.is_none()
            && let Some(event) = self.events.take()
        {
            let delivery = self.for_delivery(event);
            let result = deliver(self, delivery);
            if result.is_ok() {
                if event.kind == EventKind::Nmi {
                    self.backend.block_nmis(true);
                }
                self.retire_transfer();
                self.faults.progress_made();
                // A task switch may have raised a debug trap, which the next entry delivers.
                break;
            }
            self.events.replace(event);
            cause = self.fail_delivery(result).or(cause);
            // One exit does bounded work. #AC is about a stack segment, so all segments are such as
            // VM entry takes.
            if self.events.pending().is_some_and(Event::may_recur) {
                break;
            }
        }
        cause
    }

    /// A hardware task switch, which no CPU makes for a guest (SDM, "Treatment of Task Switches").
    pub(super) fn task_switch_exit(&mut self, selector: u16, source: Source) -> ExitCause {
        if let Source::Gate { .. } = source {
            return self.deliver_by_software().unwrap_or(ExitCause::Other);
        }
        let next_rip = self.backend.rip().wrapping_add(self.instruction.length());
        let result = task_switch(self, selector, source, next_rip);
        if result.is_ok() {
            if source == Source::Iret {
                self.unblock_nmis();
            }
            self.retire_transfer();
            self.faults.progress_made();
            return ExitCause::Other;
        }
        // A fault behind the commit point leaves segments that no VM entry takes.
        let cause = self.fail_delivery(result);
        self.deliver_by_software().or(cause).unwrap_or(ExitCause::Other)
    }

    /// An instruction that the hypervisor carried out has raised what is pending. If that was
    /// behind the commit point of a task switch, the exception is delivered at once: no VM entry
    /// takes the segments that it left. Returns the cause of the exit, if that was a page fault.
    pub(super) fn leave_half_loaded_task(&mut self) -> Option<ExitCause> {
        let unusable = |segment| self.segment(segment).rights.is_unusable();
        let half_loaded =
            !self.cpu.controls().long_mode() && (unusable(Segment::Cs) || unusable(Segment::Ss));
        if half_loaded { self.deliver_by_software() } else { None }
    }

    /// Ends what started an instruction anew: RF, TF and RIP are as it left them, and no single
    /// step is due.
    pub(super) fn retire_transfer(&mut self) {
        let flags = self.backend.rflags();
        self.backend.set_rflags(flags & !(rflags::TF | rflags::RF));
        self.backend.retire(self.instruction.met());
        self.backend.set_rflags(flags);
    }

    fn for_delivery(&self, event: Event) -> umbra_emulator::Event {
        let kind = match event.kind {
            EventKind::Interrupt => Kind::Interrupt,
            EventKind::Nmi => Kind::Nmi,
            EventKind::Exception => Kind::Exception,
            EventKind::Software { raiser: Raiser::IntN | Raiser::Int3OrInto, .. } => Kind::Software,
            EventKind::Software { raiser: Raiser::Int1, .. } => Kind::PrivilegedSoftware,
        };
        let return_rip = self.rip().wrapping_add(event.instruction_length().into());
        umbra_emulator::Event {
            kind,
            vector: event.vector,
            error_code: event.error_code,
            return_rip,
        }
    }

    fn fail_delivery(
        &mut self,
        result: Result<(), Error<<Self as Cpu>::Fault>>,
    ) -> Option<ExitCause> {
        match result {
            Err(Error::Fault(fault)) => Some(self.guest_fault(fault)),
            Err(Error::Exception(exception)) => {
                self.raise(exception.into());
                None
            }
            Ok(()) | Err(Error::Unsupported | Error::Truncated) => {
                unreachable!("a delivery decodes no instruction")
            }
        }
    }
}
