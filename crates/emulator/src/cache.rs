//! Instructions that name memory and leave it alone: about caches, and NOP.

use iced_x86::Instruction;

use crate::segmentation::Access;
use crate::step::{Result, Step};
use crate::{Cpu, Outcome};

impl<C: Cpu> Step<'_, C> {
    /// CLFLUSH, CLFLUSHOPT, CLWB: checked as a read of a byte, except that code segments need not
    /// be readable (SDM volume 2, "CLFLUSH"). Guest memory is coherent, so nothing else is to do.
    pub(crate) fn flush_line(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let line = self.memory(instruction, 0)?;
        self.check(line, 1, Access::Flush)?;
        Ok(self.retire_unflagged())
    }

    /// NOP with an operand, and prefetches. They never fault (SDM volume 2, "PREFETCHh").
    pub(crate) fn hint(&mut self) -> Result<Outcome, C> {
        Ok(self.retire_unflagged())
    }
}
