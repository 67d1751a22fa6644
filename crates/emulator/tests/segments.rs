//! Limits, types and null selectors, in every mode and through every segment.

mod common;

use std::ops::RangeInclusive;

use common::{Access, Kind, Machine, START, VM, Verdict};
use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome, Rights, Segment};

/// A segment, and the accesses that it takes.
struct Case {
    name: &'static str,
    base: u64,
    limit: u32,
    rights: u32,
    reads: bool,
    writes: bool,
    /// The offsets inside.
    inside: Option<RangeInclusive<u32>>,
}

const fn case(name: &'static str, rights: u32, limit: u32) -> Case {
    Case {
        name,
        base: 0x10_0000,
        limit,
        rights,
        reads: true,
        writes: true,
        inside: Some(0..=limit),
    }
}

const CASES: &[Case] = &[
    case("read and write", 0xc093, 0xfff),
    case("read and write, 16-bit", 0x93, 0xfff),
    case("one byte", 0x93, 0),
    case("three bytes", 0x93, 2),
    case("virtual-8086", 0xf3, 0xffff),
    case("to the end of 4 GiB", 0xc093, u32::MAX),
    Case { writes: false, ..case("read-only", 0xc091, 0xfff) },
    Case { inside: Some(0x1000..=u32::MAX), ..case("expand-down", 0xc097, 0xfff) },
    Case { inside: Some(0x1000..=0xffff), ..case("expand-down, 16-bit", 0x97, 0xfff) },
    Case { inside: Some(1..=0xffff), ..case("expand-down from 0", 0x97, 0) },
    Case {
        inside: Some(u32::MAX..=u32::MAX),
        ..case("expand-down, one byte", 0xc097, u32::MAX - 1)
    },
    Case { inside: None, ..case("expand-down, empty", 0xc097, u32::MAX) },
    Case { inside: None, ..case("expand-down, 16-bit, empty", 0x97, 0xffff) },
    Case {
        writes: false,
        inside: Some(0x1000..=u32::MAX),
        ..case("expand-down, read-only", 0xc095, 0xfff)
    },
    Case { writes: false, ..case("code that can be read", 0xc09b, 0xfff) },
    Case { writes: false, ..case("conforming code that can be read", 0xc09f, 0xfff) },
    Case { reads: false, writes: false, ..case("code", 0xc099, 0xfff) },
    Case { reads: false, writes: false, ..case("conforming code", 0xc09d, 0xfff) },
    Case { reads: false, writes: false, ..case("null", Rights::UNUSABLE.0, 0) },
    Case {
        reads: false,
        writes: false,
        ..case("null, with what was loaded before", 0x1_c093, u32::MAX)
    },
];

/// Mode, and RFLAGS.VM.
const MODES: [(Mode, u64); 3] = [(Mode::Bits32, 0), (Mode::Bits16, 0), (Mode::Bits16, VM)];

fn exception(segment: Segment) -> Exception {
    if segment == Segment::Ss { Exception::STACK_FAULT } else { Exception::GENERAL_PROTECTION }
}

fn machine(case: &Case, mode: Mode, vm: u64, segment: Segment) -> Machine {
    let mut machine = Machine::new(mode).flags(vm).base(segment, case.base);
    machine.cpl = if vm != 0 { 3 } else { 0 };
    machine.segment(segment, case.limit, case.rights)
}

/// Offsets around every end.
fn offsets(case: &Case) -> impl Iterator<Item = u32> {
    [0, case.limit, 0xffff, u32::MAX]
        .into_iter()
        .flat_map(|end| (-5..=5).map(move |d| end.wrapping_add_signed(d)))
}

fn inside(case: &Case, offset: u32, length: u32) -> bool {
    (0..length).all(|byte| {
        let at = offset.checked_add(byte);
        at.is_some_and(|at| case.inside.as_ref().is_some_and(|inside| inside.contains(&at)))
    })
}

/// What the access must come to, and that a refused one changes nothing.
fn judge(
    mut machine: Machine,
    segment: Segment,
    allowed: bool,
    program: impl FnOnce(&mut Machine) -> Verdict,
    what: &str,
) {
    let before = machine.state.clone();
    let verdict = program(&mut machine);
    if allowed {
        assert_eq!(verdict, Ok(Outcome::Done), "{what}");
        assert!(!machine.accesses.is_empty());
    } else {
        assert_eq!(verdict, Err(Error::Exception(exception(segment))), "{what}");
        assert_eq!(machine.state, before, "{what}");
        assert!(machine.accesses.is_empty(), "{what}");
    }
}

