//! Instructions that use the stack.

use iced_x86::Instruction;

use crate::step::{Operand, Register, Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Gpr, Mode, Outcome, Segment};

impl<C: Cpu> Step<'_, C> {
    pub(crate) fn stack_pointer(&self) -> Register {
        let width = match self.mode {
            Mode::Bits64 => Width::Qword,
            Mode::Bits16 | Mode::Bits32 => Width::from(self.cpu.stack_mode()),
        };
        Register::new(Gpr::Rsp, width)
    }

    /// Writes `value` below the stack pointer, then moves that.
    pub(crate) fn push_value(&mut self, value: u64, width: Width) -> Result<(), C> {
        let pointer = self.stack_pointer();
        let below =
            pointer.width.truncate(self.register(pointer).wrapping_sub(width.bytes() as u64));
        let place = self.place(Segment::Ss, below, true);
        self.write(Operand::Memory(place), width, value)?;
        self.set_register(pointer, below);
        Ok(())
    }

    /// The value that the stack pointer points to.
    pub(crate) fn top_of_stack(&mut self, width: Width) -> Result<u64, C> {
        let top = self.place(Segment::Ss, self.register(self.stack_pointer()), true);
        self.read(Operand::Memory(top), width)
    }

    /// PUSH of a register, memory or immediate operand.
    pub(crate) fn push(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let operand = self.operand(instruction, 0)?;
        let width = stack_width::<C>(instruction)?;
        let value = self.read(operand, width)?;
        self.push_value(value, width)?;
        Ok(self.retire_unflagged())
    }

    /// POP to a register or memory. A destination addressed by RSP is found with RSP already moved.
    pub(crate) fn pop(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = stack_width::<C>(instruction)?;
        let pointer = self.stack_pointer();
        let top = self.register(pointer);
        let above = top.wrapping_add(width.bytes() as u64);
        let rsp = self.cpu.gpr(Gpr::Rsp);
        self.set_register(pointer, above);
        let to = self.operand(instruction, 0);
        self.cpu.set_gpr(Gpr::Rsp, rsp);
        let to = to?;
        let value = self.top_of_stack(width)?;
        if let Operand::Register(register) = to {
            // POP RSP: the value popped stays.
            self.set_register(pointer, above);
            self.set_register(register, value);
        } else {
            self.write(to, width, value)?;
            self.set_register(pointer, above);
        }
        Ok(self.retire_unflagged())
    }
}

/// What the instruction moves the stack pointer by.
pub(crate) fn stack_width<C: Cpu>(instruction: &Instruction) -> Result<Width, C> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs();
    Width::from_bytes(bytes as usize).ok_or(Error::Unsupported)
}
