//! The end of an instruction that the hypervisor carries out, and the debug traps behind it.

use crate::breakpoints::Breakpoints;

/// What the CPU does when an instruction retires, done for one that the hypervisor has carried out.
pub trait Retirement {
    /// Length of the instruction that exited, of an exit that
    /// [skips](super::Exit::skips_instruction) it. None if the hardware does not tell: then the
    /// shared code decodes the instruction before it answers the exit.
    fn instruction_length(&self) -> Option<u8>;
    /// Whether no trap can be due behind an instruction: neither single steps nor breakpoints are
    /// on.
    fn is_untraced(&self) -> bool;
    /// The breakpoints that the guest has set.
    fn breakpoints(&self) -> Breakpoints;
    /// An instruction retired (RIP stands behind it already), and met the breakpoints `met` (bits
    /// B0 to B3 of DR6). Ends what it ends: RF, and the shadow of STI and MOV SS. Starts a debug
    /// trap if one is due; a CPU without pending debug exceptions leaves it to the backend to
    /// deliver it at the next entry.
    fn retire(&mut self, met: u8);
    /// The instruction that retired last has loaded SS: the next instruction comes before any
    /// interrupt or debug trap.
    fn block_by_mov_ss(&mut self);
    /// Whether a debug trap comes at the next entry, before the next instruction.
    fn debug_trap_due(&self) -> bool;
    /// Clears the local enable bits of DR7.
    fn clear_local_breakpoints(&mut self);
    /// Sets DR6.BT.
    fn report_task_switch_trap(&mut self);
}
