//! One instruction under way: its operands, and how they are read and written.

use crate::flags::RF;
use crate::segmentation::{Access, Memory};
use crate::width::Width;
use crate::{Cpu, Error, Gpr, Mode, Outcome};

pub(crate) type Result<T, C> = core::result::Result<T, Error<<C as Cpu>::Fault>>;

/// A general-purpose register or the part of one that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) gpr: Gpr,
    pub(crate) width: Width,
    /// AH, CH, DH or BH: bits 8 to 15 of `gpr`.
    pub(crate) high: bool,
}

impl Register {
    pub(crate) fn new(gpr: Gpr, width: Width) -> Self {
        Register { gpr, width, high: false }
    }
}

/// An operand with its address computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Register(Register),
    Memory(Memory),
    /// Sign-extended as the instruction demands, at least to the width of the operation.
    Immediate(u64),
}

/// The processor, and where it goes on behind the instruction.
pub(crate) struct Step<'a, C: Cpu> {
    pub(crate) cpu: &'a mut C,
    pub(crate) mode: Mode,
    pub(crate) next_rip: u64,
}

impl<C: Cpu> Step<'_, C> {
    pub(crate) fn register(&self, register: Register) -> u64 {
        let value = self.cpu.gpr(register.gpr);
        register.width.truncate(if register.high { value >> 8 } else { value })
    }

    /// Writes a register: 32 bits clear the upper half, 8 and 16 bits leave the rest alone
    /// (SDM volume 1, "General-Purpose Registers in 64-Bit Mode").
    pub(crate) fn set_register(&mut self, register: Register, value: u64) {
        let value = register.width.truncate(value);
        let whole = match register.width {
            Width::Qword | Width::Dword => value,
            Width::Word | Width::Byte => {
                let shift = if register.high { 8 } else { 0 };
                self.cpu.gpr(register.gpr) & !(register.width.mask() << shift) | value << shift
            }
        };
        self.cpu.set_gpr(register.gpr, whole);
    }

    pub(crate) fn read_bytes(&mut self, memory: Memory, bytes: &mut [u8]) -> Result<(), C> {
        let gva = self.approach(memory, bytes.len(), Access::Read)?;
        self.cpu.read(gva, bytes).map_err(Error::Fault)
    }

    pub(crate) fn read_modify_bytes(&mut self, memory: Memory, bytes: &mut [u8]) -> Result<(), C> {
        let gva = self.approach(memory, bytes.len(), Access::Write)?;
        self.cpu.read_modify(gva, bytes).map_err(Error::Fault)
    }

    pub(crate) fn write_bytes(&mut self, memory: Memory, bytes: &[u8]) -> Result<(), C> {
        let gva = self.approach(memory, bytes.len(), Access::Write)?;
        self.cpu.write(gva, bytes).map_err(Error::Fault)
    }

    pub(crate) fn read(&mut self, operand: Operand, width: Width) -> Result<u64, C> {
        match operand {
            Operand::Register(register) => Ok(self.register(register)),
            Operand::Immediate(value) => Ok(width.truncate(value)),
            Operand::Memory(memory) => {
                let mut bytes = [0; 8];
                self.read_bytes(memory, &mut bytes[..width.bytes()])?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    /// Reads what [`write`](Step::write) will replace.
    pub(crate) fn read_modify(&mut self, operand: Operand, width: Width) -> Result<u64, C> {
        match operand {
            Operand::Memory(memory) => {
                let mut bytes = [0; 8];
                self.read_modify_bytes(memory, &mut bytes[..width.bytes()])?;
                Ok(u64::from_le_bytes(bytes))
            }
            Operand::Register(_) | Operand::Immediate(_) => self.read(operand, width),
        }
    }

    /// Writes an operand. An instruction that writes memory does so before it changes any register:
    /// the write may fault.
    pub(crate) fn write(&mut self, operand: Operand, width: Width, value: u64) -> Result<(), C> {
        match operand {
            Operand::Register(register) => {
                self.set_register(register, value);
                Ok(())
            }
            Operand::Memory(memory) => {
                self.write_bytes(memory, &value.to_le_bytes()[..width.bytes()])
            }
            Operand::Immediate(_) => Err(Error::Unsupported),
        }
    }

    /// Ends the instruction with these flags.
    pub(crate) fn retire(&mut self, rflags: u64) -> Outcome {
        self.cpu.set_rflags(rflags & !RF);
        self.cpu.set_rip(self.next_rip);
        Outcome::Done
    }

    /// Ends the instruction with the flags as they are.
    pub(crate) fn retire_unflagged(&mut self) -> Outcome {
        self.retire(self.cpu.rflags())
    }
}
