//! Results and flags against models that compute the plain way: in wide integers, or bit by bit.

mod common;

use common::{AF, CF, Machine, OF, ONE, PF, SF, STATUS, ZF, low};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use proptest::prelude::*;
use umbra_emulator::{Gpr, Mode};

const PLACE: u64 = 0x7000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Add,
    Adc,
    Sub,
    Sbb,
    Cmp,
    And,
    Or,
    Xor,
    Test,
    Inc,
    Dec,
    Neg,
    Not,
}

const OPS: [Op; 13] = [
    Op::Add,
    Op::Adc,
    Op::Sub,
    Op::Sbb,
    Op::Cmp,
    Op::And,
    Op::Or,
    Op::Xor,
    Op::Test,
    Op::Inc,
    Op::Dec,
    Op::Neg,
    Op::Not,
];

/// Encodings for 1, 2, 4 and 8 bytes.
type Codes = [Code; 4];

struct Forms {
    memory_register: Option<Codes>,
    register_memory: Option<Codes>,
    memory_immediate: Option<Codes>,
    memory: Option<Codes>,
}

macro_rules! forms {
    ($mr:ident $mr16:ident $mr32:ident $mr64:ident; $rm:ident $rm16:ident $rm32:ident $rm64:ident; $mi:ident $mi16:ident $mi32:ident $mi64:ident) => {
        Forms {
            memory_register: Some([Code::$mr, Code::$mr16, Code::$mr32, Code::$mr64]),
            register_memory: Some([Code::$rm, Code::$rm16, Code::$rm32, Code::$rm64]),
            memory_immediate: Some([Code::$mi, Code::$mi16, Code::$mi32, Code::$mi64]),
            memory: None,
        }
    };
    ($m:ident $m16:ident $m32:ident $m64:ident) => {
        Forms {
            memory_register: None,
            register_memory: None,
            memory_immediate: None,
            memory: Some([Code::$m, Code::$m16, Code::$m32, Code::$m64]),
        }
    };
}

fn forms(op: Op) -> Forms {
    match op {
        Op::Add => forms!(Add_rm8_r8 Add_rm16_r16 Add_rm32_r32 Add_rm64_r64;
            Add_r8_rm8 Add_r16_rm16 Add_r32_rm32 Add_r64_rm64;
            Add_rm8_imm8 Add_rm16_imm8 Add_rm32_imm8 Add_rm64_imm8),
        Op::Adc => forms!(Adc_rm8_r8 Adc_rm16_r16 Adc_rm32_r32 Adc_rm64_r64;
            Adc_r8_rm8 Adc_r16_rm16 Adc_r32_rm32 Adc_r64_rm64;
            Adc_rm8_imm8 Adc_rm16_imm8 Adc_rm32_imm8 Adc_rm64_imm8),
        Op::Sub => forms!(Sub_rm8_r8 Sub_rm16_r16 Sub_rm32_r32 Sub_rm64_r64;
            Sub_r8_rm8 Sub_r16_rm16 Sub_r32_rm32 Sub_r64_rm64;
            Sub_rm8_imm8 Sub_rm16_imm8 Sub_rm32_imm8 Sub_rm64_imm8),
        Op::Sbb => forms!(Sbb_rm8_r8 Sbb_rm16_r16 Sbb_rm32_r32 Sbb_rm64_r64;
            Sbb_r8_rm8 Sbb_r16_rm16 Sbb_r32_rm32 Sbb_r64_rm64;
            Sbb_rm8_imm8 Sbb_rm16_imm8 Sbb_rm32_imm8 Sbb_rm64_imm8),
        Op::Cmp => forms!(Cmp_rm8_r8 Cmp_rm16_r16 Cmp_rm32_r32 Cmp_rm64_r64;
            Cmp_r8_rm8 Cmp_r16_rm16 Cmp_r32_rm32 Cmp_r64_rm64;
            Cmp_rm8_imm8 Cmp_rm16_imm8 Cmp_rm32_imm8 Cmp_rm64_imm8),
        Op::And => forms!(And_rm8_r8 And_rm16_r16 And_rm32_r32 And_rm64_r64;
            And_r8_rm8 And_r16_rm16 And_r32_rm32 And_r64_rm64;
            And_rm8_imm8 And_rm16_imm8 And_rm32_imm8 And_rm64_imm8),
        Op::Or => forms!(Or_rm8_r8 Or_rm16_r16 Or_rm32_r32 Or_rm64_r64;
            Or_r8_rm8 Or_r16_rm16 Or_r32_rm32 Or_r64_rm64;
            Or_rm8_imm8 Or_rm16_imm8 Or_rm32_imm8 Or_rm64_imm8),
        Op::Xor => forms!(Xor_rm8_r8 Xor_rm16_r16 Xor_rm32_r32 Xor_rm64_r64;
            Xor_r8_rm8 Xor_r16_rm16 Xor_r32_rm32 Xor_r64_rm64;
            Xor_rm8_imm8 Xor_rm16_imm8 Xor_rm32_imm8 Xor_rm64_imm8),
        Op::Test => Forms {
            memory_register: Some([
                Code::Test_rm8_r8,
                Code::Test_rm16_r16,
                Code::Test_rm32_r32,
                Code::Test_rm64_r64,
            ]),
            register_memory: None,
            memory_immediate: None,
            memory: None,
        },
        Op::Inc => forms!(Inc_rm8 Inc_rm16 Inc_rm32 Inc_rm64),
        Op::Dec => forms!(Dec_rm8 Dec_rm16 Dec_rm32 Dec_rm64),
        Op::Neg => forms!(Neg_rm8 Neg_rm16 Neg_rm32 Neg_rm64),
        Op::Not => forms!(Not_rm8 Not_rm16 Not_rm32 Not_rm64),
    }
}

