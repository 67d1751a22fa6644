//! String instructions and their repetition: one machine for all of them.
//!
//! Each element is computed from the registers, at the address width, and checked by itself.

use iced_x86::{Instruction, OpKind, Register as Iced};

use crate::alu::{self, Binary};
use crate::flags::{DF, RF, TF};
use crate::operand::segment;
use crate::segmentation::Access;
use crate::step::{Operand, Register, Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Gpr, Outcome, Segment};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    Ins,
    Outs,
}

impl Kind {
    /// Iterations of one call: enough to make decoding cheap beside them, few enough for interrupts
    /// not to wait long. Every call for a port costs an exit, every other one the fault of a page.
    fn batch(self) -> usize {
        if matches!(self, Kind::Ins | Kind::Outs) { 256 } else { 64 }
    }

    fn uses_source(self) -> bool {
        !matches!(self, Kind::Stos | Kind::Scas | Kind::Ins)
    }

    fn uses_destination(self) -> bool {
        !matches!(self, Kind::Lods | Kind::Outs)
    }
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
            // 32-bit pointers are written back, and so extended with zeros, after no iteration too.
            // (The manual does not say; Bochs does so, and Intel's CPUs for MOVS and STOS.)
            self.advance_pointers(&string, 0);
            return Ok(self.retire(rflags));
        }
        let iterations = if rflags & TF != 0 { 1 } else { kind.batch() };
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
        // The status flags stay as before the instruction until its end (SDM volume 2,
        // "REP/REPE/REPZ/REPNE/REPNZ").
        self.cpu.set_rflags(rflags | RF);
        Ok(Outcome::Continue)
    }

    fn string_step(
        &self,
        instruction: &Instruction,
        kind: Kind,
        rflags: u64,
    ) -> Result<StringStep, C> {
        let memory_operand = if instruction.op0_kind() == OpKind::Register { 1 } else { 0 };
        let address = match instruction.op_kind(memory_operand) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Width::Word,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Width::Dword,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Width::Qword,
            // MOVSD and CMPSD are SSE instructions as well.
            _ => return Err(Error::Unsupported),
        };
        let width =
            Width::from_bytes(instruction.memory_size().size()).ok_or(Error::Unsupported)?;
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
        let from = self.place(string.source, self.register(string.rsi), false);
        let to = self.place(Segment::Es, self.register(string.rdi), false);
        let (source, destination) = (Operand::Memory(from), Operand::Memory(to));
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
                compared =
                    Some((self.register(string.accumulator), self.read(destination, width)?));
            }
            Kind::Cmps => {
                compared = Some((self.read(source, width)?, self.read(destination, width)?))
            }
            Kind::Ins => {
                // A read of a port has effects: the write must be possible before it.
                self.check(to, width.bytes(), Access::Write)?;
                let value = self.cpu.port_read(self.port(), width as u8);
                self.write(destination, width, value.into())?;
            }
            Kind::Outs => {
                let value = self.read(source, width)?;
                self.cpu.port_write(self.port(), width as u8, value as u32);
            }
        }
        self.advance_pointers(string, string.stride);
        Ok(compared)
    }

    fn advance_pointers(&mut self, string: &StringStep, stride: u64) {
        if string.kind.uses_source() {
            self.advance(string.rsi, stride);
        }
        if string.kind.uses_destination() {
            self.advance(string.rdi, stride);
        }
    }

    fn port(&self) -> u16 {
        self.cpu.gpr(Gpr::Rdx) as u16
    }

    fn advance(&mut self, pointer: Register, stride: u64) {
        self.set_register(pointer, self.register(pointer).wrapping_add(stride));
    }
}

fn flags_of(compared: Compared, width: Width, rflags: u64) -> u64 {
    compared.map_or(rflags, |(a, b)| alu::binary(Binary::Sub, width, a, b, rflags).1)
}
