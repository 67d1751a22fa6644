//! The short way does what the long way does.

mod common;

use common::{AF, CF, Machine, OF, ONE, PF, RF, SF, STATUS, ZF, low};
use proptest::prelude::*;
use umbra_emulator::{Gpr, Mode, Outcome, Simple, emulate};

/// The opcodes of the short way, whether they take LOCK, and how many of the eight values of
/// ModRM.reg.
const OPCODES: &[(&[u8], bool, usize)] = &[
    (&[0x89], false, 8),
    (&[0x8b], false, 8),
    (&[0xc6], false, 1),
    (&[0xc7], false, 1),
    (&[0x87], true, 8),
    (&[0x01], true, 8),
    (&[0x09], true, 8),
    (&[0x11], true, 8),
    (&[0x19], true, 8),
    (&[0x21], true, 8),
    (&[0x29], true, 8),
    (&[0x31], true, 8),
    (&[0x39], false, 8),
    (&[0x80], true, 8),
    (&[0x81], true, 8),
    (&[0x83], true, 8),
    (&[0x0f, 0xb1], true, 8),
    (&[0x0f, 0xc1], true, 8),
    (&[0x0f, 0xab], true, 8),
    (&[0x0f, 0xb3], true, 8),
    (&[0x0f, 0xbb], true, 8),
    (&[0x0f, 0xba], true, 3),
];

/// A processor in 64-bit mode whose registers give canonical addresses however they are combined.
fn machine(seed: u64) -> Machine {
    let mut machine = Machine::new(Mode::Bits64);
    let mut random = seed;
    for gpr in &mut machine.state.gprs {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *gpr = (random >> 26) + (1 << 42);
    }
    machine.state.rflags = random & (CF | PF | AF | ZF | SF | OF | RF) | ONE;
    machine
}

/// Carries an instruction out in both ways; says whether the short one takes it.
fn compare(bytes: &[u8], before: &Machine) -> bool {
    let decoded = match before.mode {
        Mode::Bits64 => Simple::decode(bytes, before.state.rip),
        _ => Simple::decode_32(bytes, before.state.rip),
    };
    let Some(simple) = decoded else { return false };
    let (mut short, mut long) = (before.clone(), before.clone());
    let gpr = |gpr| before.get(gpr);
    let gva = simple.address(gpr);
    assert_eq!(emulate(&mut long, bytes), Ok(Outcome::Done), "{bytes:02x?}");
    for access in &long.accesses {
        assert_eq!((access.gva, access.length), (gva, simple.width()), "{bytes:02x?}");
    }
    let kinds = [common::Kind::Read, common::Kind::ReadModify, common::Kind::Write]
        .map(|kind| long.accesses.iter().any(|access| access.kind == kind));
    let (reads, writes) = (simple.reads(), simple.writes());
    assert_eq!(kinds, [reads && !writes, reads && writes, writes], "{bytes:02x?}");

    let old = if reads { before.peek(gva, simple.width()) } else { 0x5555_5555_5555_5555 };
    let effect = simple.effect(old, before.state.rflags, gpr);
    if writes {
        short = short.poke(gva, &effect.memory.to_le_bytes()[..simple.width()]);
    }
    if let Some((gpr, value)) = effect.register {
        short = short.with(gpr, value);
    }
    short.state.rflags = effect.rflags;
    short.state.rip = simple.next_rip();
    assert_eq!(short.state, long.state, "{bytes:02x?}");
    true
}

/// The same in flat 32-bit code, where what would be REX is INC or DEC.
#[test]
fn flat_32_bit_code_is_as_the_long_way_has_it() {
    let mut taken = 0;
    for opcode in
        (0..0x200u16).filter(|opcode| !matches!(opcode, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0xf0))
    {
        let opcode: &[u8] = if opcode < 0x100 { &[opcode as u8] } else { &[0x0f, opcode as u8] };
        let known = OPCODES.iter().any(|(known, ..)| *known == opcode);
        for (prefix, modrm) in
            (0..=255u8).flat_map(|modrm| [None, Some(0x3e)].map(|prefix| (prefix, modrm)))
        {
            let mut before = Machine::new(Mode::Bits32);
            before.state.gprs = machine(u64::from(modrm)).state.gprs;
            // The upper halves count for nothing, but stay what they are where nothing is written.
            before.state.gprs.iter_mut().for_each(|gpr| *gpr &= 0xffff_ffff);
            let rest = [modrm, modrm ^ 0x5a, 0x81, 0x92, 0xa3, 0x34, 0xc5, 0xd6, 0xe7, 0x19, 0x90];
            let code: Vec<u8> =
                prefix.into_iter().chain(opcode.iter().copied()).chain(rest).collect();
            let short = compare(&code, &before);
            assert!(known || !short, "{code:02x?}");
            taken += u32::from(short);
        }
        let rex = [0x48, 0x89, 0x08];
        assert_eq!(Simple::decode_32(&rex, 0), None);
    }
    assert!(taken > 5000, "{taken}");
}

