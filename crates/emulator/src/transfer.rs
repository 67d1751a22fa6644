//! Instructions that move values: MOV and its relatives, exchanges, compare-and-exchange.

use iced_x86::Instruction;

use crate::alu::{self, Binary};
use crate::flags::{ZF, holds};
use crate::operand::width;
use crate::segmentation::Memory;
use crate::step::{Operand, Register, Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Exception, Gpr, Outcome};

impl<C: Cpu> Step<'_, C> {
    /// MOV, MOVNTI.
    pub(crate) fn mov(&mut self, to: Operand, from: Operand, width: Width) -> Result<Outcome, C> {
        let value = self.read(from, width)?;
        self.write(to, width, value)?;
        Ok(self.retire_unflagged())
    }

    /// XLAT.
    pub(crate) fn translate(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let from = self.operand(instruction, 0)?;
        let value = self.read(from, Width::Byte)?;
        self.set_register(Register::new(Gpr::Rax, Width::Byte), value);
        Ok(self.retire_unflagged())
    }

    /// BOUND: #BR if a signed index is outside the two bounds in memory.
    pub(crate) fn bound(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = width::<C>(instruction, 0)?;
        let index = self.operand(instruction, 0)?;
        let lower = self.memory(instruction, 0)?;
        let upper = self.memory(instruction, width.bytes() as u64)?;
        let [index, lower, upper] = [index, Operand::Memory(lower), Operand::Memory(upper)];
        let (index, lower) = (self.read(index, width)?, self.read(lower, width)?);
        let upper = self.read(upper, width)?;
        let [index, lower, upper] =
            [index, lower, upper].map(|value| width.sign_extend(value) as i64);
        if index < lower || index > upper {
            return Err(Exception::BOUND_RANGE.into());
        }
        Ok(self.retire_unflagged())
    }

    /// MOVZX, MOVSX, MOVSXD.
    pub(crate) fn mov_extended(
        &mut self,
        instruction: &Instruction,
        signed: bool,
    ) -> Result<Outcome, C> {
        let (to, from) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        let (to_width, from_width) = (width::<C>(instruction, 0)?, width::<C>(instruction, 1)?);
        let value = self.read(from, from_width)?;
        let value = if signed { from_width.sign_extend(value) } else { value };
        self.write(to, to_width, value)?;
        Ok(self.retire_unflagged())
    }

    /// MOVBE.
    pub(crate) fn mov_swapped(
        &mut self,
        to: Operand,
        from: Operand,
        width: Width,
    ) -> Result<Outcome, C> {
        let value = self.read(from, width)?;
        self.write(to, width, value.swap_bytes() >> (64 - width.bits()))?;
        Ok(self.retire_unflagged())
    }

    /// SETcc.
    pub(crate) fn set_condition(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let to = self.operand(instruction, 0)?;
        let condition =
            holds(instruction.condition_code(), self.cpu.rflags()).ok_or(Error::Unsupported)?;
        self.write(to, Width::Byte, condition.into())?;
        Ok(self.retire_unflagged())
    }

    /// CMOVcc: reads its source, and clears the upper half of a 32-bit destination, whatever the
    /// condition.
    pub(crate) fn mov_conditional(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let (to, from) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        let width = width::<C>(instruction, 0)?;
        let condition =
            holds(instruction.condition_code(), self.cpu.rflags()).ok_or(Error::Unsupported)?;
        let value = self.read(from, width)?;
        let old = self.read(to, width)?;
        self.write(to, width, if condition { value } else { old })?;
        Ok(self.retire_unflagged())
    }

    /// XCHG. `a` is the operand that may be in memory.
    pub(crate) fn exchange(&mut self, a: Operand, b: Operand, width: Width) -> Result<Outcome, C> {
        let (old_a, old_b) = (self.read_modify(a, width)?, self.read(b, width)?);
        self.write(a, width, old_b)?;
        self.write(b, width, old_a)?;
        Ok(self.retire_unflagged())
    }

    /// XADD.
    pub(crate) fn exchange_add(
        &mut self,
        to: Operand,
        from: Operand,
        width: Width,
    ) -> Result<Outcome, C> {
        let (old, addend) = (self.read_modify(to, width)?, self.read(from, width)?);
        let (sum, rflags) = alu::binary(Binary::Add, width, old, addend, self.cpu.rflags());
        if matches!(to, Operand::Memory(_)) {
            self.write(to, width, sum)?;
            self.write(from, width, old)?;
        } else {
            // If both are the same register, the sum stays.
            self.write(from, width, old)?;
            self.write(to, width, sum)?;
        }
        Ok(self.retire(rflags))
    }

    /// CMPXCHG. A destination in memory is written in any case, with what it held if the comparison
    /// fails.
    pub(crate) fn compare_exchange(
        &mut self,
        to: Operand,
        from: Operand,
        width: Width,
    ) -> Result<Outcome, C> {
        let accumulator = Register::new(Gpr::Rax, width);
        let expected = self.register(accumulator);
        let (old, new) = (self.read_modify(to, width)?, self.read(from, width)?);
        let (_, rflags) = alu::binary(Binary::Sub, width, expected, old, self.cpu.rflags());
        if old == expected {
            self.write(to, width, new)?;
        } else {
            if matches!(to, Operand::Memory(_)) {
                self.write(to, width, old)?;
            }
            self.set_register(accumulator, old);
        }
        Ok(self.retire(rflags))
    }

    /// CMPXCHG8B (`half` is 32 bits wide), CMPXCHG16B (64 bits). Of the flags only ZF changes.
    pub(crate) fn compare_exchange_pair(&mut self, to: Memory, half: Width) -> Result<Outcome, C> {
        let size = half.bytes();
        if half == Width::Qword && self.linear(to) % 16 != 0 {
            return Err(Error::Exception(Exception::GENERAL_PROTECTION));
        }
        let [rax, rdx, rbx, rcx] =
            [Gpr::Rax, Gpr::Rdx, Gpr::Rbx, Gpr::Rcx].map(|gpr| Register::new(gpr, half));
        let pair = |step: &Self, low, high| {
            let value =
                u128::from(step.register(high)) << half.bits() | u128::from(step.register(low));
            value.to_le_bytes()
        };
        let (expected, new) = (pair(self, rax, rdx), pair(self, rbx, rcx));
        let mut old = [0; 16];
        self.read_modify_bytes(to, &mut old[..size * 2])?;
        let equal = old == expected;
        self.write_bytes(to, if equal { &new[..size * 2] } else { &old[..size * 2] })?;
        let rflags = self.cpu.rflags();
        if equal {
            return Ok(self.retire(rflags | ZF));
        }
        let old = u128::from_le_bytes(old);
        self.set_register(rax, old as u64);
        self.set_register(rdx, (old >> half.bits()) as u64);
        Ok(self.retire(rflags & !ZF))
    }
}
