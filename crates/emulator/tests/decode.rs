//! Bytes that are no instruction of ours: each verdict, and nothing changed.

mod common;

use common::{Machine, START, State, Verdict, assemble};
use iced_x86::code_asm::*;
use proptest::prelude::*;
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome, emulate};

type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

fn verdict(mode: Mode, bytes: &[u8]) -> (Verdict, State, State) {
    let mut machine = Machine::new(mode).with(Gpr::Rdi, 0x7000);
    let before = machine.state.clone();
    (emulate(&mut machine, bytes), before, machine.state)
}

fn refused(mode: Mode, bytes: &[u8], error: Error<common::Access>) {
    let (verdict, before, after) = verdict(mode, bytes);
    assert_eq!(verdict, Err(error), "{bytes:02x?}");
    assert_eq!(before, after);
}

#[test]
fn every_cut_of_an_instruction_is_truncated() {
    let bytes = assemble(Mode::Bits64, START, |p| {
        p.lock().add(qword_ptr(rdi + r9 * 8 + 0x1234_5678).gs(), 0x1234_5678)
    });
    for length in 0..bytes.len() {
        refused(Mode::Bits64, &bytes[..length], Error::Truncated);
    }
    assert_eq!(
        verdict(Mode::Bits64, &bytes).0,
        Err(Error::Exception(Exception::GENERAL_PROTECTION)),
        "R9 makes it not canonical"
    );
}

#[test]
fn fifteen_bytes_are_the_limit() {
    let mov = assemble(Mode::Bits64, START, |p| p.mov(dword_ptr(rdi), 0x1234_5678));
    let longest = [vec![0x3e; 15 - mov.len()], mov.clone()].concat();
    assert_eq!(verdict(Mode::Bits64, &longest).0, Ok(Outcome::Done));
    let too_long = [vec![0x3e; 16 - mov.len()], mov].concat();
    refused(Mode::Bits64, &too_long, Error::Exception(Exception::GENERAL_PROTECTION));
    refused(Mode::Bits64, &too_long[..15], Error::Exception(Exception::GENERAL_PROTECTION));
    refused(Mode::Bits64, &too_long[..14], Error::Truncated);
    refused(Mode::Bits64, &[0x66; 15], Error::Exception(Exception::GENERAL_PROTECTION));
}

#[test]
fn lock_is_for_writes_to_memory() {
    let lock = |bytes: Vec<u8>| [vec![0xf0], bytes].concat();
    let assembled = |program: Program| lock(assemble(Mode::Bits64, START, program));
    refused(
        Mode::Bits64,
        &assembled(|p| p.mov(qword_ptr(rdi), rax)),
        Error::Exception(Exception::INVALID_OPCODE),
    );
    refused(
        Mode::Bits64,
        &assembled(|p| p.add(rax, qword_ptr(rdi))),
        Error::Exception(Exception::INVALID_OPCODE),
    );
    refused(
        Mode::Bits64,
        &assembled(|p| p.cmp(qword_ptr(rdi), rax)),
        Error::Exception(Exception::INVALID_OPCODE),
    );
    refused(
        Mode::Bits64,
        &assembled(|p| p.bt(qword_ptr(rdi), 1)),
        Error::Exception(Exception::INVALID_OPCODE),
    );
    refused(Mode::Bits64, &assembled(|p| p.ud2()), Error::Exception(Exception::INVALID_OPCODE));
    assert_eq!(verdict(Mode::Bits64, &assembled(|p| p.not(qword_ptr(rdi)))).0, Ok(Outcome::Done));
    assert_eq!(verdict(Mode::Bits64, &assembled(|p| p.dec(byte_ptr(rdi)))).0, Ok(Outcome::Done));
}

