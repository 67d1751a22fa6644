//! The end of an instruction that the hypervisor carries out, and debug traps behind it.

use umbra_emulator::Segment;
use umbra_vcpu::backend::{Events, Registers, Retirement, rflags};
use umbra_vcpu::breakpoints::Breakpoints;
use umbra_vcpu::control::cr4_more;
use umbra_vcpu::event::Event;
use umbra_vcpu::svm::exits::code;
use umbra_vcpu::svm::vmcb::part;

use super::backend::Svm;
use super::controls::{DEBUGCTL_BTF, DEBUGCTL_LBR};
use crate::hw::cpu;

/// Interrupts are blocked for one instruction.
pub(super) const SHADOW: u64 = 1 << 0;

/// DR6: access to a debug register.
const DR6_BD: u64 = 1 << 13;
/// DR6: single step.
const DR6_BS: u64 = 1 << 14;
/// DR6: task switch.
const DR6_BT: u64 = 1 << 15;
/// DR6: B0 to B3.
const DR6_HIT: u64 = 0xf;
/// DR7.GD.
const GENERAL_DETECT: u64 = 1 << 13;

impl Retirement for Svm {
    fn instruction_length(&self) -> Option<u8> {
        let control = &self.vmcb.control;
        let next = match control.exit_code {
            // Every CPU tells it there.
            code::IO => control.exit_info2,
            code::TASK_SWITCH => return None,
            _ if self.capabilities.next_rip => control.next_rip,
            _ => return None,
        };
        let length = next.wrapping_sub(self.vmcb.save.rip);
        (1..=15).contains(&length).then_some(length as u8)
    }

    fn is_untraced(&self) -> bool {
        self.vmcb.save.rflags & rflags::TF == 0 && !Breakpoints::enabled(self.vmcb.save.dr7)
    }

    fn breakpoints(&self) -> Breakpoints {
        let dr7 = self.vmcb.save.dr7;
        if !Breakpoints::enabled(dr7) {
            return Breakpoints::default();
        }
        Breakpoints::new(cpu::breakpoint_addresses(), dr7, self.cr4 & cr4_more::DE != 0)
    }

    fn retire(&mut self, met: u8) {
        self.vmcb.control.shadow = 0;
        self.held_by_mov_ss = false;
        let flags = self.vmcb.save.rflags;
        self.vmcb.save.rflags = flags & !rflags::RF;
        self.pending_debug |= u64::from(met);
        if flags & rflags::TF != 0 && self.debugctl & DEBUGCTL_BTF == 0 {
            self.pending_debug |= DR6_BS;
        }
    }

    fn block_by_mov_ss(&mut self) {
        self.vmcb.control.shadow = SHADOW;
        self.held_by_mov_ss = true;
    }

    fn debug_trap_due(&self) -> bool {
        self.pending_debug != 0
    }

    fn clear_local_breakpoints(&mut self) {
        /// L0 to L3 and LE.
        const LOCAL: u64 = 0x155;
        self.vmcb.save.dr7 &= !LOCAL;
        self.changed |= part::DEBUG_REGISTERS;
    }

    fn report_task_switch_trap(&mut self) {
        self.vmcb.save.dr6 |= DR6_BT;
        self.changed |= part::DEBUG_REGISTERS;
    }
}

impl Svm {
    /// Does to IA32_DEBUGCTL and DR7 what delivery of #DB does.
    pub(super) fn accept_debug_exception(&mut self) {
        self.set_debugctl(self.debugctl & !(DEBUGCTL_LBR | DEBUGCTL_BTF));
        let reasons = self.missing_reasons() | core::mem::take(&mut self.pending_debug);
        let save = &mut self.vmcb.save;
        save.dr6 |= reasons;
        save.dr7 &= !GENERAL_DETECT;
        self.changed |= part::DEBUG_REGISTERS;
    }

    /// Makes the debug trap that is due the event of the next entry.
    pub(super) fn deliver_debug_trap(&mut self) {
        if self.pending_debug == 0 || self.vmcb.control.event != 0 || self.isolation.is_some() {
            return;
        }
        if core::mem::take(&mut self.held_by_mov_ss) {
            return;
        }
        self.vmcb.save.dr6 &= !DR6_HIT;
        self.accept_debug_exception();
        self.inject(Event::debug());
    }

    /// Why a #DB came of which DR6 says nothing. The CPU changes DR6 before the intercept (APM,
    /// "#DB (Debug)"), but Bochs 2.7 does not: which data was met is lost there. A step over what
    /// clears TF is known by that no breakpoint can have trapped.
    fn missing_reasons(&self) -> u64 {
        const REASONS: u64 = DR6_HIT | DR6_BD | DR6_BS | DR6_BT;
        let save = &self.vmcb.save;
        if save.dr6 & REASONS != 0 || self.pending_debug != 0 {
            return 0;
        }
        let fetched = self.segment_base(Segment::Cs).wrapping_add(save.rip);
        let breakpoints = self.breakpoints();
        match breakpoints.on_instruction(fetched) {
            0 if save.rflags & rflags::TF != 0 || !breakpoints.can_trap() => DR6_BS,
            met => met.into(),
        }
    }
}
