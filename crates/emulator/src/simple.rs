//! A short way for the instructions that exit most: in 64-bit mode (or in flat 32-bit code), with
//! one operand in memory, and no prefix beside REX and one of LOCK and those that mean nothing.
//! Page-table code and device drivers use little else, and finding that out takes the decoder
//! proper several times as long. What is not plainly one of these is for
//! [`emulate`](crate::emulate).
//!
//! Where the exit has told address and place of the operand already, nothing is left but to
//! compute: the caller compares [`Simple::address`], reads and writes memory, and stores what
//! [`Simple::effect`] says.

use crate::Gpr;
use crate::alu::{self, Binary, BitChange};
use crate::flags::{CF, RF};
use crate::width::Width;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// MOV to memory.
    Store,
    /// MOV from memory.
    Load,
    Exchange,
    ExchangeAdd,
    CompareExchange,
    Binary(Binary),
    /// CMP, of the operand in memory with the other.
    Compare,
    Bit(BitChange),
}

/// The operand that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    Register(Gpr),
    Immediate(u64),
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simple {
    operation: Operation,
    width: Width,
    other: Other,
    place: Place,
    next_rip: u64,
    /// The bits that an address has.
    mask: u64,
}

/// The parts of the operand's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    base: Option<Gpr>,
    /// Register, and the power of two that it is multiplied by.
    index: Option<(Gpr, u8)>,
    displacement: u64,
    /// RIP behind the instruction counts too. (In a [`Simple`] it is part of the displacement.)
    rip_relative: bool,
}

/// What the instruction changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The operand's new value, in as many low bytes as it has: to be written, if the instruction
    /// [writes](Simple::writes).
    pub memory: u64,
    /// A register's new value.
    pub register: Option<(Gpr, u64)>,
    /// The flags.
    pub rflags: u64,
}

impl Simple {
    /// The instruction at `rip` that starts with `bytes`, if it is one of the simple ones, whole.
    pub fn decode(bytes: &[u8], rip: u64) -> Option<Simple> {
        Simple::decode_as(bytes, rip, true)
    }

    /// The same in 32-bit code whose segments are flat.
    pub fn decode_32(bytes: &[u8], eip: u64) -> Option<Simple> {
        let mut simple = Simple::decode_as(bytes, eip, false)?;
        simple.mask = 0xffff_ffff;
        simple.next_rip &= simple.mask;
        Some(simple)
    }

    fn decode_as(bytes: &[u8], rip: u64, long: bool) -> Option<Simple> {
        const BINARY: [Binary; 7] = [
            Binary::Add,
            Binary::Or,
            Binary::Adc,
            Binary::Sbb,
            Binary::And,
            Binary::Sub,
            Binary::Xor,
        ];
        let mut code = Code(bytes);
        let mut byte = code.byte()?;
        let lock = byte == 0xf0;
        // ES, CS, SS or DS, which mean nothing in 64-bit mode: Linux has DS in place of each LOCK
        // on a machine with one CPU.
        if lock || byte == 0x3e || long && matches!(byte, 0x26 | 0x2e | 0x36) {
            byte = code.byte()?;
        }
        // In 32-bit code these are INC and DEC.
        let rex = if long && byte & 0xf0 == 0x40 { byte } else { 0 };
        if rex != 0 {
            byte = code.byte()?;
        }
        let two_bytes = byte == 0x0f;
        if two_bytes {
            byte = code.byte()?;
        }
        let modrm = code.byte()?;
        let reg = modrm >> 3 & 7;
        let group = |number: u8| match BINARY.get(usize::from(number)) {
            Some(binary) => Some(Operation::Binary(*binary)),
            None => (!lock).then_some(Operation::Compare),
        };
        let (operation, immediate) = match (two_bytes, byte) {
            (false, 0x89) if !lock => (Operation::Store, None),
            (false, 0x8b) if !lock => (Operation::Load, None),
            (false, 0xc6) if !lock && reg == 0 => (Operation::Store, Some(Width::Byte)),
            (false, 0xc7) if !lock && reg == 0 => (Operation::Store, Some(Width::Dword)),
            (false, 0x87) => (Operation::Exchange, None),
            (false, 0x01..=0x39) if byte & 7 == 1 => (group(byte >> 3)?, None),
            (false, 0x80 | 0x83) => (group(reg)?, Some(Width::Byte)),
            (false, 0x81) => (group(reg)?, Some(Width::Dword)),
            (true, 0xb1) => (Operation::CompareExchange, None),
            (true, 0xc1) => (Operation::ExchangeAdd, None),
            (true, 0xab) => (Operation::Bit(BitChange::Set), None),
            (true, 0xb3) => (Operation::Bit(BitChange::Reset), None),
            (true, 0xbb) => (Operation::Bit(BitChange::Complement), None),
            (true, 0xba) if reg == 5 => (Operation::Bit(BitChange::Set), Some(Width::Byte)),
            (true, 0xba) if reg == 6 => (Operation::Bit(BitChange::Reset), Some(Width::Byte)),
            (true, 0xba) if reg == 7 => (Operation::Bit(BitChange::Complement), Some(Width::Byte)),
            _ => return None,
        };
        let width = match (two_bytes, byte) {
            (false, 0x80 | 0xc6) => Width::Byte,
            _ if rex & 8 != 0 => Width::Qword,
            _ => Width::Dword,
        };
        let mut place = place(&mut code, modrm, rex)?;
        let other = match immediate {
            None => Other::Register(gpr(reg | (rex & 4) << 1)),
            Some(Width::Byte) => Other::Immediate(code.signed_byte()?),
            Some(_) => Other::Immediate(code.signed_dword()?),
        };
        let next_rip = rip.wrapping_add((bytes.len() - code.0.len()) as u64);
        if place.rip_relative && long {
            place.displacement = place.displacement.wrapping_add(next_rip);
        }
        Some(Simple { operation, width, other, place, next_rip, mask: u64::MAX })
    }

