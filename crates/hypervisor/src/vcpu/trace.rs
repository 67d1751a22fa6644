//! The trace: every exit, what the MMU did in answer to it, and the phases, in time that the guest
//! does not see.

use umbra_telemetry::trace::{Exit, Record, Writer};
use umbra_telemetry::{ExitCause, Message};
use umbra_vcpu::backend::{self, Backend};

use super::Vcpu;
use super::time::AlarmAfter;
use crate::hw::cpu;
use crate::telemetry;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// The exit that is being answered, and what was recorded before it.
#[derive(Default)]
pub struct Tracer {
    writer: Writer,
    current: Option<Exit>,
    /// The time when the answer to it began, behind what tracing does first.
    answered_from: u64,
}

impl Tracer {
    fn send(&mut self) {
        if let Some(chunk) = self.writer.take() {
            telemetry::send(&Message::Trace(chunk));
        }
    }
}

impl<B: Backend> Vcpu<B> {
    /// An exit has come: records the one before it, whose answer is over, and starts this one's
    /// record.
    pub(super) fn trace_exit(&mut self, exit: &backend::Exit) {
        if self.tracer.is_none() {
            return;
        }
        let start = cpu::tsc();
        self.record_current();
        let (address, value) = self.operands(exit);
        let exit = Exit {
            // What recording takes is taken out of the guest's time below.
            time: self.time.at(start),
            ticks: 0,
            vcpu: 0,
            rip: self.backend.rip(),
            cr3: self.cpu.controls().cr3,
            cause: None,
            address,
            value,
            gpa: None,
            delivers: None,
        };
        if let Some(tracer) = &mut self.tracer {
            tracer.current = Some(exit);
        }
        self.take_time_back(start, AlarmAfter::SetNow);
        if let Some(tracer) = &mut self.tracer {
            tracer.answered_from = self.time.now();
        }
    }

    /// Adds to what is recorded about the exit at hand.
    pub(super) fn note(&mut self, add: impl FnOnce(&mut Exit)) {
        if let Some(exit) = self.tracer.as_mut().and_then(|tracer| tracer.current.as_mut()) {
            add(exit);
        }
    }

    /// The exit has been answered, under this cause.
    pub(super) fn trace_cause(&mut self, cause: Option<ExitCause>) {
        self.note(|exit| exit.cause = cause);
    }

    /// The guest goes on now.
    pub(super) fn trace_entry(&mut self) {
        if let Some(tracer) = &self.tracer {
            let ticks = self.time.now().saturating_sub(tracer.answered_from);
            self.note(|exit| exit.ticks = ticks);
        }
    }

    /// A phase starts or ends.
    pub(super) fn trace_phase(&mut self, phase: Record) {
        if let Some(tracer) = &mut self.tracer {
            tracer.writer.push(&phase);
        }
    }

    /// Sends what is left.
    pub(super) fn finish_trace(&mut self) {
        self.trace_entry();
        self.record_current();
        if let Some(tracer) = &mut self.tracer {
            tracer.send();
        }
    }

    fn record_current(&mut self) {
        let Some(tracer) = &mut self.tracer else { return };
        let (events, dropped) = self.env.events.take();
        for event in events {
            tracer.writer.push(&Record::Mmu(event));
        }
        if dropped > 0 {
            tracer.writer.push(&Record::Dropped(dropped));
        }
        if let Some(exit) = tracer.current.take() {
            tracer.writer.push(&Record::Exit(exit));
        }
        if tracer.writer.is_full() {
            tracer.send();
        }
    }

    /// Where and what, for the exits that have that; reads have no value yet.
    fn operands(&self, exit: &backend::Exit) -> (Option<u64>, Option<u64>) {
        let gpr = |gpr| self.backend.gpr(gpr);
        match *exit {
            backend::Exit::PageFault { gva, error_code } => {
                (Some(gva.raw()), Some(error_code.into()))
            }
            backend::Exit::Io { port, input, .. } => {
                (Some(port.into()), (!input).then(|| gpr(RAX) & 0xffff_ffff))
            }
            backend::Exit::Invlpg(gva) => (Some(gva.raw()), None),
            backend::Exit::Invpcid { kind, descriptor } => (Some(descriptor.raw()), Some(kind)),
            backend::Exit::MovToCr { gpr: from, .. } => (None, Some(gpr(from))),
            backend::Exit::Cpuid => (Some(gpr(RAX) & 0xffff_ffff), Some(gpr(RCX) & 0xffff_ffff)),
            backend::Exit::ReadMsr => (Some(gpr(RCX) & 0xffff_ffff), None),
            backend::Exit::WriteMsr => {
                (Some(gpr(RCX) & 0xffff_ffff), Some(gpr(RDX) << 32 | gpr(RAX) & 0xffff_ffff))
            }
            _ => (None, None),
        }
    }
}
