//! Multiplication and division.

use iced_x86::Instruction;

use crate::alu;
use crate::operand::width;
use crate::step::{Register, Result, Step};
use crate::width::Width;
use crate::{Cpu, Exception, Gpr, Outcome};

impl<C: Cpu> Step<'_, C> {
    /// MUL and IMUL of one operand: the accumulator becomes the whole product.
    pub(crate) fn multiply(
        &mut self,
        instruction: &Instruction,
        signed: bool,
    ) -> Result<Outcome, C> {
        let factor = self.operand(instruction, 0)?;
        let width = width::<C>(instruction, 0)?;
        let factor = self.read(factor, width)?;
        let (low, high) = accumulator(width);
        let product = alu::multiply(width, self.register(low), factor, signed, self.cpu.rflags());
        self.set_register(low, product.low);
        self.set_register(high, product.high);
        Ok(self.retire(product.rflags))
    }

    /// IMUL of two or three operands: the last two are multiplied, and the first is a register.
    pub(crate) fn multiply_truncated(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let count = instruction.op_count();
        let (to, a, b) = (
            self.operand(instruction, 0)?,
            self.operand(instruction, count - 2)?,
            self.operand(instruction, count - 1)?,
        );
        let width = width::<C>(instruction, 0)?;
        let (a, b) = (self.read(a, width)?, self.read(b, width)?);
        let product = alu::multiply(width, a, b, true, self.cpu.rflags());
        self.write(to, width, product.low)?;
        Ok(self.retire(product.rflags))
    }

    /// DIV and IDIV. The flags are undefined afterwards, and stay as they were, as in Bochs.
    pub(crate) fn divide(&mut self, instruction: &Instruction, signed: bool) -> Result<Outcome, C> {
        let divisor = self.operand(instruction, 0)?;
        let width = width::<C>(instruction, 0)?;
        let divisor = self.read(divisor, width)?;
        let (low, high) = accumulator(width);
        let (quotient, remainder) =
            alu::divide(width, (self.register(high), self.register(low)), divisor, signed)
                .ok_or(Exception::DIVIDE_ERROR)?;
        self.set_register(low, quotient);
        self.set_register(high, remainder);
        Ok(self.retire_unflagged())
    }
}

/// AX as AL and AH, or rDX:rAX.
fn accumulator(width: Width) -> (Register, Register) {
    let low = Register::new(Gpr::Rax, width);
    let high = match width {
        Width::Byte => Register { high: true, ..low },
        _ => Register::new(Gpr::Rdx, width),
    };
    (low, high)
}
