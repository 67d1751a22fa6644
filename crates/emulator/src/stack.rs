//! Instructions that use the stack.

use iced_x86::{Instruction, OpKind, Register as Iced};

use crate::flags::{RF, VM};
use crate::operand;
use crate::step::{Operand, Register, Result, Step, is_canonical};
use crate::width::Width;
use crate::{Cpu, Error, Exception, Gpr, Mode, Outcome, Segment};

impl<C: Cpu> Step<'_, C> {
    fn stack_pointer(&self) -> Register {
        let width = match self.mode {
            Mode::Bits64 => Width::Qword,
            Mode::Bits16 | Mode::Bits32 => Width::from(self.cpu.stack_mode()),
        };
        Register::new(Gpr::Rsp, width)
    }

    /// Writes `value` below the stack pointer, then moves that.
    fn push_value(&mut self, value: u64, width: Width) -> Result<(), C> {
        let pointer = self.stack_pointer();
        let below = pointer.width.truncate(self.register(pointer).wrapping_sub(width.bytes() as u64));
        let place = self.place(Segment::Ss, below, true);
        self.write(Operand::Memory(place), width, value)?;
        self.set_register(pointer, below);
        Ok(())
    }

    /// PUSH of a register, memory or immediate operand.
    pub(crate) fn push(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let operand = self.operand(instruction, 0)?;
        let width = stack_width::<C>(instruction)?;
        let value = self.read(operand, width)?;
        self.push_value(value, width)?;
        Ok(self.retire_unflagged())
    }

    /// PUSHF: VM and RF read as zero.
    pub(crate) fn push_flags(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let rflags = self.cpu.rflags();
        self.push_value(rflags & !(VM | RF), stack_width::<C>(instruction)?)?;
        Ok(self.retire_unflagged())
    }

    /// POP to a register or memory. A destination addressed by RSP is found with RSP already moved.
    pub(crate) fn pop(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = stack_width::<C>(instruction)?;
        let step = width.bytes() as u64;
        let to = match instruction.op0_kind() {
            OpKind::Memory => {
                let by_stack_pointer = matches!(instruction.memory_base(), Iced::RSP | Iced::ESP);
                Operand::Memory(self.memory(instruction, if by_stack_pointer { step } else { 0 })?)
            }
            _ => self.operand(instruction, 0)?,
        };
        let pointer = self.stack_pointer();
        let top = self.register(pointer);
        let place = self.place(Segment::Ss, top, true);
        let value = self.read(Operand::Memory(place), width)?;
        let above = top.wrapping_add(step);
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

    /// Near CALL, relative or indirect.
    pub(crate) fn call(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = stack_width::<C>(instruction)?;
        let target = if instruction.is_call_near() {
            instruction.near_branch_target()
        } else if instruction.is_call_near_indirect() {
            let source = self.operand(instruction, 0)?;
            self.read(source, operand::width::<C>(instruction, 0)?)?
        } else {
            return Err(Error::Unsupported);
        };
        if self.mode == Mode::Bits64 && !is_canonical(target) {
            return Err(Error::Exception(Exception::GENERAL_PROTECTION));
        }
        self.push_value(self.next_rip, width)?;
        self.next_rip = target;
        Ok(self.retire_unflagged())
    }
}

/// What the instruction moves the stack pointer by.
fn stack_width<C: Cpu>(instruction: &Instruction) -> Result<Width, C> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs();
    Width::from_bytes(bytes as usize).ok_or(Error::Unsupported)
}