#[test]
fn every_operand_is_checked_by_limit_and_type() {
    let place = |segment, pointer: AsmMemoryOperand| match segment {
        Segment::Es => pointer.es(),
        Segment::Cs => pointer.cs(),
        Segment::Ss => pointer.ss(),
        Segment::Ds => pointer.ds(),
        Segment::Fs => pointer.fs(),
        Segment::Gs => pointer.gs(),
    };
    for (case, (mode, vm), segment) in all() {
        for offset in offsets(case) {
            let new = || machine(case, mode, vm, segment).with(Gpr::Rbx, offset.into());
            let what = format!("{} by way of {segment:?}, {mode:?}, offset {offset:#x}", case.name);
            let check =
                |length,
                 right: bool,
                 program: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
                    let allowed = right && inside(case, offset, length);
                    judge(new(), segment, allowed, |m| m.step(program), &what);
                };
            check(1, case.reads, &|p| p.mov(al, place(segment, byte_ptr(ebx))));
            check(2, case.reads, &|p| p.cmp(ax, place(segment, word_ptr(ebx))));
            check(4, case.reads, &|p| p.mov(eax, place(segment, dword_ptr(ebx))));
            check(1, case.writes, &|p| p.mov(place(segment, byte_ptr(ebx)), al));
            check(2, case.writes, &|p| p.add(place(segment, word_ptr(ebx)), ax));
            check(4, case.writes, &|p| p.mov(place(segment, dword_ptr(ebx)), eax));
            check(8, case.writes, &|p| p.cmpxchg8b(place(segment, qword_ptr(ebx))));
        }
    }
}

fn all() -> impl Iterator<Item = (&'static Case, (Mode, u64), Segment)> {
    CASES.iter().flat_map(|case| {
        MODES.into_iter().flat_map(move |mode| {
            Segment::ALL.into_iter().map(move |segment| (case, mode, segment))
        })
    })
}

/// Pushes and pops through a segment, with 16- and 32-bit stack pointers.
#[test]
fn the_stack_is_checked_by_limit_and_type() {
    for case in CASES {
        for (mode, vm) in MODES {
            for stack_mode in [Mode::Bits16, Mode::Bits32] {
                for offset in offsets(case) {
                    let mask = if stack_mode == Mode::Bits16 { 0xffff } else { u32::MAX };
                    let new = |pointer: u32| {
                        let mut m = machine(case, mode, vm, Segment::Ss)
                            .with(Gpr::Rsp, (pointer & mask).into());
                        m.stack_mode = stack_mode;
                        m
                    };
                    let offset = offset & mask;
                    let what = format!(
                        "{}, {mode:?}, stack {stack_mode:?}, offset {offset:#x}",
                        case.name
                    );
                    let check =
                        |pointer, allowed, program: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
                            judge(new(pointer), Segment::Ss, allowed, |m| m.step(program), &what);
                        };
                    let (writes, reads) = (case.writes, case.reads);
                    check(offset.wrapping_add(4), writes && inside(case, offset, 4), &|p| {
                        p.push(eax)
                    });
                    check(offset.wrapping_add(2), writes && inside(case, offset, 2), &|p| {
                        p.push(ax)
                    });
                    check(offset, reads && inside(case, offset, 4), &|p| p.pop(ecx));
                    check(offset, reads && inside(case, offset, 2), &|p| p.pop(cx));
                    let near = if mode == Mode::Bits32 { 4 } else { 2 };
                    let target = 0x600;
                    let allowed = writes && inside(case, offset, near);
                    check(offset.wrapping_add(near), allowed, &|p| p.call(target));
                }
            }
        }
    }
}

/// 64-bit mode looks at no limit and no type, but for canonical addresses.
#[test]
fn nothing_but_the_address_counts_in_64_bit_mode() {
    for case in CASES {
        for segment in Segment::ALL {
            let mut m = machine(case, Mode::Bits64, 0, segment)
                .with(Gpr::Rbx, 0x7000)
                .with(Gpr::Rsp, 0x9000);
            m.run(|p| p.mov(qword_ptr(rbx).fs(), rax));
            m.run(|p| p.mov(rax, qword_ptr(rbx).ss()));
            m.run(|p| p.push(rax));
            m.run(|p| p.add(qword_ptr(rbx).gs(), rax));
        }
    }
    // The base counts, too.
    for segment in [Segment::Fs, Segment::Gs] {
        let mut m =
            Machine::new(Mode::Bits64).with(Gpr::Rbx, 0x7000).base(segment, 0x7fff_ffff_8ff9);
        let verdict = match segment {
            Segment::Fs => m.step(|p| p.mov(qword_ptr(rbx).fs(), rax)),
            _ => m.step(|p| p.mov(qword_ptr(rbx).gs(), rax)),
        };
        assert_eq!(verdict, Err(Error::Exception(Exception::GENERAL_PROTECTION)));
        let mut m = m.base(segment, 0x7fff_ffff_8ff8);
        match segment {
            Segment::Fs => m.run(|p| p.mov(qword_ptr(rbx).fs(), rax)),
            _ => m.run(|p| p.mov(qword_ptr(rbx).gs(), rax)),
        }
    }
}

