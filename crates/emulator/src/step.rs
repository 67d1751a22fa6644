//! One instruction under way: its operands, and how they are read and written.

use crate::flags::RF;
use crate::width::Width;
use crate::{Cpu, Error, Exception, Gpr, Mode, Outcome};

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

/// A place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Linear address.
    pub(crate) gva: u64,
    /// Reached by way of SS: a bad address is #SS, not #GP.
    pub(crate) stack: bool,
}

impl Memory {
    /// The exception for an address that cannot be accessed at all.
    pub(crate) fn bad_address<F>(self) -> Error<F> {
        if self.stack {
            Error::Exception(Exception::STACK_FAULT)
        } else {
            Error::Exception(Exception::GENERAL_PROTECTION)
        }
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

    /// The linear address of `offset` in a segment with the given base.
    pub(crate) fn linear(&self, base: u64, offset: u64) -> u64 {
        let gva = base.wrapping_add(offset);
        if self.mode == Mode::Bits64 { gva } else { Width::Dword.truncate(gva) }
    }

    /// Refuses addresses that are not canonical, and accesses that wrap at the end of the address space. For the
    /// latter the manual leaves the choice (SDM volume 3, "Limit Checking").
    fn check(&self, memory: Memory, length: usize) -> Result<(), C> {
        let last = memory.gva.checked_add(length as u64 - 1).ok_or(memory.bad_address())?;
        let good = match self.mode {
            Mode::Bits64 => is_canonical(memory.gva) && is_canonical(last),
            Mode::Bits32 | Mode::Bits16 => last <= u64::from(u32::MAX),
        };
        if good { Ok(()) } else { Err(memory.bad_address()) }
    }

    pub(crate) fn read_bytes(&mut self, memory: Memory, bytes: &mut [u8]) -> Result<(), C> {
        self.check(memory, bytes.len())?;
        self.cpu.read(memory.gva, bytes).map_err(Error::Fault)
    }

    pub(crate) fn read_modify_bytes(&mut self, memory: Memory, bytes: &mut [u8]) -> Result<(), C> {
        self.check(memory, bytes.len())?;
        self.cpu.read_modify(memory.gva, bytes).map_err(Error::Fault)
    }

    pub(crate) fn write_bytes(&mut self, memory: Memory, bytes: &[u8]) -> Result<(), C> {
        self.check(memory, bytes.len())?;
        self.cpu.write(memory.gva, bytes).map_err(Error::Fault)
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

    /// Writes an operand. An instruction that writes memory does so before it changes any register: the write may
    /// fault.
    pub(crate) fn write(&mut self, operand: Operand, width: Width, value: u64) -> Result<(), C> {
        match operand {
            Operand::Register(register) => {
                self.set_register(register, value);
                Ok(())
            }
            Operand::Memory(memory) => self.write_bytes(memory, &value.to_le_bytes()[..width.bytes()]),
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

/// Canonical for 48-bit linear addresses.
pub(crate) fn is_canonical(gva: u64) -> bool {
    (gva as i64) << 16 >> 16 == gva as i64
}
