//! Moves, exchanges and compare-and-exchange, on memory and registers of every width.

mod common;

use common::{Access, Kind, Machine, OF, RF, SF, STATUS, ZF};
use iced_x86::code_asm::*;
use proptest::prelude::*;
use umbra_emulator::{Error, Exception, Gpr, Mode};

const PLACE: u64 = 0x7000;
const OLD: u64 = 0x8182_8384_8586_8788;
const RCX: u64 = 0x1122_3344_5566_7788;

fn machine() -> Machine {
    Machine::new(Mode::Bits64).with(Gpr::Rdi, PLACE).with(Gpr::Rcx, RCX).poke64(PLACE, OLD)
}

#[test]
fn mov_to_memory_writes_its_width() {
    let mut m = machine();
    m.run(|p| p.mov(qword_ptr(rdi), rcx));
    assert_eq!(m.peek64(PLACE), RCX);
    let mut m = machine();
    m.run(|p| p.mov(dword_ptr(rdi), ecx));
    assert_eq!(m.peek64(PLACE), 0x8182_8384_5566_7788);
    let mut m = machine();
    m.run(|p| p.mov(word_ptr(rdi), cx));
    assert_eq!(m.peek64(PLACE), 0x8182_8384_8586_7788);
    let mut m = machine();
    m.run(|p| p.mov(byte_ptr(rdi), cl));
    assert_eq!(m.peek64(PLACE), OLD);
    m.run(|p| p.mov(byte_ptr(rdi), ch));
    assert_eq!(m.peek64(PLACE), OLD & !0xff | 0x77);
    assert_eq!(m.accesses.len(), 2);
    assert_eq!(m.accesses[1], Access { kind: Kind::Write, gva: PLACE, length: 1 });
}

