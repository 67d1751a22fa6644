//! Instructions that compute: arithmetic, logic, shifts, bit tests.

use iced_x86::{Instruction, OpKind};

use crate::alu::{self, Binary, BitChange, Shift, Unary};
use crate::flags::CF;
use crate::operand::width;
use crate::step::{Operand, Result, Step};
use crate::width::Width;
use crate::{Cpu, Outcome};

impl<C: Cpu> Step<'_, C> {
    /// ADD, ADC, SUB, SBB, AND, OR, XOR.
    pub(crate) fn binary(
        &mut self,
        instruction: &Instruction,
        operation: Binary,
    ) -> Result<Outcome, C> {
        let (to, from) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        let width = width::<C>(instruction, 0)?;
        let (a, b) = match from {
            Operand::Memory(_) => (self.read(to, width)?, self.read(from, width)?),
            _ => (self.read_modify(to, width)?, self.read(from, width)?),
        };
        let (result, rflags) = alu::binary(operation, width, a, b, self.cpu.rflags());
        self.write(to, width, result)?;
        Ok(self.retire(rflags))
    }

    /// CMP (a subtraction), TEST (an AND).
    pub(crate) fn compare(
        &mut self,
        instruction: &Instruction,
        operation: Binary,
    ) -> Result<Outcome, C> {
        let (a, b) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        let width = width::<C>(instruction, 0)?;
        let (a, b) = (self.read(a, width)?, self.read(b, width)?);
        let (_, rflags) = alu::binary(operation, width, a, b, self.cpu.rflags());
        Ok(self.retire(rflags))
    }

    /// INC, DEC, NEG, NOT.
    pub(crate) fn unary(
        &mut self,
        instruction: &Instruction,
        operation: Unary,
    ) -> Result<Outcome, C> {
        let to = self.operand(instruction, 0)?;
        let width = width::<C>(instruction, 0)?;
        let a = self.read_modify(to, width)?;
        let (result, rflags) = alu::unary(operation, width, a, self.cpu.rflags());
        self.write(to, width, result)?;
        Ok(self.retire(rflags))
    }

    /// Shifts and rotations.
    pub(crate) fn shift(
        &mut self,
        instruction: &Instruction,
        operation: Shift,
    ) -> Result<Outcome, C> {
        let (to, count) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        let width = width::<C>(instruction, 0)?;
        let count = self.read(count, Width::Byte)?;
        let a = self.read_modify(to, width)?;
        let shifted = alu::shift(operation, width, a, count, self.cpu.rflags());
        self.write_shifted(to, width, a, shifted)
    }

    /// SHLD, SHRD.
    pub(crate) fn double_shift(
        &mut self,
        instruction: &Instruction,
        left: bool,
    ) -> Result<Outcome, C> {
        let (to, from, count) = (
            self.operand(instruction, 0)?,
            self.operand(instruction, 1)?,
            self.operand(instruction, 2)?,
        );
        let width = width::<C>(instruction, 0)?;
        let (b, count) = (self.read(from, width)?, self.read(count, Width::Byte)?);
        let a = self.read_modify(to, width)?;
        let shifted = alu::double_shift(left, width, (a, b), count, self.cpu.rflags());
        self.write_shifted(to, width, a, shifted)
    }

    /// Ends a shift. By nothing, it writes no memory, but clears the upper half of a 32-bit
    /// register.
    fn write_shifted(
        &mut self,
        to: Operand,
        width: Width,
        old: u64,
        shifted: Option<(u64, u64)>,
    ) -> Result<Outcome, C> {
        match (shifted, to) {
            (Some((result, rflags)), _) => {
                self.write(to, width, result)?;
                Ok(self.retire(rflags))
            }
            (None, Operand::Register(register)) => {
                self.set_register(register, old);
                Ok(self.retire_unflagged())
            }
            (None, _) => Ok(self.retire_unflagged()),
        }
    }

    /// BT, BTS, BTR, BTC. A bit offset in a register is signed and reaches beyond a memory operand
    /// (SDM volume 2, "BT—Bit Test").
    pub(crate) fn bit_test(
        &mut self,
        instruction: &Instruction,
        change: BitChange,
    ) -> Result<Outcome, C> {
        let width = width::<C>(instruction, 0)?;
        let offset = self.operand(instruction, 1)?;
        let offset = self.read(offset, width)?;
        let memory = instruction.op0_kind() == OpKind::Memory;
        let to = if memory && instruction.op1_kind() == OpKind::Register {
            let element = (width.sign_extend(offset) as i64) >> width.bits().trailing_zeros();
            let addend = (element as u64).wrapping_mul(width.bytes() as u64);
            Operand::Memory(self.memory(instruction, addend)?)
        } else {
            self.operand(instruction, 0)?
        };
        let bit = 1 << (offset & u64::from(width.bits() - 1));
        let rflags = self.cpu.rflags();
        let old = if change == BitChange::Keep {
            self.read(to, width)?
        } else {
            let old = self.read_modify(to, width)?;
            self.write(to, width, change.apply(old, bit))?;
            old
        };
        Ok(self.retire(if old & bit != 0 { rflags | CF } else { rflags & !CF }))
    }
}