fn signed(width: usize, value: u64) -> i128 {
    let value = i128::from(low(width, value));
    if value >= 1 << (8 * width - 1) { value - (1 << (8 * width)) } else { value }
}

fn even_parity(value: u64) -> bool {
    (0..8).filter(|bit| value >> bit & 1 != 0).count() % 2 == 0
}

fn of_result(width: usize, result: u64) -> u64 {
    let mut flags = 0;
    flags |= if result == 0 { ZF } else { 0 };
    flags |= if signed(width, result) < 0 { SF } else { 0 };
    flags |= if even_parity(result) { PF } else { 0 };
    flags
}

/// Flags of an exact sum or difference that was cut to `width`.
fn of_exact(width: usize, unsigned: i128, signed_result: i128, nibble: i128) -> u64 {
    let limit = 1i128 << (8 * width);
    let mut flags = of_result(width, low(width, unsigned as u64));
    flags |= if (0..limit).contains(&unsigned) { 0 } else { CF };
    flags |= if (-limit / 2..limit / 2).contains(&signed_result) { 0 } else { OF };
    flags |= if (0..16).contains(&nibble) { 0 } else { AF };
    flags
}

/// (what is left in the destination, status flags, flags that are defined).
fn model(op: Op, width: usize, a: u64, b: u64, rflags: u64) -> (u64, u64, u64) {
    let (a, b) = (low(width, a), low(width, b));
    let carry = i128::from(rflags & CF);
    let add = |a: u64, b: u64, carry: i128| {
        let sum = i128::from(a) + i128::from(b) + carry;
        let nibble = i128::from(a & 15) + i128::from(b & 15) + carry;
        let exact = signed(width, a) + signed(width, b) + carry;
        (low(width, sum as u64), of_exact(width, sum, exact, nibble))
    };
    let subtract = |a: u64, b: u64, borrow: i128| {
        let difference = i128::from(a) - i128::from(b) - borrow;
        let nibble = i128::from(a & 15) - i128::from(b & 15) - borrow;
        let exact = signed(width, a) - signed(width, b) - borrow;
        (low(width, difference as u64), of_exact(width, difference, exact, nibble))
    };
    let logic = |result: u64| (result, of_result(width, result), STATUS & !AF);
    let all = |(result, flags)| (result, flags, STATUS);
    let keeping_carry = |(result, flags): (u64, u64)| (result, flags & !CF | rflags & CF, STATUS);
    match op {
        Op::Add => all(add(a, b, 0)),
        Op::Adc => all(add(a, b, carry)),
        Op::Sub => all(subtract(a, b, 0)),
        Op::Sbb => all(subtract(a, b, carry)),
        Op::Cmp => all((a, subtract(a, b, 0).1)),
        Op::And => logic(a & b),
        Op::Or => logic(a | b),
        Op::Xor => logic(a ^ b),
        Op::Test => (a, of_result(width, a & b), STATUS & !AF),
        Op::Inc => keeping_carry(add(a, 1, 0)),
        Op::Dec => keeping_carry(subtract(a, 1, 0)),
        Op::Neg => all(subtract(0, a, 0)),
        Op::Not => (low(width, !a), rflags & STATUS, STATUS),
    }
}

const RCX: [Register; 4] = [Register::CL, Register::CX, Register::ECX, Register::RCX];

fn place() -> MemoryOperand {
    MemoryOperand::with_base(Register::RDI)
}