#[test]
fn other_instructions_are_unsupported() {
    let programs: [Program; 10] = [
        |p| p.movups(xmmword_ptr(rdi), xmm0),
        |p| p.movsd_2(qword_ptr(rdi), xmm0),
        |p| p.cmpsd_3(xmm0, qword_ptr(rdi), 1),
        |p| p.movq(qword_ptr(rdi), mm1),
        |p| p.fld(qword_ptr(rdi)),
        |p| p.fxsave(ptr(rdi)),
        |p| p.mov(cr3, rax),
        |p| p.lea(rax, qword_ptr(rdi)),
        |p| p.jne(START),
        |p| p.hlt(),
    ];
    for program in programs {
        refused(Mode::Bits64, &assemble(Mode::Bits64, START, program), Error::Unsupported);
    }
}

#[test]
fn vector_extensions_are_unsupported_not_invalid() {
    // VMOVUPS [rdi], ymm0 with VEX prefixes of two and three bytes, and with EVEX.
    for bytes in [
        &[0xc5, 0xfc, 0x11, 0x07][..],
        &[0xc4, 0xe1, 0x7c, 0x11, 0x07],
        &[0x62, 0xf1, 0x7c, 0x28, 0x11, 0x07],
    ] {
        let padded = [bytes, &[0x90; 9]].concat();
        refused(Mode::Bits64, &padded, Error::Unsupported);
    }
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Bits16), Just(Mode::Bits32), Just(Mode::Bits64)]
}

/// Addresses at the ends of everything, as often as any others.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (
            prop_oneof![Just(0u64), Just(1 << 31), Just(1 << 32), Just(1 << 47), Just(!0 << 47)],
            -20i64..20
        )
            .prop_map(|(end, near)| end.wrapping_add_signed(near)),
    ]
}

/// Opcodes of the emulated instructions with any prefixes before and anything behind, or any bytes
/// at all.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(
        &[0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x64, 0x65, 0x48, 0x41, 0x4f][..],
    );
    let opcode = prop_oneof![
        any::<u8>().prop_map(|opcode| vec![opcode]),
        any::<u8>().prop_map(|opcode| vec![0x0f, opcode]),
        (0xf0u8..0xf2).prop_map(|opcode| vec![0x0f, 0x38, opcode]),
    ];
    let guided = (prop::collection::vec(prefix, 0..4), opcode, any::<[u8; 12]>())
        .prop_map(|(prefixes, opcode, rest)| [&prefixes[..], &opcode, &rest].concat());
    prop_oneof![guided, prop::collection::vec(any::<u8>(), 0..20)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// Whatever the bytes and the state: no panic, bounded work, accesses within the address space
    /// (the machine checks that), and an error leaves everything as it was.
    #[test]
    fn any_bytes_are_answered(
        mode in modes(), stack_mode in modes(), bytes in code(), gprs in prop::array::uniform16(address()),
        bases in prop::array::uniform6(address()), rip in address(), rflags: u64, failing in prop::option::of(0usize..3),
    ) {
        let mut machine = Machine::new(mode);
        machine.stack_mode = stack_mode;
        for (segment, base) in machine.segments.iter_mut().zip(bases) {
            segment.base = base;
        }
        machine.failing = failing;
        machine.state.gprs = gprs;
        machine.state.rip = if mode == Mode::Bits64 { rip } else { rip & 0xffff_ffff };
        machine.state.rflags = rflags;
        machine.inputs = (0..256).collect();
        let before = machine.state.clone();
        let verdict = emulate(&mut machine, &bytes);
        prop_assert!(machine.accesses.len() <= 520);
        match verdict {
            Ok(Outcome::Done) => prop_assert_eq!(machine.state.rflags & common::RF, 0),
            Ok(Outcome::Transferred) => (),
            Ok(Outcome::Continue) => prop_assert_eq!(machine.state.rip, before.rip),
            Err(error) => {
                prop_assert_eq!(machine.state.rip, before.rip);
                prop_assert_eq!(machine.state.rflags, before.rflags);
                // More than one memory write: a repeated string instruction with iterations
                // finished.
                if machine.state != before {
                    prop_assert!(matches!(error, Error::Fault(_) | Error::Exception(_)));
                    prop_assert!(bytes.iter().any(|byte| matches!(byte, 0xf2 | 0xf3)));
                }
            }
        }
    }
}
