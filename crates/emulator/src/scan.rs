//! Instructions that look for bits, count them, or sum them up.

use iced_x86::Instruction;

use crate::alu;
use crate::flags::{CF, STATUS, ZF};
use crate::operand::width;
use crate::step::{Operand, Result, Step};
use crate::width::Width;
use crate::{Cpu, Feature, Outcome};

/// Which end of the operand the search starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Bottom,
    Top,
}

/// The reflected polynomial of CRC-32C.
const CASTAGNOLI: u32 = 0x82f6_3b78;

impl<C: Cpu> Step<'_, C> {
    /// BSF, BSR. An operand of zero leaves the destination alone, as in Bochs.
    pub(crate) fn bit_scan(&mut self, instruction: &Instruction, from: From) -> Result<Outcome, C> {
        let (to, width, value) = self.scanned(instruction)?;
        let rflags = self.cpu.rflags();
        if value == 0 {
            return Ok(self.retire(rflags | ZF));
        }
        let index = match from {
            From::Bottom => value.trailing_zeros(),
            From::Top => value.ilog2(),
        };
        self.write(to, width, index.into())?;
        Ok(self.retire(alu::logic_flags(width, index.into(), rflags) & !ZF))
    }

    /// TZCNT, LZCNT. Processors without them ignore the prefix, and find BSF and BSR.
    pub(crate) fn count_zeros(
        &mut self,
        instruction: &Instruction,
        from: From,
    ) -> Result<Outcome, C> {
        let feature = if from == From::Bottom { Feature::Tzcnt } else { Feature::Lzcnt };
        if !self.cpu.has(feature) {
            return self.bit_scan(instruction, from);
        }
        let (to, width, value) = self.scanned(instruction)?;
        let zeros = match from {
            From::Bottom => value.trailing_zeros().min(width.bits()),
            From::Top => value.leading_zeros() - (64 - width.bits()),
        };
        let carry = if value == 0 { CF } else { 0 };
        let rflags = alu::logic_flags(width, zeros.into(), self.cpu.rflags()) | carry;
        self.write(to, width, zeros.into())?;
        Ok(self.retire(rflags))
    }

    /// POPCNT.
    pub(crate) fn count_ones(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let (to, width, value) = self.scanned(instruction)?;
        self.write(to, width, value.count_ones().into())?;
        let zero = if value == 0 { ZF } else { 0 };
        Ok(self.retire(self.cpu.rflags() & !STATUS | zero))
    }

    /// CRC32.
    pub(crate) fn crc32(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let (to, from) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        let (to_width, from_width) = (width::<C>(instruction, 0)?, width::<C>(instruction, 1)?);
        let value = self.read(from, from_width)?;
        let mut crc = self.read(to, to_width)? as u32;
        for byte in &value.to_le_bytes()[..from_width.bytes()] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 != 0 { CASTAGNOLI } else { 0 };
            }
        }
        self.write(to, to_width, crc.into())?;
        Ok(self.retire_unflagged())
    }

    fn scanned(&mut self, instruction: &Instruction) -> Result<(Operand, Width, u64), C> {
        let (to, from) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        let width = width::<C>(instruction, 0)?;
        let value = self.read(from, width)?;
        Ok((to, width, value))
    }
}