#[test]
fn branches_stay_in_the_code_segment() {
    for mode in [Mode::Bits32, Mode::Bits16] {
        for (target, inside) in [(0xfff, true), (0x1000, false)] {
            let gp = Error::Exception(Exception::GENERAL_PROTECTION);
            let new = || {
                let m = Machine::new(mode).with(Gpr::Rsp, 0x9000).with(Gpr::Rbx, 0x7000);
                m.segment(Segment::Cs, 0xfff, 0xc09b)
                    .poke(0x7000, &low4(target))
                    .poke(0x9000, &low4(target))
            };
            type Program = fn(&mut CodeAssembler, u64) -> Result<(), IcedError>;
            let programs: [Program; 4] = [
                |p, target| p.call(target),
                |p, _| p.call(if p.bitness() == 32 { dword_ptr(ebx) } else { word_ptr(ebx) }),
                |p, _| p.jmp(if p.bitness() == 32 { dword_ptr(ebx) } else { word_ptr(ebx) }),
                |p, _| p.ret(),
            ];
            for (number, program) in programs.iter().enumerate() {
                let mut m = new();
                let before = m.state.clone();
                let verdict = m.step(|p| program(p, target));
                if inside {
                    assert_eq!(
                        (verdict, m.state.rip),
                        (Ok(Outcome::Done), target),
                        "program {number}"
                    );
                } else {
                    assert_eq!(verdict, Err(gp), "program {number}");
                    assert_eq!(m.state, before, "program {number}");
                    assert!(m.accesses.iter().all(|access| access.kind == Kind::Read));
                }
            }
        }
    }
}

fn low4(value: u64) -> [u8; 4] {
    (value as u32).to_le_bytes()
}

#[test]
fn a_target_of_16_bits_cuts_ip() {
    // CALL and JMP with an operand-size prefix in 32-bit code, RET of 16 bits.
    let new = || {
        Machine::new(Mode::Bits32)
            .with(Gpr::Rsp, 0x9000)
            .with(Gpr::Rbx, 0x7000)
            .poke(0x7000, &[0x34, 0x12, 9, 9])
    };
    let mut m = new();
    assert_eq!(m.step(|p| p.jmp(word_ptr(ebx))), Ok(Outcome::Done));
    assert_eq!(m.state.rip, 0x1234);
    let mut m = new();
    assert_eq!(m.step(|p| p.call(word_ptr(ebx))), Ok(Outcome::Done));
    assert_eq!(
        (m.state.rip, m.get(Gpr::Rsp), m.peek(0x8ffe, 2)),
        (0x1234, 0x8ffe, (START + 3) & 0xffff)
    );
    let mut m = new().with(Gpr::Rsp, 0x7000);
    assert_eq!(m.step(|p| p.add_instruction(Instruction::with(Code::Retnw))), Ok(Outcome::Done));
    assert_eq!((m.state.rip, m.get(Gpr::Rsp)), (0x1234, 0x7002));
}

#[test]
fn cache_control_is_checked_as_a_read_and_reads_nothing() {
    let check = Access { kind: Kind::CheckRead, gva: 0x10_0fff, length: 1 };
    for (offset, rights, expected) in [
        (0xfff, 0xc093, Ok(Outcome::Done)),
        (0xfff, 0xc099, Ok(Outcome::Done)),
        (0x1000, 0xc093, Err(Error::Exception(Exception::GENERAL_PROTECTION))),
        (0xfff, Rights::UNUSABLE.0, Err(Error::Exception(Exception::GENERAL_PROTECTION))),
    ] {
        let m = Machine::new(Mode::Bits32).with(Gpr::Rbx, offset).base(Segment::Ds, 0x10_0000);
        let mut m = m.segment(Segment::Ds, 0xfff, rights);
        assert_eq!(m.step(|p| p.clflush(byte_ptr(ebx))), expected);
        assert_eq!(m.accesses, if expected.is_ok() { vec![check] } else { vec![] });
    }
    let mut m = Machine::new(Mode::Bits64).with(Gpr::Rbx, 0x8000_0000_0000);
    m.run(|p| p.prefetcht0(byte_ptr(rbx)));
    m.run(|p| p.nop_1(dword_ptr(rbx)));
    assert!(m.accesses.is_empty());
    let gp = Err(Error::Exception(Exception::GENERAL_PROTECTION));
    assert_eq!(m.step(|p| p.clflush(byte_ptr(rbx))), gp);
}