    /// Bytes of the operand in memory.
    pub fn width(&self) -> usize {
        self.width.bytes()
    }

    /// RIP behind the instruction.
    pub fn next_rip(&self) -> u64 {
        self.next_rip
    }

    /// Whether the operand lies at `gva`, at a multiple of its width.
    #[inline]
    pub fn is_at(&self, gva: u64, gpr: impl Fn(Gpr) -> u64) -> bool {
        gva & (self.width() as u64 - 1) == 0 && self.address(gpr) == gva
    }

    /// Whether the operand is read.
    pub fn reads(&self) -> bool {
        self.operation != Operation::Store
    }

    /// Whether the operand is written.
    pub fn writes(&self) -> bool {
        !matches!(self.operation, Operation::Load | Operation::Compare)
    }

    /// The linear address of the operand.
    pub fn address(&self, gpr: impl Fn(Gpr) -> u64) -> u64 {
        let mut gva = self.place.displacement;
        if let Some(base) = self.place.base {
            gva = gva.wrapping_add(gpr(base));
        }
        if let Some((index, shift)) = self.place.index {
            gva = gva.wrapping_add(gpr(index) << shift);
        }
        let gva = match (self.operation, self.other) {
            // A bit offset in a register is signed and reaches beyond the operand (SDM volume 2,
            // "BT - Bit Test").
            (Operation::Bit(_), Other::Register(offset)) => {
                let offset = self.width.sign_extend(gpr(offset)) as i64;
                let element = offset >> self.width.bits().trailing_zeros();
                gva.wrapping_add((element as u64).wrapping_mul(self.width.bytes() as u64))
            }
            _ => gva,
        };
        gva & self.mask
    }

    /// What comes of it if the operand was `old` (if it is [read](Simple::reads)).
    #[inline]
    pub fn effect(&self, old: u64, rflags: u64, gpr: impl Fn(Gpr) -> u64) -> Effect {
        // By far the most frequent one.
        if self.operation == Operation::Store {
            let memory = match self.other {
                Other::Register(register) => gpr(register),
                Other::Immediate(value) => value,
            };
            return Effect { memory, register: None, rflags: rflags & !RF };
        }
        self.computed(old, rflags, gpr)
    }

    #[inline(never)]
    fn computed(&self, old: u64, rflags: u64, gpr: impl Fn(Gpr) -> u64) -> Effect {
        let width = self.width;
        let other = width.truncate(match self.other {
            Other::Register(register) => gpr(register),
            Other::Immediate(value) => value,
        });
        let old = width.truncate(old);
        let to_other = |value| match self.other {
            Other::Register(register) => Some((register, value)),
            Other::Immediate(_) => None,
        };
        let (memory, register, rflags) = match self.operation {
            Operation::Store => (other, None, rflags),
            Operation::Load => (old, to_other(old), rflags),
            Operation::Exchange => (other, to_other(old), rflags),
            Operation::ExchangeAdd => {
                let (sum, rflags) = alu::binary(Binary::Add, width, old, other, rflags);
                (sum, to_other(old), rflags)
            }
            Operation::CompareExchange => {
                let expected = width.truncate(gpr(Gpr::Rax));
                let (_, rflags) = alu::binary(Binary::Sub, width, expected, old, rflags);
                if old == expected {
                    (other, None, rflags)
                } else {
                    (old, Some((Gpr::Rax, old)), rflags)
                }
            }
            Operation::Binary(operation) => {
                let (result, rflags) = alu::binary(operation, width, old, other, rflags);
                (result, None, rflags)
            }
            Operation::Compare => {
                (old, None, alu::binary(Binary::Sub, width, old, other, rflags).1)
            }
            Operation::Bit(change) => {
                let bit = 1 << (other & u64::from(width.bits() - 1));
                let carry = if old & bit != 0 { CF } else { 0 };
                (change.apply(old, bit), None, rflags & !CF | carry)
            }
        };
        Effect { memory, register, rflags: rflags & !RF }
    }
}

/// The bytes not yet decoded.
struct Code<'a>(&'a [u8]);

impl Code<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn signed_byte(&mut self) -> Option<u64> {
        self.byte().map(|byte| byte as i8 as u64)
    }

    fn signed_dword(&mut self) -> Option<u64> {
        let (dword, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(i32::from_le_bytes(*dword) as u64)
    }
}

/// What ModRM, SIB and displacement name (SDM volume 2, "Addressing-Mode Encoding of ModR/M and SIB
/// Bytes").
fn place(code: &mut Code, modrm: u8, rex: u8) -> Option<Place> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return None;
    }
    let mut index = None;
    let mut number = rm;
    if rm == 4 {
        let sib = code.byte()?;
        let register = sib >> 3 & 7 | (rex & 2) << 2;
        if register != 4 {
            index = Some((gpr(register), sib >> 6));
        }
        number = sib & 7;
    }
    let base = if (mode, number) == (0, 5) { None } else { Some(gpr(number | (rex & 1) << 3)) };
    let displacement = match (mode, base) {
        (1, _) => code.signed_byte()?,
        (0, Some(_)) => 0,
        _ => code.signed_dword()?,
    };
    Some(Place { base, index, displacement, rip_relative: base.is_none() && rm == 5 })
}

fn gpr(number: u8) -> Gpr {
    Gpr::ALL[usize::from(number & 15)]
}
