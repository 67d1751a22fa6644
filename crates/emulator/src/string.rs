//! String instructions and their repetition.

use iced_x86::{Instruction, OpKind, Register as Iced};

use crate::alu::{self, Binary};
use crate::flags::{DF, RF, TF};
use crate::operand::segment;
use crate::step::{Operand, Register, Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Gpr, Outcome, Segment};

/// Iterations of one call: enough to make decoding cheap beside them, few enough for interrupts not to wait long.
pub(crate) const MAX_ITERATIONS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

/// What an iteration compared: (minuend, subtrahend).
type Compared = Option<(u64, u64)>;

struct StringStep {
    kind: Kind,
    width: Width,
    source: Segment,
    accumulator: Register,
    rcx: Register,
    rsi: Register,
    rdi: Register,
    /// What one iteration adds to RSI and RDI.
    stride: u64,
}

impl<C: Cpu> Step<'_, C> {
    pub(crate) fn string(&mut self, instruction: &Instruction, kind: Kind) -> Result<Outcome, C> {
        let rflags = self.cpu.rflags();
        let string = self.string_step(instruction, kind, rflags)?;
        // The prefixes are one and the same to all but CMPS and SCAS.
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if !repeated {
            let compared = self.iteration(&string)?;
            return Ok(self.retire(flags_of(compared, string.width, rflags)));
        }
        let until_equal = instruction.has_repne_prefix();
        let mut count = self.register(string.rcx);
        if count == 0 {
            return Ok(self.retire(rflags));
        }
        let iterations = if rflags & TF != 0 { 1 } else { MAX_ITERATIONS };
        for _ in 0..iterations {
            let compared = self.iteration(&string)?;
            count -= 1;
            self.set_register(string.rcx, count);
            let stopped = compared.is_some_and(|(a, b)| (a == b) == until_equal);
            if count == 0 || stopped {
                return Ok(self.retire(flags_of(compared, string.width, rflags)));
            }
            if self.cpu.trap_due() {
                break;
            }
        }
        // The status flags stay as before the instruction until its end (SDM volume 2, "REP/REPE/REPZ/REPNE/REPNZ").
        self.cpu.set_rflags(rflags | RF);
        Ok(Outcome::Continue)
    }

    fn string_step(&self, instruction: &Instruction, kind: Kind, rflags: u64) -> Result<StringStep, C> {
        // The address width shows in the operand kind; a first operand of LODS or SCAS is the accumulator.
        let memory_operand = if instruction.op0_kind() == OpKind::Register { 1 } else { 0 };
        let address = match instruction.op_kind(memory_operand) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Width::Word,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Width::Dword,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Width::Qword,
            // MOVSD and CMPSD are SSE instructions as well.
            _ => return Err(Error::Unsupported),
        };
        let width = Width::from_bytes(instruction.memory_size().size()).ok_or(Error::Unsupported)?;
        let source = match instruction.segment_prefix() {
            Iced::None => Segment::Ds,
            prefix => segment(prefix).ok_or(Error::Unsupported)?,
        };
        let bytes = width.bytes() as u64;
        Ok(StringStep {
            kind,
            width,
            source,
            accumulator: Register::new(Gpr::Rax, width),
            rcx: Register::new(Gpr::Rcx, address),
            rsi: Register::new(Gpr::Rsi, address),
            rdi: Register::new(Gpr::Rdi, address),
            stride: if rflags & DF != 0 { bytes.wrapping_neg() } else { bytes },
        })
    }

    /// One iteration: memory first, then RSI, RDI and the accumulator.
    fn iteration(&mut self, string: &StringStep) -> Result<Compared, C> {
        let width = string.width;
        let source = Operand::Memory(self.place(string.source, self.register(string.rsi), false));
        let destination = Operand::Memory(self.place(Segment::Es, self.register(string.rdi), false));
        let mut compared = None;
        match string.kind {
            Kind::Movs => {
                let value = self.read(source, width)?;
                self.write(destination, width, value)?;
            }
            Kind::Stos => self.write(destination, width, self.register(string.accumulator))?,
            Kind::Lods => {
                let value = self.read(source, width)?;
                self.set_register(string.accumulator, value);
            }
            Kind::Scas => {
                compared = Some((self.register(string.accumulator), self.read(destination, width)?));
            }
            Kind::Cmps => compared = Some((self.read(source, width)?, self.read(destination, width)?)),
        }
        if string.kind != Kind::Stos && string.kind != Kind::Scas {
            self.advance(string.rsi, string.stride);
        }
        if string.kind != Kind::Lods {
            self.advance(string.rdi, string.stride);
        }
        Ok(compared)
    }

    fn advance(&mut self, pointer: Register, stride: u64) {
        self.set_register(pointer, self.register(pointer).wrapping_add(stride));
    }
}

fn flags_of(compared: Compared, width: Width, rflags: u64) -> u64 {
    compared.map_or(rflags, |(a, b)| alu::binary(Binary::Sub, width, a, b, rflags).1)
}
