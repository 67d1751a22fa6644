//! Multiplication and division of every width, on values at the ends.

mod common;

use common::{AF, CF, Machine, OF, ONE, PF, SF, STATUS, ZF, low};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use proptest::prelude::*;
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome};

const PLACE: u64 = 0x7000;
const FILL: u64 = 0x5555_5555_5555_5555;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// MUL, IMUL, DIV, IDIV on memory, by log2 of the width in bytes.
const PROGRAMS: [[Program; 4]; 4] = [
    [
        |p| p.mul(byte_ptr(rdi)),
        |p| p.imul(byte_ptr(rdi)),
        |p| p.div(byte_ptr(rdi)),
        |p| p.idiv(byte_ptr(rdi)),
    ],
    [
        |p| p.mul(word_ptr(rdi)),
        |p| p.imul(word_ptr(rdi)),
        |p| p.div(word_ptr(rdi)),
        |p| p.idiv(word_ptr(rdi)),
    ],
    [
        |p| p.mul(dword_ptr(rdi)),
        |p| p.imul(dword_ptr(rdi)),
        |p| p.div(dword_ptr(rdi)),
        |p| p.idiv(dword_ptr(rdi)),
    ],
    [
        |p| p.mul(qword_ptr(rdi)),
        |p| p.imul(qword_ptr(rdi)),
        |p| p.div(qword_ptr(rdi)),
        |p| p.idiv(qword_ptr(rdi)),
    ],
];

/// A machine with (high, low) in the accumulator and a factor or divisor in memory.
fn machine(width: usize, (high, part): (u64, u64), operand: u64) -> Machine {
    let machine = Machine::new(Mode::Bits64).with(Gpr::Rdi, PLACE).poke64(PLACE, operand);
    match width {
        1 => machine
            .with(Gpr::Rax, FILL & !0xffff | low(1, high) << 8 | low(1, part))
            .with(Gpr::Rdx, FILL),
        _ => machine
            .with(Gpr::Rax, FILL & !low(width, u64::MAX) | low(width, part))
            .with(Gpr::Rdx, FILL & !low(width, u64::MAX) | low(width, high)),
    }
}

/// (high, low) of the accumulator.
fn accumulator(machine: &Machine, width: usize) -> (u64, u64) {
    let (accumulator, data) = (machine.get(Gpr::Rax), machine.get(Gpr::Rdx));
    match width {
        1 => (accumulator >> 8 & 0xff, accumulator & 0xff),
        _ => (low(width, data), low(width, accumulator)),
    }
}

#[test]
fn products_and_their_flags() {
    // (width, signed, a, b, high, low, whether more than the lower half counts)
    let cases: [(usize, bool, u64, u64, u64, u64, bool); 12] = [
        (1, false, 0xff, 0xff, 0xfe, 0x01, true),
        (1, false, 0x0f, 0x11, 0, 0xff, false),
        (1, true, 0xff, 0xff, 0, 1, false),
        (1, true, 0x80, 0x01, 0xff, 0x80, false),
        (1, true, 0x80, 0xff, 0, 0x80, true),
        (2, false, 0x1234, 0x10, 1, 0x2340, true),
        (2, true, 0xfffe, 3, 0xffff, 0xfffa, false),
        (4, false, 0x8000_0000, 2, 1, 0, true),
        (4, true, 0x8000_0000, 0x8000_0000, 0x4000_0000, 0, true),
        (8, false, u64::MAX, u64::MAX, u64::MAX - 1, 1, true),
        (8, true, u64::MAX, u64::MAX, 0, 1, false),
        (8, true, 1 << 63, 2, u64::MAX, 0, true),
    ];
    for (width, signed, a, b, high, part, more) in cases {
        let mut m = machine(width, (FILL, a), b);
        m.run(PROGRAMS[width.ilog2() as usize][usize::from(signed)]);
        assert_eq!(accumulator(&m, width), (high, part), "{width} bytes of {a:#x} * {b:#x}");
        let flags = m.state.rflags;
        assert_eq!(flags & (CF | OF), if more { CF | OF } else { 0 });
        // The others are undefined; as in Bochs.
        let sign = part >> (8 * width - 1) != 0;
        assert_eq!((flags & SF != 0, flags & ZF != 0, flags & AF), (sign, part == 0, 0));
        assert_eq!(flags & PF != 0, (part as u8).count_ones().is_multiple_of(2));
    }
    // 32 bits clear the upper halves; 16 and 8 bits do not.
    let mut m = machine(4, (FILL, 3), 5);
    m.run(|p| p.mul(dword_ptr(rdi)));
    assert_eq!((m.get(Gpr::Rdx), m.get(Gpr::Rax)), (0, 15));
    let mut m = machine(1, (FILL, 3), 5);
    m.run(|p| p.mul(byte_ptr(rdi)));
    assert_eq!((m.get(Gpr::Rdx), m.get(Gpr::Rax)), (FILL, FILL & !0xffff | 15));
}

