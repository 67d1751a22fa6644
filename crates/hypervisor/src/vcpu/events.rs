//! Events on their way to the guest.

use umbra_telemetry::GuestExit;
use umbra_vcpu::backend::{Backend, Windows, rflags};
use umbra_vcpu::event::{Combined, DEBUG, Event, EventKind, combine};

use super::Vcpu;

/// The event to deliver next, and what the guest is left for when it can take others.
#[derive(Default)]
pub struct Deliveries {
    /// Delivered at the next entry: interrupted by the last exit, or raised in answer to it.
    pending: Option<Event>,
    windows: Windows,
}

impl Deliveries {
    /// Whether an event is under way: then no instruction is.
    pub fn under_way(&self) -> bool {
        self.pending.is_some()
    }

    /// The event under way, if one is.
    pub fn pending(&self) -> Option<Event> {
        self.pending
    }

    /// The event under way, which the caller delivers.
    pub fn take(&mut self) -> Option<Event> {
        self.pending.take()
    }

    /// This event, and no other, is delivered at the next entry; none if `None`.
    pub fn replace(&mut self, event: impl Into<Option<Event>>) {
        self.pending = event.into();
    }
}

impl<B: Backend> Vcpu<B> {
    /// Hands an exception to the guest that the CPU has raised.
    pub(super) fn reflect(&mut self, event: Event) {
        // User mode gets #GP of these; the guest's CPU does not have them.
        if event == Event::general_protection() && self.is_virtualization() {
            return self.raise(Event::invalid_opcode());
        }
        // Most are faults; #DB and INT1 push the flags as they are.
        if event.kind == EventKind::Exception && event.vector != DEBUG {
            self.raise(event);
        } else {
            self.deliver(event);
        }
    }

    /// Raises a fault: of the instruction at RIP, or within the delivery of the event that the exit
    /// interrupted.
    pub(super) fn raise(&mut self, fault: Event) {
        // Faults push RF set (SDM, "Instruction-Breakpoint Exception Condition"), and injection
        // leaves that to us.
        self.backend.set_rflags(self.backend.rflags() | rflags::RF);
        self.deliver(fault);
    }

    /// Delivers an exception whose flags are right already.
    pub(super) fn deliver(&mut self, exception: Event) {
        self.faults.progress_made();
        match combine(self.events.pending, exception) {
            Combined::Deliver(event) => self.events.pending = Some(event),
            Combined::TripleFault => self.end = Some(GuestExit::TripleFault),
        }
    }

    /// Delivers an event at the next entry, if one waits that the guest can take, and waits for
    /// those that it cannot.
    pub(super) fn prepare_events(&mut self) {
        // Mostly there is nothing to deliver or to wait for.
        let waits = self.events.under_way() || self.platform.has_event();
        if waits || self.events.windows != Windows::default() {
            self.choose_event();
        }
    }

    #[inline(never)]
    fn choose_event(&mut self) {
        if self.events.pending.is_none() {
            if self.platform.nmi_pending() && self.backend.nmi_ready() && self.platform.take_nmi() {
                self.events.pending = Some(Event::nmi());
            } else if self.platform.pending_interrupt() && self.backend.interruptible() {
                self.events.pending = self.platform.acknowledge().map(Event::interrupt);
            }
        }
        let windows = Windows {
            interrupt: self.platform.pending_interrupt(),
            nmi: self.platform.nmi_pending(),
        };
        if windows != self.events.windows {
            self.events.windows = windows;
            self.backend.set_windows(windows);
        }
        if let Some(event) = self.events.pending.take() {
            self.note(|exit| exit.delivers = Some(event.vector));
            self.backend.inject(event);
        }
    }
}
