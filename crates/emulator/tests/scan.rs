//! Bit scans, counts of bits, CRC32, and shifts of two operands.

mod common;

use common::{CF, Kind, Machine, OF, ONE, PF, SF, STATUS, ZF};
use iced_x86::code_asm::*;
use umbra_emulator::{Gpr, Mode};

const PLACE: u64 = 0x7000;
const RCX: u64 = 0x1122_3344_5566_7788;

fn machine(value: u64) -> Machine {
    Machine::new(Mode::Bits64)
        .with(Gpr::Rdi, PLACE)
        .with(Gpr::Rcx, RCX)
        .poke64(PLACE, value)
        .flags(STATUS)
}

#[test]
fn scans_find_the_lowest_and_the_highest_bit() {
    for bit in 0..64u64 {
        let mut m = machine(1 << bit | 1 << 63);
        m.run(|p| p.bsf(rcx, qword_ptr(rdi)));
        assert_eq!((m.get(Gpr::Rcx), m.state.rflags & (ZF | CF | OF | SF)), (bit, 0));
        let mut m = machine(1 << bit | 1);
        m.run(|p| p.bsr(rcx, qword_ptr(rdi)));
        assert_eq!((m.get(Gpr::Rcx), m.state.rflags & ZF), (bit, 0));
    }
    // Zero leaves the destination alone: all 64 bits of it.
    let mut m = machine(0xffff_ffff_0000_0000);
    m.run(|p| p.bsf(ecx, dword_ptr(rdi)));
    assert_eq!((m.get(Gpr::Rcx), m.state.rflags), (RCX, ONE | STATUS));
    m.run(|p| p.bsr(cx, word_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), RCX);
}

