//! Near branches that read or write memory.

use iced_x86::{Code, Instruction};

use crate::operand;
use crate::stack::stack_width;
use crate::step::{Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Outcome};

impl<C: Cpu> Step<'_, C> {
    /// Near CALL, relative or indirect.
    pub(crate) fn call(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let target = if instruction.is_call_near() {
            instruction.near_branch_target()
        } else if instruction.is_call_near_indirect() {
            self.indirect_target(instruction)?
        } else {
            return Err(Error::Unsupported);
        };
        self.check_target(target)?;
        self.push_value(self.next_rip, stack_width::<C>(instruction)?)?;
        self.next_rip = target;
        Ok(self.retire_unflagged())
    }

    /// Near JMP, indirect. (The others have no operand in memory.)
    pub(crate) fn jump(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        if !instruction.is_jmp_near_indirect() {
            return Err(Error::Unsupported);
        }
        let target = self.indirect_target(instruction)?;
        self.check_target(target)?;
        self.next_rip = target;
        Ok(self.retire_unflagged())
    }

    /// Near RET.
    pub(crate) fn ret(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let (width, released) = match instruction.code() {
            Code::Retnw => (Width::Word, 0),
            Code::Retnd => (Width::Dword, 0),
            Code::Retnq => (Width::Qword, 0),
            Code::Retnw_imm16 => (Width::Word, instruction.immediate16()),
            Code::Retnd_imm16 => (Width::Dword, instruction.immediate16()),
            Code::Retnq_imm16 => (Width::Qword, instruction.immediate16()),
            _ => return Err(Error::Unsupported),
        };
        let target = self.top_of_stack(width)?;
        self.check_target(target)?;
        let pointer = self.stack_pointer();
        let above = self.register(pointer).wrapping_add(width.bytes() as u64 + u64::from(released));
        self.set_register(pointer, above);
        self.next_rip = target;
        Ok(self.retire_unflagged())
    }

    fn indirect_target(&mut self, instruction: &Instruction) -> Result<u64, C> {
        let source = self.operand(instruction, 0)?;
        self.read(source, operand::width::<C>(instruction, 0)?)
    }
}