/// All opcodes, REX and other prefixes and ModRM bytes, with all SIB bytes in turn, whole and cut
/// at any length.
#[test]
fn every_encoding_is_as_the_long_way_has_it() {
    let mut taken = 0;
    let mut round = 0u8;
    let prefixes =
        |opcode: &u16| matches!(opcode, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0xf0);
    for opcode in (0..0x200u16).filter(|opcode| !prefixes(opcode)) {
        let opcode: &[u8] = if opcode < 0x100 { &[opcode as u8] } else { &[0x0f, opcode as u8] };
        let known = OPCODES.iter().find(|(known, ..)| *known == opcode);
        for rex in [None].into_iter().chain((0x40..0x50).map(Some)) {
            for (kind, modrm) in (0..=255u8).flat_map(|modrm| [0, 1, 2].map(|kind| (kind, modrm))) {
                round = round.wrapping_add(1);
                let segment = [0x26, 0x2e, 0x36, 0x3e][usize::from(round % 4)];
                let prefix = [None, Some(0xf0), Some(segment)][kind];
                let lock = prefix == Some(0xf0);
                let before = machine(round.into());
                let rest =
                    [modrm, round, 0x81, 0x92, 0xa3, 0x34, 0xc5, 0xd6, 0xe7, 0x19, 0x90, 0x90];
                let before_opcode = prefix.into_iter().chain(rex);
                let code: Vec<u8> =
                    before_opcode.chain(opcode.iter().copied()).chain(rest).collect();
                let expected = known.is_some_and(|&(opcode, locks, groups)| {
                    let reg = usize::from(modrm >> 3 & 7);
                    let in_group =
                        if opcode == [0x0f, 0xba] { reg >= 8 - groups } else { reg < groups };
                    let compares = reg == 7 && [0x80, 0x81, 0x83].contains(&opcode[0]);
                    modrm >> 6 != 3 && in_group && (locks && !compares || !lock)
                });
                assert_eq!(compare(&code, &before), expected, "{code:02x?}");
                if expected {
                    taken += 1;
                    let simple = Simple::decode(&code, before.state.rip).unwrap();
                    let length = (simple.next_rip() - before.state.rip) as usize;
                    assert_eq!(Simple::decode(&code[..length], before.state.rip), Some(simple));
                    for length in 0..length {
                        assert_eq!(
                            Simple::decode(&code[..length], before.state.rip),
                            None,
                            "{code:02x?}"
                        );
                    }
                }
            }
        }
    }
    let forms: usize =
        OPCODES.iter().map(|&(_, locks, groups)| if locks { 3 * groups } else { 2 * groups }).sum();
    // CMP takes no LOCK, though the others of its three groups do.
    assert_eq!(taken, 17 * 3 * 8 * (forms - 3));
}

/// Values of registers and memory at which flags change.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..64u32, -1i64..=1).prop_map(|(bit, off)| (1u64 << bit).wrapping_add_signed(off)),
        Just(0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn any_values_give_the_same(
        (form, wide, lock) in (0..OPCODES.len(), any::<bool>(), any::<bool>()),
        (reg, immediate) in (0..8u8, any::<u32>()),
        (own, old, accumulator, flags) in (value(), value(), value(), any::<u64>()),
        equal in any::<bool>(),
    ) {
        let (opcode, locks, _) = OPCODES[form];
        // [RDI + R9 * 2 + 0x10], as far as the operand in the register leaves them alone.
        let mut machine = machine(own)
            .with(Gpr::Rax, accumulator)
            .with(Gpr::ALL[usize::from(reg)], own)
            .with(Gpr::Rdi, 0x7000_0000_0000 >> 1)
            .with(Gpr::R9, 0x1230);
        machine.state.rflags = flags & (STATUS | RF) | ONE;
        let code: Vec<u8> = (lock && locks).then_some(0xf0).into_iter()
            .chain([if wide { 0x4a } else { 0x42 }])
            .chain(opcode.iter().copied())
            .chain([0x44 | reg << 3, 0x4f, 0x10])
            .chain(immediate.to_le_bytes())
            .collect();
        let old = if equal { accumulator } else { old };
        if let Some(simple) = Simple::decode(&code, machine.state.rip) {
            let gva = simple.address(|gpr| machine.get(gpr));
            prop_assume!((gva as i64) << 16 >> 16 == gva as i64 && gva < u64::MAX - 8);
            machine = machine.poke(gva, &low(simple.width(), old).to_le_bytes());
            prop_assert!(compare(&code, &machine));
        }
    }
}
