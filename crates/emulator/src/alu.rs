//! Arithmetic: results and the status flags they leave (SDM volume 1, "EFLAGS Cross-Reference").
//!
//! Where the manual calls a flag undefined, this is one of the permitted choices: AF is clear after logic and shifts,
//! and shifts and rotations by any count set OF as those by one do.

use crate::flags::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::width::Width;

/// An operation of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
}

/// An operation of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

/// A shift or rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Shl,
    Shr,
    Sar,
    Rol,
    Ror,
    Rcl,
    Rcr,
}

/// What an operation on one bit makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitChange {
    Keep,
    Set,
    Reset,
    Complement,
}

impl BitChange {
    pub(crate) fn apply(self, value: u64, bit: u64) -> u64 {
        match self {
            BitChange::Keep => value,
            BitChange::Set => value | bit,
            BitChange::Reset => value & !bit,
            BitChange::Complement => value ^ bit,
        }
    }
}

fn flag(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// ZF, SF and PF of a result.
fn of_result(width: Width, result: u64) -> u64 {
    flag(result == 0, ZF)
        | flag(result & width.sign_bit() != 0, SF)
        | flag((result as u8).count_ones().is_multiple_of(2), PF)
}

/// The result of `binary` and RFLAGS after it. Operands are truncated to `width`.
pub(crate) fn binary(operation: Binary, width: Width, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let carry = rflags & CF;
    let (a, b) = (width.truncate(a), width.truncate(b));
    let logic = |result| (result, 0);
    // `carries` has a bit for each position that carried (borrowed) into the one above it.
    let sum = |carry: u64| {
        let result = a.wrapping_add(b).wrapping_add(carry);
        (result, (a & b) | ((a | b) & !result))
    };
    let difference = |borrow: u64| {
        let result = a.wrapping_sub(b).wrapping_sub(borrow);
        (result, (!a & b) | ((!a | b) & result))
    };
    let (result, carries) = match operation {
        Binary::Add => sum(0),
        Binary::Adc => sum(carry),
        Binary::Sub => difference(0),
        Binary::Sbb => difference(carry),
        Binary::And => logic(a & b),
        Binary::Or => logic(a | b),
        Binary::Xor => logic(a ^ b),
    };
    let result = width.truncate(result);
    let carry_out = carries & width.sign_bit() != 0;
    let carry_into_sign = carries & (width.sign_bit() >> 1) != 0;
    let status = of_result(width, result)
        | flag(carry_out, CF)
        | flag(carries & 8 != 0, AF)
        | flag(carry_out != carry_into_sign, OF);
    (result, rflags & !STATUS | status)
}

/// The result of `unary` and RFLAGS after it.
pub(crate) fn unary(operation: Unary, width: Width, a: u64, rflags: u64) -> (u64, u64) {
    // INC and DEC leave CF alone.
    let keep_carry = |(result, flags): (u64, u64)| (result, flags & !CF | rflags & CF);
    match operation {
        Unary::Inc => keep_carry(binary(Binary::Add, width, a, 1, rflags)),
        Unary::Dec => keep_carry(binary(Binary::Sub, width, a, 1, rflags)),
        Unary::Neg => binary(Binary::Sub, width, 0, a, rflags),
        Unary::Not => (width.truncate(!a), rflags),
    }
}

/// The result of `shift` by the low bits of `count` and RFLAGS after it.
pub(crate) fn shift(operation: Shift, width: Width, a: u64, count: u64, rflags: u64) -> (u64, u64) {
    let a = width.truncate(a);
    let bits = width.bits();
    let count = count as u32 & if width == Width::Qword { 0x3f } else { 0x1f };
    if count == 0 {
        return (a, rflags);
    }
    let top = |value: u64| value & width.sign_bit() != 0;
    let below_top = |value: u64| value & (width.sign_bit() >> 1) != 0;
    // 128 bits hold every operand shifted by every count.
    let wide = u128::from(a);
    match operation {
        Shift::Shl => {
            let shifted = wide << count;
            let result = width.truncate(shifted as u64);
            let carry = shifted >> bits & 1 != 0;
            shifted_flags(width, result, carry, top(result) != carry, rflags)
        }
        Shift::Shr => {
            let result = (wide >> count) as u64;
            let carry = wide >> (count - 1) & 1 != 0;
            // For a count of one this is the sign of the operand.
            shifted_flags(width, result, carry, top(result) != below_top(result), rflags)
        }
        Shift::Sar => {
            let signed = i128::from(width.sign_extend(a) as i64);
            let result = width.truncate((signed >> count) as u64);
            let carry = signed >> (count - 1) & 1 != 0;
            shifted_flags(width, result, carry, false, rflags)
        }
        Shift::Rol | Shift::Ror => {
            let left = if operation == Shift::Rol { count % bits } else { bits - count % bits };
            let result = width.truncate(((wide << left) | (wide << left >> bits)) as u64);
            let (carry, overflow) = if operation == Shift::Rol {
                (result & 1 != 0, top(result) != (result & 1 != 0))
            } else {
                (top(result), top(result) != below_top(result))
            };
            (result, rotated_flags(carry, overflow, rflags))
        }
        Shift::Rcl | Shift::Rcr => {
            // A rotation of the operand with CF as one more bit at its top.
            let length = bits + 1;
            let mask = (1u128 << length) - 1;
            let ring = wide | u128::from(rflags & CF) << bits;
            let left = if operation == Shift::Rcl { count % length } else { length - count % length };
            let ring = (ring << left | ring >> (length - left)) & mask;
            let result = width.truncate(ring as u64);
            let carry = ring >> bits & 1 != 0;
            let overflow =
                if operation == Shift::Rcl { top(result) != carry } else { top(result) != below_top(result) };
            (result, rotated_flags(carry, overflow, rflags))
        }
    }
}

fn shifted_flags(width: Width, result: u64, carry: bool, overflow: bool, rflags: u64) -> (u64, u64) {
    (result, rflags & !STATUS | of_result(width, result) | flag(carry, CF) | flag(overflow, OF))
}

/// Rotations change CF and OF alone.
fn rotated_flags(carry: bool, overflow: bool, rflags: u64) -> u64 {
    rflags & !(CF | OF) | flag(carry, CF) | flag(overflow, OF)
}
