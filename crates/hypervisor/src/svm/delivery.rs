//! Delivery of events to the guest.

use umbra_vcpu::backend::{Events, Windows, rflags};
use umbra_vcpu::event::{Event, EventKind};
use umbra_vcpu::svm::events::{injection, interrupted};
use umbra_vcpu::svm::vmcb::intercept1;

use super::backend::Svm;
use super::retirement::SHADOW;

impl Events for Svm {
    fn interrupted_event(&self) -> Option<Event> {
        interrupted(self.vmcb.control.exit_interrupt)
    }

    fn inject(&mut self, event: Event) {
        self.vmcb.control.event = injection(event);
        self.vmcb.control.shadow = 0;
        if event.kind == EventKind::Nmi {
            self.block_nmis(true);
        }
    }

    fn interruptible(&self) -> bool {
        self.vmcb.save.rflags & rflags::IF != 0
            && self.vmcb.control.shadow & SHADOW == 0
            && self.pending_debug == 0
    }

    fn nmi_ready(&self) -> bool {
        !self.nmis_blocked && self.vmcb.control.shadow & SHADOW == 0 && self.pending_debug == 0
    }

    fn block_nmis(&mut self, blocked: bool) {
        self.nmis_blocked = blocked;
        self.switch_intercept1(intercept1::IRET, blocked);
    }

    fn set_windows(&mut self, windows: Windows) {
        // IRET exits while NMIs are blocked. An interrupt shadow lasts one instruction, behind
        // which the next exit, of the heartbeat at the latest, finds it gone.
        self.interrupt_window = windows.interrupt;
    }
}