fn machine(rflags: u64) -> Machine {
    Machine::new(Mode::Bits64).with(Gpr::Rdi, PLACE).flags(rflags & STATUS)
}

fn check_flags(machine: &Machine, flags: u64, defined: u64) {
    assert_eq!(machine.state.rflags & defined, flags & defined, "flags");
    assert_eq!(machine.state.rflags & !STATUS, ONE, "flags beyond the status flags");
}

/// Values near the ends of every width as often as any others.
fn operand() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -2i64..3).prop_map(|(bit, near)| (1u64 << bit).wrapping_add_signed(near)),
        Just(0),
        Just(u64::MAX)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arithmetic_matches_the_model(
        op in prop::sample::select(&OPS[..]), size in 0usize..4, a in operand(), b in operand(), rflags: u64,
    ) {
        let width = 1 << size;
        let forms = forms(op);
        let (result, flags, defined) = model(op, width, a, b, rflags);
        if let Some(codes) = forms.memory_register {
            let mut machine = machine(rflags).with(Gpr::Rcx, b).poke64(PLACE, a);
            machine.run(|p| p.add_instruction(Instruction::with2(codes[size], place(), RCX[size])?));
            prop_assert_eq!(machine.peek64(PLACE), a & !low(width, u64::MAX) | result);
            prop_assert_eq!(machine.get(Gpr::Rcx), b);
            check_flags(&machine, flags, defined);
        }
        if let Some(codes) = forms.register_memory {
            let mut machine = machine(rflags).with(Gpr::Rcx, a).poke64(PLACE, b);
            machine.run(|p| p.add_instruction(Instruction::with2(codes[size], RCX[size], place())?));
            if op == Op::Cmp {
                prop_assert_eq!(machine.get(Gpr::Rcx), a);
            } else {
                prop_assert_eq!(machine.get(Gpr::Rcx), common::merged(width, a, result));
            }
            prop_assert_eq!(machine.peek64(PLACE), b);
            check_flags(&machine, flags, defined);
        }
        if let Some(codes) = forms.memory {
            let mut machine = machine(rflags).poke64(PLACE, a);
            machine.run(|p| p.add_instruction(Instruction::with1(codes[size], place())?));
            prop_assert_eq!(machine.peek(PLACE, width), result);
            check_flags(&machine, flags, defined);
        }
    }

    #[test]
    fn immediates_are_sign_extended(
        op in prop::sample::select(&OPS[..8]), size in 0usize..4, a in operand(), b: i8, rflags: u64,
    ) {
        let width = 1 << size;
        let (result, flags, defined) = model(op, width, a, b as u64, rflags);
        let codes = forms(op).memory_immediate.unwrap();
        let mut machine = machine(rflags).poke64(PLACE, a);
        machine.run(|p| p.add_instruction(Instruction::with2(codes[size], place(), i32::from(b))?));
        prop_assert_eq!(machine.peek(PLACE, width), result);
        check_flags(&machine, flags, defined);
    }
}

#[derive(Clone, Copy, Debug)]
enum ShiftOp {
    Shl,
    Shr,
    Sar,
    Rol,
    Ror,
    Rcl,
    Rcr,
}

const SHIFTS: [(ShiftOp, Codes, Codes); 7] = [
    (
        ShiftOp::Shl,
        [Code::Shl_rm8_CL, Code::Shl_rm16_CL, Code::Shl_rm32_CL, Code::Shl_rm64_CL],
        [Code::Shl_rm8_imm8, Code::Shl_rm16_imm8, Code::Shl_rm32_imm8, Code::Shl_rm64_imm8],
    ),
    (
        ShiftOp::Shr,
        [Code::Shr_rm8_CL, Code::Shr_rm16_CL, Code::Shr_rm32_CL, Code::Shr_rm64_CL],
        [Code::Shr_rm8_imm8, Code::Shr_rm16_imm8, Code::Shr_rm32_imm8, Code::Shr_rm64_imm8],
    ),
    (
        ShiftOp::Sar,
        [Code::Sar_rm8_CL, Code::Sar_rm16_CL, Code::Sar_rm32_CL, Code::Sar_rm64_CL],
        [Code::Sar_rm8_imm8, Code::Sar_rm16_imm8, Code::Sar_rm32_imm8, Code::Sar_rm64_imm8],
    ),
    (
        ShiftOp::Rol,
        [Code::Rol_rm8_CL, Code::Rol_rm16_CL, Code::Rol_rm32_CL, Code::Rol_rm64_CL],
        [Code::Rol_rm8_imm8, Code::Rol_rm16_imm8, Code::Rol_rm32_imm8, Code::Rol_rm64_imm8],
    ),
    (
        ShiftOp::Ror,
        [Code::Ror_rm8_CL, Code::Ror_rm16_CL, Code::Ror_rm32_CL, Code::Ror_rm64_CL],
        [Code::Ror_rm8_imm8, Code::Ror_rm16_imm8, Code::Ror_rm32_imm8, Code::Ror_rm64_imm8],
    ),
    (
        ShiftOp::Rcl,
        [Code::Rcl_rm8_CL, Code::Rcl_rm16_CL, Code::Rcl_rm32_CL, Code::Rcl_rm64_CL],
        [Code::Rcl_rm8_imm8, Code::Rcl_rm16_imm8, Code::Rcl_rm32_imm8, Code::Rcl_rm64_imm8],
    ),
    (
        ShiftOp::Rcr,
        [Code::Rcr_rm8_CL, Code::Rcr_rm16_CL, Code::Rcr_rm32_CL, Code::Rcr_rm64_CL],
        [Code::Rcr_rm8_imm8, Code::Rcr_rm16_imm8, Code::Rcr_rm32_imm8, Code::Rcr_rm64_imm8],
    ),
];

