//! Arithmetic: results and the status flags they leave (SDM volume 1, "EFLAGS Cross-Reference").
//!
//! Where the manual calls a flag undefined, this is one of the permitted choices: AF is clear after
//! logic and shifts, and shifts and rotations by any count set OF as those by one do.

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
        | flag((result as u8).count_ones() % 2 == 0, PF)
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

/// RFLAGS after an operation of which the flags tell nothing but the result.
pub(crate) fn logic_flags(width: Width, result: u64, rflags: u64) -> u64 {
    rflags & !STATUS | of_result(width, result)
}

/// What a multiplication leaves.
pub(crate) struct Product {
    pub(crate) low: u64,
    pub(crate) high: u64,
    pub(crate) rflags: u64,
}

/// The product. CF and OF say that the lower half is not all of it; the flags that are undefined
/// follow the lower half, as in Bochs.
pub(crate) fn multiply(width: Width, a: u64, b: u64, signed: bool, rflags: u64) -> Product {
    let (product, whole) = if signed {
        let [a, b] = [a, b].map(|value| i128::from(width.sign_extend(value) as i64));
        let product = a * b;
        (product as u128, product == i128::from(width.sign_extend(product as u64) as i64))
    } else {
        let product = u128::from(width.truncate(a)) * u128::from(width.truncate(b));
        (product, product <= u128::from(width.mask()))
    };
    let low = width.truncate(product as u64);
    let high = width.truncate((product >> width.bits()) as u64);
    Product { low, high, rflags: logic_flags(width, low, rflags) | flag(!whole, CF | OF) }
}

/// Quotient and remainder of a dividend (high, low) of twice the width; none if the quotient does
/// not fit.
pub(crate) fn divide(
    width: Width,
    (high, low): (u64, u64),
    divisor: u64,
    signed: bool,
) -> Option<(u64, u64)> {
    let bits = width.bits();
    if signed {
        let high = i128::from(width.sign_extend(high) as i64);
        let dividend = high << bits | i128::from(width.truncate(low));
        let divisor = i128::from(width.sign_extend(divisor) as i64);
        let quotient = dividend.checked_div(divisor)?;
        let fits = quotient == i128::from(width.sign_extend(quotient as u64) as i64);
        fits.then_some((quotient as u64, (dividend % divisor) as u64))
    } else {
        let dividend = u128::from(width.truncate(high)) << bits | u128::from(width.truncate(low));
        let divisor = u128::from(width.truncate(divisor));
        let quotient = dividend.checked_div(divisor)?;
        (quotient <= u128::from(width.mask()))
            .then_some((quotient as u64, (dividend % divisor) as u64))
    }
}

/// SHLD (`left`) and SHRD: `a` is shifted, bits come from `b`; RFLAGS after it. None if the count
/// is zero.
///
/// With 16 bits and a count beyond that the manual leaves the result undefined: bits of `a` follow
/// those of `b`, as on processors since the P6.
pub(crate) fn double_shift(
    left: bool,
    width: Width,
    (a, b): (u64, u64),
    count: u64,
    rflags: u64,
) -> Option<(u64, u64)> {
    let bits = width.bits();
    let count = shift_count(width, count);
    if count == 0 {
        return None;
    }
    let [a, b] = [a, b].map(|value| u128::from(width.truncate(value)));
    let bit = |value: u128, number: u32| value >> number & 1 != 0;
    let (result, carry) = match (width, left) {
        (Width::Word, true) => {
            let ring = a << 32 | b << 16 | a;
            (ring << count >> 32, bit(ring, 48 - count))
        }
        (Width::Word, false) => {
            let ring = a << 32 | b << 16 | a;
            (ring >> count, bit(ring, count - 1))
        }
        (_, true) => (a << count | b >> (bits - count), bit(a, bits - count)),
        (_, false) => (a >> count | b << (bits - count), bit(a, count - 1)),
    };
    let result = width.truncate(result as u64);
    let top = |below: u32| result >> (bits - 1 - below) & 1 != 0;
    let overflow = if left { top(0) != carry } else { top(0) != top(1) };
    Some(shifted_flags(width, result, carry, overflow, rflags))
}

fn shift_count(width: Width, count: u64) -> u32 {
    count as u32 & if width == Width::Qword { 0x3f } else { 0x1f }
}

/// The result of `shift` by the low bits of `count` and RFLAGS after it; none if nothing is
/// shifted, which changes no flag.
pub(crate) fn shift(
    operation: Shift,
    width: Width,
    a: u64,
    count: u64,
    rflags: u64,
) -> Option<(u64, u64)> {
    let a = width.truncate(a);
    let bits = width.bits();
    let count = match operation {
        Shift::Rcl | Shift::Rcr => shift_count(width, count) % (bits + 1),
        _ => shift_count(width, count),
    };
    if count == 0 {
        return None;
    }
    let top = |value: u64| value & width.sign_bit() != 0;
    let below_top = |value: u64| value & (width.sign_bit() >> 1) != 0;
    // 128 bits hold every operand shifted by every count.
    let wide = u128::from(a);
    Some(match operation {
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
            let left = if operation == Shift::Rcl { count } else { length - count };
            let ring = (ring << left | ring >> (length - left)) & mask;
            let result = width.truncate(ring as u64);
            let carry = ring >> bits & 1 != 0;
            let overflow = if operation == Shift::Rcl {
                top(result) != carry
            } else {
                top(result) != below_top(result)
            };
            (result, rotated_flags(carry, overflow, rflags))
        }
    })
}

fn shifted_flags(
    width: Width,
    result: u64,
    carry: bool,
    overflow: bool,
    rflags: u64,
) -> (u64, u64) {
    (result, rflags & !STATUS | of_result(width, result) | flag(carry, CF) | flag(overflow, OF))
}

/// Rotations change CF and OF alone.
fn rotated_flags(carry: bool, overflow: bool, rflags: u64) -> u64 {
    rflags & !(CF | OF) | flag(carry, CF) | flag(overflow, OF)
}