#[test]
fn imul_of_two_and_three_operands() {
    let new = || machine(8, (0, 0), -7i64 as u64).with(Gpr::Rcx, 6);
    let mut m = new();
    m.run(|p| p.imul_2(rcx, qword_ptr(rdi)));
    assert_eq!((m.get(Gpr::Rcx) as i64, m.state.rflags & (CF | OF)), (-42, 0));
    let mut m = new();
    m.run(|p| p.imul_3(ecx, dword_ptr(rdi), 0x4000_0000));
    assert_eq!((m.get(Gpr::Rcx), m.state.rflags & (CF | OF)), (0x4000_0000, CF | OF));
    let mut m = new();
    m.run(|p| p.imul_3(cx, word_ptr(rdi), -2));
    assert_eq!((m.get(Gpr::Rcx), m.state.rflags & (CF | OF)), (14, 0));
    assert_eq!(m.get(Gpr::Rax), 0, "the accumulator is not touched");
}

/// Width, whether signed, dividend (high, low), divisor; quotient and remainder.
type Division = (usize, bool, (u64, u64), u64, Option<(u64, u64)>);

#[test]
fn quotients_that_do_not_fit_are_de() {
    let de = Err(Error::Exception(Exception::DIVIDE_ERROR));
    let cases: [Division; 12] = [
        (1, false, (0, 7), 0, None),
        (1, false, (2, 0), 2, None),
        (1, false, (1, 0xff), 2, Some((0xff, 1))),
        (1, true, (0xff, 0x80), 0xff, None),
        (1, true, (0xff, 0x80), 1, Some((0x80, 0))),
        (1, true, (0, 0x7f), 0xfe, Some((0xc1, 1))),
        (2, true, (0xffff, 0xfff9), 2, Some((0xfffd, 0xffff))),
        (4, false, (1, 0), 1, None),
        (4, true, (0x8000_0000, 0), 0x8000_0000, None),
        (8, false, (4, 9), 5, Some((0xcccc_cccc_cccc_ccce, 3))),
        (8, true, (1 << 63, 0), u64::MAX, None),
        (8, true, (u64::MAX, -9i64 as u64), 4, Some((-2i64 as u64, -1i64 as u64))),
    ];
    for (width, signed, dividend, divisor, expected) in cases {
        let mut m = machine(width, dividend, divisor).flags(STATUS);
        let before = m.state.clone();
        let verdict = m.step(PROGRAMS[width.ilog2() as usize][2 + usize::from(signed)]);
        let what = format!("{width} bytes: {dividend:x?} / {divisor:#x}");
        match expected {
            None => assert_eq!((verdict, &m.state), (de, &before), "{what}"),
            Some((quotient, remainder)) => {
                assert_eq!(verdict, Ok(Outcome::Done), "{what}");
                assert_eq!(accumulator(&m, width), (remainder, quotient), "{what}");
                assert_eq!(m.state.rflags, ONE | STATUS, "undefined: they stay");
            }
        }
    }
}

proptest! {
    /// Quotient times divisor plus remainder is the dividend again.
    #[test]
    fn division_undoes_multiplication(size in 0..4usize, signed: bool, high: u64, part: u64, divisor: u64, shift in 0..64u32) {
        let width = 1 << size;
        let divisor = low(width, divisor >> shift);
        let mut m = machine(width, (high >> shift, part), divisor);
        if m.step(PROGRAMS[size][2 + usize::from(signed)]).is_ok() {
            let (remainder, quotient) = accumulator(&m, width);
            let mut product = machine(width, (0, quotient), divisor);
            product.run(PROGRAMS[size][usize::from(signed)]);
            let (product_high, product_low) = accumulator(&product, width);
            let bits = 8 * width as u32;
            let join = |high: u64, part: u64| u128::from(high) << bits | u128::from(part);
            let mask = u128::MAX >> (128 - 2 * bits);
            let remainder = match signed && remainder >> (bits - 1) != 0 {
                true => join(u64::MAX, remainder),
                false => join(0, remainder),
            };
            let sum = join(product_high, product_low).wrapping_add(remainder) & mask;
            prop_assert_eq!(sum, join(high >> shift, low(width, part)) & mask);
        } else {
            prop_assert_eq!(m.state.rip, common::START);
        }
    }
}
