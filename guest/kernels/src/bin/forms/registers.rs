//! What registers hold when a case begins.

use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::rflags;
use guest_kernels::kit::descriptors::selector;
use guest_kernels::kit::vectors::{LEGACY_WORDS, Vectors, WORDS};
use guest_kernels::random::scramble;
use umbra_forms::{Contents, DISPLACEMENT, Form, Mode, ORIGIN, PORT, Page, Registers, Ring, Role};

use crate::place::{Block, scratch};

/// RAX and RDX, and what a compare-and-exchange finds in memory.
pub const MATCH: u64 = 0x8877_6655_8877_6655;

/// Selectors of a ring in a mode of code.
#[derive(Clone, Copy)]
pub struct Selectors {
    pub code: u64,
    pub stack: u64,
    pub data: u64,
}

impl Selectors {
    pub fn of(mode: Mode, ring: Ring) -> Selectors {
        let (code, stack) = match (mode, ring) {
            (Mode::Bits64, Ring::Kernel) => (selector::CODE, selector::DATA),
            (Mode::Bits64, Ring::User) => (selector::USER_CODE, selector::USER_DATA),
            (Mode::Bits32, Ring::Kernel) => (selector::CODE_32, selector::DATA),
            (Mode::Bits32, Ring::User) => (selector::USER_CODE_32, selector::USER_DATA),
            (Mode::Bits16, Ring::Kernel) => (selector::CODE_16, selector::DATA_16),
            (Mode::Bits16, Ring::User) => (selector::USER_CODE_16, selector::USER_DATA_16),
        };
        let data = if mode == Mode::Bits16 { selector::USER_DATA_16 } else { selector::USER_DATA };
        Selectors { code, stack, data }
    }
}

/// General registers, flags, and where the code is, for an operand at `address`.
pub fn context(form: &Form, ring: Ring, block: &Block, address: u64) -> Context {
    let selectors = Selectors::of(form.mode, ring);
    let at = |address| block.offset(form.mode, address);
    let size = u64::from(form.size);
    let mut context = Context::kernel(at(block.base + ORIGIN));
    (context.cs, context.ss, context.rsp) =
        (selectors.code, selectors.stack, at(block.scratch(scratch::STACK)));
    (context.rax, context.rdx, context.rcx) = (MATCH, MATCH, 3);
    context.rbx = at(block.scratch(scratch::DATA)) - DISPLACEMENT;
    context.rsi = at(block.scratch(scratch::SOURCE));
    context.rdi = at(block.scratch(scratch::DESTINATION));
    context.rbp = at(block.scratch(scratch::FRAME));
    (context.r8, context.r9) = (0x0808_0808_0808_0808, 0x0909_0909_0909_0909);
    context.r15 = 0x1515_1515_1515_1515;
    match form.registers {
        Registers::Small => (context.rax, context.rdx) = (0x1255, 0x25),
        Registers::Components => (context.rax, context.rdx) = (7, 0),
        Registers::Port => {
            context.rdx = PORT;
            context.rflags |= rflags::IOPL_3;
        }
        Registers::Plain | Registers::Index32 | Registers::Index64 => (),
    }
    let operand = at(address);
    match form.role {
        Role::Base => context.rbx = operand - DISPLACEMENT,
        Role::Absolute => (),
        Role::Table => context.rbx = operand - (context.rax & 0xff),
        Role::Source => context.rsi = operand,
        Role::Destination => context.rdi = operand,
        Role::Both => (context.rsi, context.rdi) = (operand, operand + size / 2),
        Role::Pop => context.rsp = operand,
        Role::Push => context.rsp = operand + size,
        Role::Frame => context.rbp = operand,
    }
    if block.kind.first == Page::UserReadOnly {
        context.rflags |= rflags::AC;
    }
    context
}

/// Vector registers. Indices in register 4 have 32 or 64 bits.
pub fn vectors(wide_indices: bool) -> Vectors {
    let mut words: [u64; WORDS] = core::array::from_fn(|word| scramble(word as u64));
    // SDM vol. 1, "FXSAVE Area": masked exceptions, four of eight x87 registers in use, no
    // instruction yet.
    words[0] = 0x037f | 0x2000 << 16 | 0xf0 << 32;
    (words[1], words[2], words[3]) = (0, 0, 0x1f80);
    for register in 0..8 {
        let sign = (register as u64 & 1) << 15;
        words[4 + 2 * register] |= 1 << 63;
        words[5 + 2 * register] = (0x3fff + register as u64) | sign;
    }
    // Reserved, and the software's.
    words[52..LEGACY_WORDS].fill(0);
    // XSTATE_BV: x87, SSE, AVX.
    words[LEGACY_WORDS..72].fill(0);
    words[LEGACY_WORDS] = 7;
    let indices = if wide_indices {
        [0, 8, 16, 24]
    } else {
        [4 << 32, 12 << 32 | 8, 20 << 32 | 16, 28 << 32 | 24]
    };
    words[20 + 8..20 + 10].copy_from_slice(&indices[..2]);
    words[72 + 8..72 + 10].copy_from_slice(&indices[2..]);
    Vectors { words }
}

/// The bytes that a form wants at its operand, in `bytes`; how many there are.
pub fn contents(
    form: &Form,
    ring: Ring,
    block: &Block,
    image: &Vectors,
    bytes: &mut [u8; 8 * WORDS],
) -> usize {
    let selectors = Selectors::of(form.mode, ring);
    let landing = block.offset(form.mode, block.base + umbra_forms::LANDING);
    let word = usize::from(form.word);
    let mut length = 0;
    let mut put = |value: u64, width: usize| {
        bytes[length..length + width].copy_from_slice(&value.to_le_bytes()[..width]);
        length += width;
    };
    match form.contents {
        Contents::Pattern => (),
        Contents::Match => {
            put(MATCH, 8);
            put(MATCH, 8);
        }
        Contents::Zeros => return usize::from(form.size).min(64),
        Contents::Selector => put(data_of(ring), word.max(2)),
        Contents::FarData => {
            put(MATCH, word);
            put(data_of(ring), 2);
        }
        Contents::Near => put(landing, word),
        Contents::Far => {
            put(landing, word);
            put(selectors.code, if form.role == Role::Pop { word } else { 2 });
        }
        Contents::Iret => {
            let stack = block.offset(form.mode, block.scratch(scratch::STACK));
            for value in [landing, selectors.code, rflags::FIXED | 0x44, stack, selectors.stack] {
                put(value, word);
            }
        }
        Contents::Gdt | Contents::Idt => {
            let (base, limit) = crate::place::table(form.contents);
            put(limit, 2);
            put(base, 8);
        }
        // OF, DF, ZF, CF; PE and MP.
        Contents::StatusWord => put(0xc43, word.max(2)),
        Contents::Image => {
            for (index, &value) in image.words.iter().enumerate() {
                // Other registers than before.
                let xmm = (20..52).contains(&index);
                put(if xmm { value.rotate_left(8) } else { value }, 8);
            }
        }
    }
    length
}

/// A selector that data segments and SS of a ring take.
fn data_of(ring: Ring) -> u64 {
    if ring == Ring::User { selector::USER_DATA } else { selector::DATA }
}
