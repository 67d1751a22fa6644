//! Injection of events, and the windows for it.

use umbra_vcpu::backend::{Events, Registers, Windows, rflags};
use umbra_vcpu::event::{Event, EventKind};
use x86::vmx::vmcs::control::PrimaryControls;
use x86::vmx::vmcs::{control, guest};

use super::exits::{self, info};
use super::{BLOCKED_BY_NMI, BLOCKED_BY_STI_OR_MOV_SS, Vmx};

impl Events for Vmx {
    fn interrupted_event(&self) -> Option<Event> {
        if self.vectoring & info::VALID == 0 { None } else { Some(self.vectored_event()) }
    }

    fn inject(&mut self, event: Event) {
        // Delivery ends what STI and MOV SS block; VM entry refuses the state otherwise if
        // RFLAGS.TF is set (SDM, "Checks on Guest Non-Register State", pending debug exceptions).
        self.clear(guest::INTERRUPTIBILITY_STATE, BLOCKED_BY_STI_OR_MOV_SS);
        let mut field = info::VALID
            | exits::event_type(event.kind) << info::TYPE_SHIFT
            | u64::from(event.vector);
        if let Some(error_code) = event.error_code {
            field |= info::ERROR_CODE;
            self.vmcs.write(control::VMENTRY_EXCEPTION_ERR_CODE, error_code.into());
        }
        if let EventKind::Software { length, .. } = event.kind {
            self.vmcs.write(control::VMENTRY_INSTRUCTION_LEN, length.into());
        }
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, field);
    }

    fn interruptible(&self) -> bool {
        self.rflags() & rflags::IF != 0
            && self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & BLOCKED_BY_STI_OR_MOV_SS == 0
            && self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS) == 0
    }

    fn nmi_ready(&self) -> bool {
        self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & (BLOCKED_BY_NMI | BLOCKED_BY_STI_OR_MOV_SS)
            == 0
            && self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS) == 0
    }

    fn block_nmis(&mut self, blocked: bool) {
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE) & !BLOCKED_BY_NMI;
        let bit = if blocked { BLOCKED_BY_NMI } else { 0 };
        self.update(guest::INTERRUPTIBILITY_STATE, state | bit);
    }

    fn set_windows(&mut self, windows: Windows) {
        self.switch_primary(PrimaryControls::INTERRUPT_WINDOW_EXITING, windows.interrupt);
        self.switch_primary(PrimaryControls::NMI_WINDOW_EXITING, windows.nmi);
    }
}