#[test]
fn counts_of_zeros_and_ones() {
    for (value, tzcnt, lzcnt, popcnt) in
        [(0, 16, 16, 0), (1, 0, 15, 1), (0x8000, 15, 0, 1), (0x0ff0, 4, 4, 8)]
    {
        let new = || machine(0xdead_0000 | value);
        let expected = |count: u64, carry: bool| {
            let parity = if (count as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
            ONE | if count == 0 { ZF } else { 0 } | if carry { CF } else { 0 } | parity
        };
        let mut m = new();
        m.run(|p| p.tzcnt(cx, word_ptr(rdi)));
        assert_eq!(
            (m.get(Gpr::Rcx), m.state.rflags),
            (RCX & !0xffff | tzcnt, expected(tzcnt, value == 0))
        );
        let mut m = new();
        m.run(|p| p.lzcnt(cx, word_ptr(rdi)));
        assert_eq!(
            (m.get(Gpr::Rcx), m.state.rflags),
            (RCX & !0xffff | lzcnt, expected(lzcnt, value == 0))
        );
        let mut m = new();
        m.run(|p| p.popcnt(cx, word_ptr(rdi)));
        let zero = if value == 0 { ZF } else { 0 };
        assert_eq!((m.get(Gpr::Rcx), m.state.rflags), (RCX & !0xffff | popcnt, ONE | zero));
    }
    // Without the instructions their prefix means nothing.
    let mut m = machine(1 << 40);
    m.counts_zeros = false;
    m.run(|p| p.lzcnt(rcx, qword_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 40);
    let mut m = machine(0);
    m.counts_zeros = false;
    m.run(|p| p.tzcnt(rcx, qword_ptr(rdi)));
    assert_eq!((m.get(Gpr::Rcx), m.state.rflags & ZF), (RCX, ZF));
}

#[test]
fn crc32_of_the_check_string() {
    // "123456789" has the CRC-32C e3069283; register and result are inverted.
    let mut m =
        machine(u64::from_le_bytes(*b"12345678")).poke(PLACE + 8, b"9").with(Gpr::Rcx, 0xffff_ffff);
    m.run(|p| p.crc32(rcx, qword_ptr(rdi)));
    m.run(|p| p.crc32(ecx, byte_ptr(rdi + 8)));
    assert_eq!(!m.get(Gpr::Rcx) as u32, 0xe306_9283);
    assert_eq!((m.get(Gpr::Rcx) >> 32, m.state.rflags), (0, ONE | STATUS));
    let mut m = m.with(Gpr::Rcx, 0xdead_beef_ffff_ffff);
    m.run(|p| p.crc32(ecx, word_ptr(rdi)));
    m.run(|p| p.crc32(ecx, word_ptr(rdi + 2)));
    m.run(|p| p.crc32(ecx, dword_ptr(rdi + 4)));
    m.run(|p| p.crc32(rcx, byte_ptr(rdi + 8)));
    assert_eq!(!m.get(Gpr::Rcx) as u32, 0xe306_9283);
}

#[test]
fn shifts_of_two_operands() {
    let (a, b) = (0x8182_8384_8586_8788u64, RCX);
    for count in 1..64u32 {
        let mut m = machine(a);
        m.run(|p| p.shld(qword_ptr(rdi), rcx, count));
        let expected = a << count | b >> (64 - count);
        assert_eq!(m.peek64(PLACE), expected);
        assert_eq!(m.state.rflags & CF != 0, a >> (64 - count) & 1 != 0);
        assert_eq!((m.state.rflags & ZF, m.state.rflags & SF != 0), (0, expected >> 63 != 0));
        let mut m = machine(a).with(Gpr::Rdx, b);
        m = m.with(Gpr::Rcx, count.into());
        m.run(|p| p.shrd(qword_ptr(rdi), rdx, cl));
        assert_eq!(m.peek64(PLACE), a >> count | b << (64 - count));
        assert_eq!(m.state.rflags & CF != 0, a >> (count - 1) & 1 != 0);
    }
    let mut m = machine(0x1234_5678);
    m.run(|p| p.shld(dword_ptr(rdi), ecx, 8));
    assert_eq!(m.peek(PLACE, 4), 0x3456_7855);
    let mut m = machine(0x1234);
    m.run(|p| p.shrd(word_ptr(rdi), cx, 4));
    assert_eq!(m.peek(PLACE, 2), 0x8123);
    // Beyond 16 bits the first operand follows the second (undefined in the manual).
    let mut m = machine(0x1234);
    m.run(|p| p.shld(word_ptr(rdi), cx, 20));
    assert_eq!(m.peek(PLACE, 2), 0x7881);
    let mut m = machine(0x1234);
    m.run(|p| p.shrd(word_ptr(rdi), cx, 20));
    assert_eq!(m.peek(PLACE, 2), 0x4778);
    // By 1, OF says whether the sign has changed.
    let mut m = machine(0x4000_0000);
    m.run(|p| p.shld(dword_ptr(rdi), ecx, 1));
    assert_eq!(m.state.rflags & OF, OF);
}

#[test]
fn shifts_by_nothing_write_no_memory_and_change_no_flag() {
    let mut m = machine(5).with(Gpr::Rcx, 32);
    m.run(|p| p.shld(dword_ptr(rdi), eax, cl));
    m.run(|p| p.shl(dword_ptr(rdi), cl));
    m.run(|p| p.ror(word_ptr(rdi), cl));
    assert_eq!(m.state.rflags, ONE | STATUS);
    assert!(m.accesses.iter().all(|access| access.kind == Kind::ReadModify));
    // RCL of 8 bits goes through 9.
    let mut m = machine(5);
    m.run(|p| p.rcl(byte_ptr(rdi), 18));
    assert_eq!((m.peek(PLACE, 1), m.state.rflags), (5, ONE | STATUS));
    // A 32-bit register has its upper half cleared nevertheless.
    let mut m = machine(0).with(Gpr::Rcx, 0).with(Gpr::Rax, u64::MAX);
    m.run(|p| p.shld(eax, edx, cl));
    assert_eq!(m.get(Gpr::Rax), 0xffff_ffff);
}
