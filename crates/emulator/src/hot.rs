//! A short way for the instructions that exit most: MOV, XCHG and CMPXCHG of 32 or 64 bits in 64-bit mode, with no
//! prefix beside LOCK and REX. Page-table code and device drivers use little else, and finding that out takes the
//! decoder proper several times as long. What is not plainly one of these goes the long way.

use crate::step::{Memory, Operand, Register, Step};
use crate::width::Width;
use crate::{Cpu, Gpr, Mode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Mov,
    Exchange,
    CompareExchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hot {
    pub(crate) operation: Operation,
    pub(crate) to: Operand,
    pub(crate) from: Operand,
    pub(crate) width: Width,
    /// In bytes.
    pub(crate) length: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    ToMemory,
    FromMemory,
    Immediate,
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

/// The instruction, if it is one of the few.
pub(crate) fn decode<C: Cpu>(step: &Step<C>, bytes: &[u8]) -> Option<Hot> {
    if step.mode != Mode::Bits64 {
        return None;
    }
    let mut code = Code(bytes);
    let mut byte = code.byte()?;
    let lock = byte == 0xf0;
    if lock {
        byte = code.byte()?;
    }
    let rex = if byte & 0xf0 == 0x40 { byte } else { 0 };
    if rex != 0 {
        byte = code.byte()?;
    }
    let (operation, form) = match byte {
        0x89 if !lock => (Operation::Mov, Form::ToMemory),
        0x8b if !lock => (Operation::Mov, Form::FromMemory),
        0xc7 if !lock => (Operation::Mov, Form::Immediate),
        0x87 => (Operation::Exchange, Form::ToMemory),
        0x0f if code.byte()? == 0xb1 => (Operation::CompareExchange, Form::ToMemory),
        _ => return None,
    };
    let width = if rex & 8 != 0 { Width::Qword } else { Width::Dword };
    let modrm = code.byte()?;
    let reg = modrm >> 3 & 7;
    if form == Form::Immediate && reg != 0 {
        return None;
    }
    let (memory, rip_relative) = address(step, &mut code, modrm, rex)?;
    let immediate = if form == Form::Immediate { code.signed_dword()? } else { 0 };

    let length = (bytes.len() - code.0.len()) as u64;
    let gva =
        if rip_relative { memory.gva.wrapping_add(step.cpu.rip()).wrapping_add(length) } else { memory.gva };
    let memory = Operand::Memory(Memory { gva, stack: memory.stack });
    let register = Operand::Register(Register::new(gpr(reg | (rex & 4) << 1), width));
    let (to, from) = match form {
        Form::ToMemory => (memory, register),
        Form::FromMemory => (register, memory),
        Form::Immediate => (memory, Operand::Immediate(width.truncate(immediate))),
    };
    Some(Hot { operation, to, from, width, length })
}

/// The address that ModRM, SIB and displacement give, and whether it counts from the end of the instruction
/// (SDM volume 2, "Addressing-Mode Encoding of ModR/M and SIB Bytes").
fn address<C: Cpu>(step: &Step<C>, code: &mut Code, modrm: u8, rex: u8) -> Option<(Memory, bool)> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let value = |number| step.cpu.gpr(gpr(number));
    let mut index = 0;
    let mut base = Some(rm);
    if mode == 3 {
        return None;
    }
    if rm == 4 {
        let sib = code.byte()?;
        let number = sib >> 3 & 7 | (rex & 2) << 2;
        if number != 4 {
            index = value(number) << (sib >> 6);
        }
        base = Some(sib & 7);
    }
    let no_base = mode == 0 && base == Some(5);
    if no_base {
        base = None;
    }
    let displacement = match mode {
        1 => code.signed_byte()?,
        2 => code.signed_dword()?,
        _ if no_base => code.signed_dword()?,
        _ => 0,
    };
    let number = base.map(|base| base | (rex & 1) << 3);
    let gva = number.map_or(0, value).wrapping_add(index).wrapping_add(displacement);
    let stack = matches!(number, Some(4 | 5));
    Some((Memory { gva, stack }, no_base && rm == 5))
}

fn gpr(number: u8) -> Gpr {
    Gpr::ALL[usize::from(number & 15)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Segment, decode as iced, operand};
    use iced_x86::Mnemonic;

    /// Registers without memory: decoding touches none.
    struct Registers([u64; 16]);

    impl Cpu for Registers {
        type Fault = ();

        fn mode(&self) -> Mode {
            Mode::Bits64
        }

        fn gpr(&self, gpr: Gpr) -> u64 {
            self.0[gpr as usize]
        }

        fn set_gpr(&mut self, gpr: Gpr, value: u64) {
            self.0[gpr as usize] = value;
        }

        fn rip(&self) -> u64 {
            0x7777_0000_1234
        }

        fn set_rip(&mut self, _: u64) {
            unreachable!("decoding does not move RIP")
        }

        fn rflags(&self) -> u64 {
            2
        }

        fn set_rflags(&mut self, _: u64) {
            unreachable!("decoding does not set flags")
        }

        fn segment_base(&self, _: Segment) -> u64 {
            unreachable!("there are no segment prefixes")
        }

        fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), ()> {
            unreachable!("decoding reads no data")
        }

        fn read_modify(&mut self, _: u64, _: &mut [u8]) -> Result<(), ()> {
            unreachable!("decoding reads no data")
        }

        fn write(&mut self, _: u64, _: &[u8]) -> Result<(), ()> {
            unreachable!("decoding writes no data")
        }
    }

    /// What the long way makes of the bytes.
    fn long_way(step: &Step<Registers>, bytes: &[u8]) -> Option<Hot> {
        let instruction = iced::decode::<()>(bytes, Mode::Bits64, step.cpu.rip()).ok()?;
        let operation = match instruction.mnemonic() {
            Mnemonic::Mov => Operation::Mov,
            Mnemonic::Xchg => Operation::Exchange,
            Mnemonic::Cmpxchg => Operation::CompareExchange,
            // XBEGIN shares an opcode with MOV.
            _ => return None,
        };
        Some(Hot {
            operation,
            to: step.operand(&instruction, 0).ok()?,
            from: step.operand(&instruction, 1).ok()?,
            width: operand::width::<Registers>(&instruction, 0).ok()?,
            length: instruction.len() as u64,
        })
    }

    /// All opcodes, REX prefixes and ModRM bytes, with all SIB bytes in turn, and cut at any length: where the short way
    /// gives an answer, it is that of the long way; and it always does if the instruction is complete and has a memory
    /// operand.
    #[test]
    fn short_and_long_way_agree() {
        let mut registers =
            Registers(core::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(5 * n as u32)));
        let step = Step { cpu: &mut registers, mode: Mode::Bits64, next_rip: 0 };
        let mut taken = 0;
        let mut sib = 0u8;
        for opcode in [&[0x89][..], &[0x8b], &[0xc7], &[0x87], &[0x0f, 0xb1]] {
            for prefixes in (0x40..0x50).map(|rex| [0xf0, rex]).chain([[0xf0, 0xf0]]) {
                for (lock, modrm) in (0..=255).flat_map(|modrm| [(false, modrm), (true, modrm)]) {
                    let mut bytes = [0x90; 15];
                    let prefixes: &[u8] = match (lock, prefixes[1]) {
                        (false, 0xf0) => &[],
                        (true, 0xf0) => &[0xf0],
                        (false, rex) => &[rex],
                        (true, _) => &prefixes,
                    };
                    sib = sib.wrapping_add(1);
                    let rest = [modrm, sib, 0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7];
                    let code = prefixes.iter().chain(opcode).chain(&rest);
                    bytes.iter_mut().zip(code).for_each(|(byte, code)| *byte = *code);
                    let long = long_way(&step, &bytes);
                    let short = decode(&step, &bytes);
                    let in_memory = modrm >> 6 != 3;
                    assert_eq!(short, if in_memory { long } else { None }, "{bytes:02x?}");
                    if let Some(hot) = short {
                        taken += 1;
                        for length in 0..hot.length as usize {
                            assert_eq!(decode(&step, &bytes[..length]), None, "{bytes:02x?}");
                        }
                        assert_eq!(decode(&step, &bytes[..hot.length as usize]), Some(hot));
                    }
                }
            }
        }
        // 17 prefixes and 192 ModRM bytes: without LOCK four opcodes in whole and one with /0 alone, with LOCK two.
        assert_eq!(taken, 17 * (192 * 4 + 24 + 192 * 2));
    }
}
