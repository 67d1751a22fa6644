//! Instructions that push or pop more than one value.
//!
//! Those that push check every place before they write the first.

use iced_x86::{Code, Instruction};

use crate::segmentation::{Access, Memory};
use crate::step::{Operand, Register, Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Gpr, Outcome, Segment};

impl<C: Cpu> Step<'_, C> {
    /// The place `distance` bytes below what `register` points to on the stack.
    fn below(&self, register: Register, distance: u64) -> Memory {
        let offset = register.width.truncate(self.register(register).wrapping_sub(distance));
        self.place(Segment::Ss, offset, true)
    }

    /// ENTER. It ends with a check that the new top of the stack can be written.
    pub(crate) fn enter(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = match instruction.code() {
            Code::Enterw_imm16_imm8 => Width::Word,
            Code::Enterd_imm16_imm8 => Width::Dword,
            Code::Enterq_imm16_imm8 => Width::Qword,
            _ => return Err(Error::Unsupported),
        };
        let bytes = width.bytes() as u64;
        let (size, level) =
            (instruction.immediate16(), u64::from(instruction.immediate8_2nd() % 32));
        let pointer = self.stack_pointer();
        let old_frame = Register::new(Gpr::Rbp, pointer.width);
        // Slot 0 takes rBP, the last one the new frame's address, those between the display.
        let slot = |step: &Self, number: u64| step.below(pointer, (number + 1) * bytes);
        let displayed = |step: &Self, number: u64| step.below(old_frame, number * bytes);
        let top = self.below(pointer, (level + 1) * bytes + u64::from(size));

        self.check(slot(self, 0), width.bytes(), Access::Write)?;
        for number in 1..level {
            self.check(displayed(self, number), width.bytes(), Access::Read)?;
            self.check(slot(self, number), width.bytes(), Access::Write)?;
        }
        if level > 0 {
            self.check(slot(self, level), width.bytes(), Access::Write)?;
        }
        self.check(top, width.bytes(), Access::Write)?;

        // The frame temporary is the whole of SP, ESP or RSP, as the operand size says; a 16-bit
        // stack moves its low half alone (SDM volume 2, "ENTER").
        let moved = pointer.width.mask();
        let frame = self.cpu.gpr(Gpr::Rsp) & !moved | slot(self, 0).offset;
        self.write(Operand::Memory(slot(self, 0)), width, self.cpu.gpr(Gpr::Rbp))?;
        for number in 1..level {
            let value = self.read(Operand::Memory(displayed(self, number)), width)?;
            self.write(Operand::Memory(slot(self, number)), width, value)?;
        }
        if level > 0 {
            self.write(Operand::Memory(slot(self, level)), width, frame)?;
        }
        // With a 64-bit stack all of RBP is written.
        let frame_width = if pointer.width == Width::Qword { Width::Qword } else { width };
        self.set_register(Register::new(Gpr::Rbp, frame_width), frame);
        self.set_register(pointer, top.offset);
        Ok(self.retire_unflagged())
    }

    /// LEAVE.
    pub(crate) fn leave(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = match instruction.code() {
            Code::Leavew => Width::Word,
            Code::Leaved => Width::Dword,
            Code::Leaveq => Width::Qword,
            _ => return Err(Error::Unsupported),
        };
        let pointer = self.stack_pointer();
        let frame = Register::new(Gpr::Rbp, pointer.width);
        let above = self.register(frame).wrapping_add(width.bytes() as u64);
        let value = self.read(Operand::Memory(self.below(frame, 0)), width)?;
        self.set_register(pointer, above);
        self.set_register(Register::new(Gpr::Rbp, width), value);
        Ok(self.retire_unflagged())
    }

    /// PUSHA.
    pub(crate) fn push_all(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let (pointer, width) = (self.stack_pointer(), all_width::<C>(instruction)?);
        let slot =
            |step: &Self, number: usize| step.below(pointer, ((number + 1) * width.bytes()) as u64);
        for number in 0..8 {
            self.check(slot(self, number), width.bytes(), Access::Write)?;
        }
        for (number, gpr) in Gpr::ALL[..8].iter().enumerate() {
            self.write(Operand::Memory(slot(self, number)), width, self.cpu.gpr(*gpr))?;
        }
        self.set_register(pointer, slot(self, 7).offset);
        Ok(self.retire_unflagged())
    }

    /// POPA. The value for rSP is skipped.
    pub(crate) fn pop_all(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let (pointer, width) = (self.stack_pointer(), all_width::<C>(instruction)?);
        let popped = || Gpr::ALL[..8].iter().rev().enumerate().filter(|(_, gpr)| **gpr != Gpr::Rsp);
        let mut values = [0; 8];
        for (number, _) in popped() {
            let distance = ((number * width.bytes()) as u64).wrapping_neg();
            values[number] = self.read(Operand::Memory(self.below(pointer, distance)), width)?;
        }
        for (number, gpr) in popped() {
            self.set_register(Register::new(*gpr, width), values[number]);
        }
        self.set_register(pointer, self.register(pointer).wrapping_add(8 * width.bytes() as u64));
        Ok(self.retire_unflagged())
    }
}

fn all_width<C: Cpu>(instruction: &Instruction) -> Result<Width, C> {
    match instruction.code() {
        Code::Pushaw | Code::Popaw => Ok(Width::Word),
        Code::Pushad | Code::Popad => Ok(Width::Dword),
        _ => Err(Error::Unsupported),
    }
}
