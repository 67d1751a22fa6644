//! Programs: several forms one behind the other, with random registers.
//!
//! A program is the word [`START`], a seed, and cases of one mode of code and one ring. What an
//! instruction leaves in registers and memory is the next one's. Only its pointers are set anew.

use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::rflags;
use guest_kernels::kit::descriptors::STOP;
use guest_kernels::kit::vectors::{LEGACY_WORDS, Vectors};
use guest_kernels::random::Random;
use umbra_forms::{Case, Form, Mode, Role, START};

use crate::place::Block;

/// Bytes that a program may have.
const CODE: usize = 1024;

/// A program's instructions.
pub struct Chain {
    code: [u8; CODE],
    length: usize,
}

/// Numbers of registers in encodings.
mod register {
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
}

impl Chain {
    /// A program without instructions.
    pub fn new() -> Chain {
        Chain { code: [0; CODE], length: 0 }
    }

    /// Adds a form.
    pub fn push(&mut self, form: &Form, case: Case) {
        let block = Block::of(case.kind(), case.ring());
        let operand = block.offset(form.mode, block.operand(form));
        let size = u64::from(form.size);
        let mut set = |register, value: u64| self.set(form.mode, register, value as u32);
        match form.role {
            Role::Base => set(register::RBX, operand - umbra_forms::DISPLACEMENT),
            Role::Table => set(register::RBX, operand),
            Role::Source => set(register::RSI, operand),
            Role::Destination => set(register::RDI, operand),
            Role::Both => {
                set(register::RSI, operand);
                set(register::RDI, operand + size / 2);
            }
            Role::Pop => set(register::RSP, operand),
            Role::Push => set(register::RSP, operand + size),
            Role::Frame => set(register::RBP, operand),
            Role::Absolute => (),
        }
        let start = self.length;
        self.add(form.bytes());
        let (at, width) = (start + usize::from(form.absolute.0), usize::from(form.absolute.1));
        self.code[at..at + width].copy_from_slice(&operand.to_le_bytes()[..width]);
        if form.flags != !0 {
            // CMP AL, imm8: the next instruction finds defined flags.
            self.add(&[0x3c, 0x5a]);
        }
    }

    /// MOV r32, imm32, which zeros the upper half.
    fn set(&mut self, mode: Mode, register: u8, value: u32) {
        if mode == Mode::Bits16 {
            self.add(&[0x66]);
        }
        self.add(&[0xb8 | register]);
        self.add(&value.to_le_bytes());
    }

    fn add(&mut self, bytes: &[u8]) {
        self.code[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// The code, with its end.
    pub fn finish(&mut self) -> &[u8] {
        self.add(&[0xcd, STOP]);
        self.length = self.length.next_multiple_of(8);
        &self.code[..self.length]
    }
}

/// Gives the registers that are no pointers random values. RCX stays a small count.
pub fn shuffle(context: &mut Context, vectors: &mut Vectors, seed: u64) {
    let mut random = Random::new(seed);
    for register in [
        &mut context.rax,
        &mut context.rdx,
        &mut context.r8,
        &mut context.r9,
        &mut context.r10,
        &mut context.r11,
        &mut context.r12,
        &mut context.r13,
    ] {
        *register = random.number();
    }
    context.rcx = random.below(8);
    context.rflags |= random.number() & rflags::STATUS;
    // Registers 0 to 3 and 5 to 15: 4 has the indices.
    for word in (20..LEGACY_WORDS - 12).filter(|word| !(28..30).contains(word)) {
        vectors.words[word] = random.number();
    }
}

/// The programs in the list of cases: seed and cases of each.
pub fn programs(words: &[[u8; 4]]) -> impl Iterator<Item = (u32, impl Iterator<Item = Case>)> {
    let parts = words.split(|word| u32::from_le_bytes(*word) == START).skip(1);
    parts.filter_map(|part| {
        let (seed, cases) = part.split_first()?;
        Some((u32::from_le_bytes(*seed), cases.iter().map(|word| Case(u32::from_le_bytes(*word)))))
    })
}
