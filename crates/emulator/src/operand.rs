//! From the decoder's operands to ours: registers, effective addresses, segments.

use iced_x86::{Instruction, OpKind, Register as Iced};

use crate::segmentation::Memory;
use crate::step::{Operand, Register, Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Gpr, Mode, Segment};

/// The general-purpose register that the decoder means; none for any other kind of register.
pub(crate) fn register(register: Iced) -> Option<Register> {
    if !register.is_gpr() {
        return None;
    }
    let gpr = *Gpr::ALL.get(register.full_register().number())?;
    let high = matches!(register, Iced::AH | Iced::CH | Iced::DH | Iced::BH);
    Some(Register { gpr, width: Width::from_bytes(register.size())?, high })
}

/// Width of an operand that is a register or in memory.
pub(crate) fn width<C: Cpu>(instruction: &Instruction, operand: u32) -> Result<Width, C> {
    let width = match instruction.op_kind(operand) {
        OpKind::Register => {
            register(instruction.op_register(operand)).map(|register| register.width)
        }
        OpKind::Memory => Width::from_bytes(instruction.memory_size().size()),
        _ => None,
    };
    width.ok_or(Error::Unsupported)
}

impl<C: Cpu> Step<'_, C> {
    /// An operand, with its address computed if it is in memory.
    pub(crate) fn operand(&self, instruction: &Instruction, operand: u32) -> Result<Operand, C> {
        match instruction.op_kind(operand) {
            OpKind::Register => register(instruction.op_register(operand))
                .map(Operand::Register)
                .ok_or(Error::Unsupported),
            OpKind::Memory => self.memory(instruction, 0).map(Operand::Memory),
            _ => instruction
                .try_immediate(operand)
                .map(Operand::Immediate)
                .or(Err(Error::Unsupported)),
        }
    }

    /// The place that the ModRM byte (or a moffs) names, `addend` bytes further.
    pub(crate) fn memory(&self, instruction: &Instruction, addend: u64) -> Result<Memory, C> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let address_width = match (base, index) {
            (Iced::None, Iced::None) => Width::from_bytes(instruction.memory_displ_size() as usize),
            (Iced::None, _) => Width::from_bytes(index.size()),
            _ => Width::from_bytes(base.size()),
        };
        // For RIP-relative operands the decoder gives the sum as displacement.
        let part = |name| match name {
            Iced::None | Iced::RIP | Iced::EIP => Ok(0),
            _ => register(name).map(|register| self.register(register)).ok_or(Error::Unsupported),
        };
        let offset = part(base)?
            .wrapping_add(part(index)?.wrapping_mul(instruction.memory_index_scale().into()))
            .wrapping_add(instruction.memory_displacement64())
            .wrapping_add(addend);
        let offset = address_width.ok_or(Error::Unsupported)?.truncate(offset);
        let segment = segment(instruction.memory_segment()).ok_or(Error::Unsupported)?;
        let uses_stack = matches!(base, Iced::RSP | Iced::ESP | Iced::RBP | Iced::EBP);
        Ok(self.place(segment, offset, uses_stack))
    }

    /// The place at `offset` in a segment. `uses_stack` says whether the base register makes SS the
    /// default.
    pub(crate) fn place(&self, segment: Segment, offset: u64, uses_stack: bool) -> Memory {
        let segment = match (self.mode, segment) {
            // Prefixes that name these are ignored in 64-bit mode.
            (Mode::Bits64, Segment::Es | Segment::Cs | Segment::Ss | Segment::Ds) => {
                if uses_stack {
                    Segment::Ss
                } else {
                    Segment::Ds
                }
            }
            _ => segment,
        };
        Memory { segment, offset }
    }
}

/// The segment that the decoder means.
pub(crate) fn segment(register: Iced) -> Option<Segment> {
    Some(match register {
        Iced::ES => Segment::Es,
        Iced::CS => Segment::Cs,
        Iced::SS => Segment::Ss,
        Iced::DS => Segment::Ds,
        Iced::FS => Segment::Fs,
        Iced::GS => Segment::Gs,
        _ => return None,
    })
}