/// One bit at a time, as the manual's pseudo-code does it: (result, flags, flags that are defined).
fn shift_model(op: ShiftOp, width: usize, a: u64, count: u8, rflags: u64) -> (u64, u64, u64) {
    let count = u32::from(count) & if width == 8 { 63 } else { 31 };
    let top = 8 * width as u32 - 1;
    let bit = |value: u64, n: u32| value >> n & 1;
    let mut value = low(width, a);
    let mut carry = rflags & CF;
    for _ in 0..count {
        let (out, filled) = match op {
            ShiftOp::Shl => (bit(value, top), low(width, value << 1)),
            ShiftOp::Shr => (bit(value, 0), value >> 1),
            ShiftOp::Sar => (bit(value, 0), value >> 1 | bit(value, top) << top),
            ShiftOp::Rol => (bit(value, top), low(width, value << 1) | bit(value, top)),
            ShiftOp::Ror => (bit(value, 0), value >> 1 | bit(value, 0) << top),
            ShiftOp::Rcl => (bit(value, top), low(width, value << 1) | carry),
            ShiftOp::Rcr => (bit(value, 0), value >> 1 | carry << top),
        };
        (carry, value) = (out, filled);
    }
    if count == 0 {
        return (value, rflags & STATUS, STATUS);
    }
    // OF, which is defined for a count of one: whether the sign changed; SAR clears it.
    let overflow = match op {
        ShiftOp::Sar => 0,
        ShiftOp::Rol | ShiftOp::Shl | ShiftOp::Rcl | ShiftOp::Shr | ShiftOp::Ror | ShiftOp::Rcr => {
            bit(value, top) ^ bit(a, top)
        }
    };
    let overflow = if overflow != 0 { OF } else { 0 };
    let overflow_defined = if count == 1 { OF } else { 0 };
    match op {
        ShiftOp::Rol | ShiftOp::Ror | ShiftOp::Rcl | ShiftOp::Rcr => {
            let flags = rflags & STATUS & !(CF | OF) | carry | overflow;
            (value, flags, STATUS & !OF | overflow_defined)
        }
        ShiftOp::Shl | ShiftOp::Shr | ShiftOp::Sar => {
            let carry_defined = if count <= top + 1 || matches!(op, ShiftOp::Sar) { CF } else { 0 };
            let flags = of_result(width, value) | carry | overflow;
            (value, flags, SF | ZF | PF | carry_defined | overflow_defined)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn shifts_match_the_model(
        shift in prop::sample::select(&SHIFTS[..]), size in 0usize..4, a in operand(),
        count in prop_oneof![any::<u8>(), 0u8..10], rflags: u64,
    ) {
        let width = 1 << size;
        let (op, by_cl, by_immediate) = shift;
        let (result, flags, defined) = shift_model(op, width, a, count, rflags);
        let mut first = machine(rflags).with(Gpr::Rcx, count.into()).poke64(PLACE, a);
        first.run(|p| p.add_instruction(Instruction::with2(by_cl[size], place(), Register::CL)?));
        prop_assert_eq!(first.peek(PLACE, width), result);
        check_flags(&first, flags, defined);
        let mut second = machine(rflags).poke64(PLACE, a);
        second.run(|p| p.add_instruction(Instruction::with2(by_immediate[size], place(), u32::from(count))?));
        prop_assert_eq!(second.peek(PLACE, width), result);
        prop_assert_eq!(second.state.rflags, first.state.rflags);
    }
}
