//! The end of an instruction that the hypervisor carries out, and debug traps behind it.

use core::arch::asm;

use umbra_vcpu::backend::{ControlRegisters, Registers, Retirement, rflags};
use umbra_vcpu::breakpoints::Breakpoints;
use umbra_vcpu::control::cr4_more;
use x86::vmx::vmcs::guest;

use super::{BLOCKED_BY_MOV_SS, BLOCKED_BY_STI_OR_MOV_SS, DEBUGCTL_BTF, Vmx};
use crate::hw::cpu;

/// Pending debug exceptions: a breakpoint on data or a port that is enabled was met; bits 0 to 3
/// say which.
const PENDING_ENABLED_BREAKPOINT: u64 = 1 << 12;
/// Pending debug exceptions: single step.
const PENDING_SINGLE_STEP: u64 = 1 << 14;

impl Retirement for Vmx {
    fn instruction_length(&self) -> Option<u8> {
        Some(self.exit_instruction_length())
    }

    fn is_untraced(&self) -> bool {
        self.rflags() & rflags::TF == 0 && !Breakpoints::enabled(self.vmcs.read(guest::DR7))
    }

    fn breakpoints(&self) -> Breakpoints {
        let dr7 = self.vmcs.read(guest::DR7);
        if !Breakpoints::enabled(dr7) {
            return Breakpoints::default();
        }
        Breakpoints::new(cpu::breakpoint_addresses(), dr7, self.cr4() & cr4_more::DE != 0)
    }

    fn retire(&mut self, met: u8) {
        self.clear(guest::INTERRUPTIBILITY_STATE, BLOCKED_BY_STI_OR_MOV_SS);
        let flags = self.rflags();
        if flags & rflags::RF != 0 {
            self.set_rflags(flags & !rflags::RF);
        }
        let mut due = 0;
        if met != 0 {
            due |= PENDING_ENABLED_BREAKPOINT | u64::from(met);
        }
        if flags & rflags::TF != 0 && self.vmcs.read(guest::IA32_DEBUGCTL_FULL) & DEBUGCTL_BTF == 0
        {
            due |= PENDING_SINGLE_STEP;
        }
        if due != 0 {
            let pending = self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS);
            self.vmcs.write(guest::PENDING_DBG_EXCEPTIONS, pending | due);
        }
    }

    fn block_by_mov_ss(&mut self) {
        let state = self.vmcs.read(guest::INTERRUPTIBILITY_STATE);
        self.vmcs.write(guest::INTERRUPTIBILITY_STATE, state | BLOCKED_BY_MOV_SS);
    }

    fn debug_trap_due(&self) -> bool {
        const DUE: u64 = PENDING_ENABLED_BREAKPOINT | PENDING_SINGLE_STEP;
        self.vmcs.read(guest::PENDING_DBG_EXCEPTIONS) & DUE != 0
    }

    fn clear_local_breakpoints(&mut self) {
        /// L0 to L3 and LE.
        const LOCAL: u64 = 0x155;
        let dr7 = self.vmcs.read(guest::DR7);
        self.update(guest::DR7, dr7 & !LOCAL);
    }

    fn report_task_switch_trap(&mut self) {
        const BT: u64 = 1 << 15;
        let dr6: u64;
        // SAFETY: the debug registers DR0 to DR3 and DR6 are the guest's all the time.
        unsafe { asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags)) };
        // SAFETY: as above; all bits written exist.
        unsafe { asm!("mov dr6, {}", in(reg) dr6 | BT, options(nomem, nostack, preserves_flags)) };
    }
}