#[test]
fn mov_from_memory_fills_the_register_as_its_width_demands() {
    let mut m = machine();
    m.run(|p| p.mov(rcx, qword_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), OLD);
    let mut m = machine();
    m.run(|p| p.mov(ecx, dword_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 0x8586_8788, "32 bits clear the upper half");
    let mut m = machine();
    m.run(|p| p.mov(cx, word_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 0x1122_3344_5566_8788);
    let mut m = machine();
    m.run(|p| p.mov(cl, byte_ptr(rdi + 1)));
    assert_eq!(m.get(Gpr::Rcx), 0x1122_3344_5566_7787);
    let mut m = machine();
    m.run(|p| p.mov(ch, byte_ptr(rdi + 1)));
    assert_eq!(m.get(Gpr::Rcx), 0x1122_3344_5566_8788);
}

#[test]
fn without_rex_four_to_seven_are_the_high_bytes_and_with_rex_the_low_ones() {
    for (byte, gpr) in [(ah, Gpr::Rax), (ch, Gpr::Rcx), (dh, Gpr::Rdx), (bh, Gpr::Rbx)] {
        let mut m = machine().with(gpr, 0x0102_0304_0506_0708);
        m.run(|p| p.mov(byte, byte_ptr(rdi)));
        assert_eq!(m.get(gpr), 0x0102_0304_0506_8808);
        m.run(|p| p.mov(byte_ptr(rdi + 5), byte));
        assert_eq!(m.peek(PLACE + 5, 1), 0x88);
    }
    for (byte, gpr) in
        [(spl, Gpr::Rsp), (bpl, Gpr::Rbp), (sil, Gpr::Rsi), (r9b, Gpr::R9), (r15b, Gpr::R15)]
    {
        let mut m = machine().with(gpr, 0x0102_0304_0506_0708);
        m.run(|p| p.mov(byte, byte_ptr(rdi)));
        assert_eq!(m.get(gpr), 0x0102_0304_0506_0788);
        m.run(|p| p.mov(byte_ptr(rdi + 5), byte));
        assert_eq!(m.peek(PLACE + 5, 1), 0x88);
    }
}

#[test]
fn every_register_is_the_one_the_encoding_names() {
    let whole = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (gpr, name) in Gpr::ALL.into_iter().zip(whole) {
        let mut m = Machine::new(Mode::Bits64).with(gpr, RCX);
        m.run(|p| p.mov(qword_ptr(PLACE), name));
        assert_eq!(m.peek64(PLACE), RCX, "{gpr:?}");
        let mut m = m.poke64(PLACE, OLD);
        m.run(|p| p.mov(name, qword_ptr(PLACE)));
        assert_eq!(m.get(gpr), OLD, "{gpr:?}");
    }
}

#[test]
fn mov_of_immediates_and_absolute_offsets() {
    let mut m = machine();
    m.run(|p| p.mov(qword_ptr(rdi), -2));
    assert_eq!(m.peek64(PLACE), -2i64 as u64);
    let mut m = machine();
    m.run(|p| p.mov(word_ptr(rdi), 0x1234));
    assert_eq!(m.peek64(PLACE), 0x8182_8384_8586_1234);
    let far = 0x7fff_1234_5678u64;
    let mut m = machine().poke64(far, OLD);
    m.run(|p| p.mov(rax, qword_ptr(far)));
    assert_eq!(m.get(Gpr::Rax), OLD);
    m.run(|p| p.mov(byte_ptr(far + 1), al));
    assert_eq!(m.peek(far + 1, 1), 0x88);
}

#[test]
fn extending_moves() {
    let mut m = machine();
    m.run(|p| p.movzx(ecx, byte_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 0x88);
    m.run(|p| p.movsx(rcx, byte_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 0xffff_ffff_ffff_ff88);
    m.run(|p| p.movsx(ecx, word_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 0xffff_8788, "sign-extended to 32 bits, zero-extended to 64");
    m.run(|p| p.movsxd(rcx, dword_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 0xffff_ffff_8586_8788);
    m.run(|p| p.movzx(cx, byte_ptr(rdi + 7)));
    assert_eq!(m.get(Gpr::Rcx), 0xffff_ffff_8586_0081);
    assert_eq!(m.accesses.iter().map(|access| access.length).collect::<Vec<_>>(), [1, 1, 2, 4, 1]);
}

#[test]
fn movbe_swaps_and_movnti_stores() {
    let mut m = machine();
    m.run(|p| p.movbe(rcx, qword_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), OLD.swap_bytes());
    m.run(|p| p.movbe(word_ptr(rdi + 2), cx));
    assert_eq!(m.peek64(PLACE), 0x8182_8384_8182_8788, "CX holds 8281h");
    m.run(|p| p.movnti(dword_ptr(rdi + 4), eax));
    assert_eq!(m.peek(PLACE + 4, 4), 0);
}

#[test]
fn conditions_set_and_move() {
    let mut m = machine().flags(ZF | RF);
    m.run(|p| p.sete(byte_ptr(rdi)));
    m.run(|p| p.setne(byte_ptr(rdi + 1)));
    m.run(|p| p.setg(byte_ptr(rdi + 2)));
    m.run(|p| p.setge(byte_ptr(rdi + 3)));
    assert_eq!(m.peek(PLACE, 4), 0x0100_0001);
    m.run(|p| p.cmovne(rcx, qword_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), RCX);
    m.run(|p| p.cmovne(ecx, dword_ptr(rdi)));
    assert_eq!(
        m.get(Gpr::Rcx),
        RCX & 0xffff_ffff,
        "a 32-bit destination is zero-extended even if not moved"
    );
    m.run(|p| p.cmove(ecx, dword_ptr(rdi)));
    assert_eq!(m.get(Gpr::Rcx), 0x0100_0001);
    assert_eq!(
        m.accesses.iter().filter(|access| access.kind == Kind::Read).count(),
        3,
        "it reads in any case"
    );
}

proptest! {
    /// All sixteen conditions for all settings of the flags, against the words of the manual.
    #[test]
    fn conditions_mean_what_their_names_say(rflags: u64) {
        let rflags = rflags & STATUS;
        let [cf, pf, zf, sf, of] = [common::CF, common::PF, ZF, SF, OF].map(|flag| rflags & flag != 0);
        let expected = [of, !of, cf, !cf, zf, !zf, cf | zf, !(cf | zf), sf, !sf, pf, !pf,
            sf ^ of, !(sf ^ of), (sf ^ of) | zf, !((sf ^ of) | zf)];
        let mut m = machine().flags(rflags);
        m.run(|p| p.seto(byte_ptr(rdi)));
        m.run(|p| p.setno(byte_ptr(rdi + 1)));
        m.run(|p| p.setb(byte_ptr(rdi + 2)));
        m.run(|p| p.setae(byte_ptr(rdi + 3)));
        m.run(|p| p.sete(byte_ptr(rdi + 4)));
        m.run(|p| p.setne(byte_ptr(rdi + 5)));
        m.run(|p| p.setbe(byte_ptr(rdi + 6)));
        m.run(|p| p.seta(byte_ptr(rdi + 7)));
        m.run(|p| p.sets(byte_ptr(rdi + 8)));
        m.run(|p| p.setns(byte_ptr(rdi + 9)));
        m.run(|p| p.setp(byte_ptr(rdi + 10)));
        m.run(|p| p.setnp(byte_ptr(rdi + 11)));
        m.run(|p| p.setl(byte_ptr(rdi + 12)));
        m.run(|p| p.setge(byte_ptr(rdi + 13)));
        m.run(|p| p.setle(byte_ptr(rdi + 14)));
        m.run(|p| p.setg(byte_ptr(rdi + 15)));
        for (offset, expected) in expected.into_iter().enumerate() {
            prop_assert_eq!(m.peek(PLACE + offset as u64, 1), u64::from(expected), "condition {}", offset);
        }
    }

    #[test]
    fn exchange_swaps(old: u64, new: u64) {
        let mut m = machine().poke64(PLACE, old).with(Gpr::Rcx, new).flags(STATUS);
        m.run(|p| p.xchg(qword_ptr(rdi), rcx));
        prop_assert_eq!((m.peek64(PLACE), m.get(Gpr::Rcx)), (new, old));
        prop_assert_eq!(m.state.rflags & STATUS, STATUS);
        let mut m = machine().poke64(PLACE, old).with(Gpr::Rcx, new);
        m.run(|p| p.xchg(dword_ptr(rdi), ecx));
        prop_assert_eq!(m.get(Gpr::Rcx), old & 0xffff_ffff);
        prop_assert_eq!(m.peek64(PLACE), old & !0xffff_ffff | new & 0xffff_ffff);
    }

    #[test]
    fn compare_exchange_stores_only_if_equal(old: u64, new: u64, accumulator: u64, equal: bool) {
        let accumulator = if equal { old } else { accumulator };
        let mut m = machine().poke64(PLACE, old).with(Gpr::Rcx, new).with(Gpr::Rax, accumulator);
        let mut compared = machine().poke64(PLACE, old).with(Gpr::Rax, accumulator);
        m.run(|p| p.lock().cmpxchg(qword_ptr(rdi), rcx));
        compared.run(|p| p.cmp(rax, qword_ptr(rdi)));
        prop_assert_eq!(m.state.rflags, compared.state.rflags);
        prop_assert_eq!(m.peek64(PLACE), if accumulator == old { new } else { old });
        prop_assert_eq!(m.get(Gpr::Rax), old);
        prop_assert_eq!(m.get(Gpr::Rcx), new);
        let kinds: Vec<_> = m.accesses.iter().map(|access| access.kind).collect();
        prop_assert_eq!(kinds, [Kind::ReadModify, Kind::Write], "written in any case");
    }

    #[test]
    fn exchange_add_leaves_the_old_value(old: u64, addend: u64) {
        let mut m = machine().poke64(PLACE, old).with(Gpr::Rcx, addend);
        let mut added = machine().poke64(PLACE, old).with(Gpr::Rcx, addend);
        m.run(|p| p.lock().xadd(qword_ptr(rdi), rcx));
        added.run(|p| p.add(qword_ptr(rdi), rcx));
        prop_assert_eq!(m.peek64(PLACE), old.wrapping_add(addend));
        prop_assert_eq!(m.get(Gpr::Rcx), old);
        prop_assert_eq!(m.state.rflags, added.state.rflags);
    }

    #[test]
    fn compare_exchange_of_pairs(old: u128, new: u128, expected: u128, equal: bool) {
        let expected = if equal { old } else { expected };
        let half = |value: u128| (value as u64, (value >> 64) as u64);
        let set = |m: Machine| {
            m.with(Gpr::Rax, half(expected).0).with(Gpr::Rdx, half(expected).1)
                .with(Gpr::Rbx, half(new).0).with(Gpr::Rcx, half(new).1)
                .poke64(PLACE, half(old).0).poke64(PLACE + 8, half(old).1).flags(STATUS)
        };
        let mut m = set(machine());
        m.run(|p| p.lock().cmpxchg16b(xmmword_ptr(rdi)));
        prop_assert_eq!(m.state.rflags & ZF != 0, expected == old);
        prop_assert_eq!(m.state.rflags & STATUS & !ZF, STATUS & !ZF);
        prop_assert_eq!((m.peek64(PLACE), m.peek64(PLACE + 8)), half(if expected == old { new } else { old }));
        prop_assert_eq!((m.get(Gpr::Rax), m.get(Gpr::Rdx)), half(old));

        // The same with halves of 32 bits.
        let low = |value: u128| (value as u64 & 0xffff_ffff, (value >> 64) as u64 & 0xffff_ffff);
        let joined = |value: u128| low(value).1 << 32 | low(value).0;
        let mut m = set(machine()).poke64(PLACE, joined(old));
        m.run(|p| p.cmpxchg8b(qword_ptr(rdi)));
        let equal = joined(expected) == joined(old);
        prop_assert_eq!(m.state.rflags & ZF != 0, equal);
        prop_assert_eq!(m.peek64(PLACE), joined(if equal { new } else { old }));
        if equal {
            prop_assert_eq!((m.get(Gpr::Rax), m.get(Gpr::Rdx)), half(expected), "untouched");
        } else {
            prop_assert_eq!((m.get(Gpr::Rax), m.get(Gpr::Rdx)), low(old));
        }
    }
}

#[test]
fn cmpxchg16b_must_be_aligned() {
    let mut m = machine().with(Gpr::Rdi, PLACE + 8);
    let before = m.state.clone();
    assert_eq!(
        m.step(|p| p.cmpxchg16b(xmmword_ptr(rdi))),
        Err(Error::Exception(Exception::GENERAL_PROTECTION))
    );
    assert_eq!(m.state, before);
    assert!(m.accesses.is_empty());
}

#[test]
fn bits_in_a_register_reach_beyond_the_operand() {
    for (offset, byte, bit) in [
        (0i64, 0i64, 0),
        (63, 7, 7),
        (64, 8, 0),
        (1000, 125, 0),
        (-1, -1, 7),
        (-64, -8, 0),
        (-65, -9, 7),
    ] {
        let target = PLACE.wrapping_add_signed(byte);
        for set in [0x00, 0xff] {
            let expected = u64::from(set != 0);
            let new = || {
                machine()
                    .with(Gpr::Rcx, offset as u64)
                    .poke(target, &[set])
                    .flags(STATUS & !common::CF)
            };
            let mut m = new();
            m.run(|p| p.bt(qword_ptr(rdi), rcx));
            assert_eq!(m.state.rflags & common::CF, expected, "{offset}");
            assert_eq!(m.accesses[0].kind, Kind::Read);
            assert_eq!(m.accesses.len(), 1);
            let mut m = new();
            m.run(|p| p.lock().bts(qword_ptr(rdi), rcx));
            assert_eq!(
                (m.peek(target, 1), m.state.rflags & common::CF),
                (u64::from(set | 1 << bit), expected)
            );
            let mut m = new();
            m.run(|p| p.lock().btr(qword_ptr(rdi), rcx));
            assert_eq!(
                (m.peek(target, 1), m.state.rflags & common::CF),
                (u64::from(set & !(1 << bit)), expected)
            );
            let mut m = new();
            m.run(|p| p.btc(qword_ptr(rdi), rcx));
            assert_eq!(
                (m.peek(target, 1), m.state.rflags & common::CF),
                (u64::from(set ^ 1 << bit), expected)
            );
            assert_eq!(m.state.rflags & STATUS & !common::CF, STATUS & !common::CF);
        }
    }
}

#[test]
fn bit_offsets_are_as_wide_as_the_operand() {
    // -17 in 16 bits: two words down, the topmost bit. The upper part of the register does not
    // count.
    let mut m = machine().with(Gpr::Rcx, 0x1234_ffef).poke(PLACE - 4, &[0, 0]);
    m.run(|p| p.bts(word_ptr(rdi), cx));
    assert_eq!(m.peek(PLACE - 4, 2), 0x8000);
    // The lowest offset in 32 bits is 2^31 bits down.
    let mut m = machine()
        .with(Gpr::Rcx, 0x1234_5678_8000_0000)
        .with(Gpr::Rdi, 0x2000_0000)
        .poke(0x1000_0000, &[0; 4]);
    m.run(|p| p.bts(dword_ptr(rdi), ecx));
    assert_eq!(m.peek(0x1000_0000, 4), 1);
    // An immediate offset stays within the operand.
    let mut m = machine().poke(PLACE, &[0; 8]);
    m.run(|p| p.bts(word_ptr(rdi), 35));
    assert_eq!(m.peek64(PLACE), 1 << 3);
}
