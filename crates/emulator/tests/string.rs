//! String instructions, once and repeated.

mod common;

use common::{Access, CF, DF, Kind, Machine, ONE, RF, START, STATUS, TF, ZF, background};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome, Segment};

const FROM: u64 = 0x1_0000;
const TO: u64 = 0x2_0000;

fn machine() -> Machine {
    Machine::new(Mode::Bits64).with(Gpr::Rsi, FROM).with(Gpr::Rdi, TO)
}

/// Calls until the instruction is done, checking between calls that it can be taken up again.
fn run(machine: &mut Machine, program: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> usize {
    let flags = machine.state.rflags;
    for calls in 1.. {
        match machine.step(program) {
            Ok(Outcome::Done) => {
                assert_ne!(machine.state.rip, START);
                assert_eq!(machine.state.rflags & RF, 0);
                return calls;
            }
            Ok(Outcome::Continue) => {
                assert_eq!(machine.state.rip, START);
                assert_eq!(machine.state.rflags, flags | RF);
                assert_ne!(machine.get(Gpr::Rcx), 0);
            }
            other => panic!("{other:?}"),
        }
    }
    unreachable!()
}

fn registers(machine: &Machine) -> [u64; 3] {
    [Gpr::Rcx, Gpr::Rsi, Gpr::Rdi].map(|gpr| machine.get(gpr))
}

#[test]
fn once() {
    let mut m = machine();
    m.run(|p| p.movsq());
    assert_eq!(m.peek64(TO), m.peek64(FROM));
    assert_eq!(registers(&m)[1..], [FROM + 8, TO + 8]);
    m.run(|p| p.lodsw());
    assert_eq!(m.get(Gpr::Rax), m.peek(FROM + 8, 2));
    assert_eq!(registers(&m)[1..], [FROM + 10, TO + 8]);
    m.run(|p| p.stosb());
    assert_eq!(m.peek(TO + 8, 1), m.get(Gpr::Rax) & 0xff);
    assert_eq!(registers(&m)[1..], [FROM + 10, TO + 9]);
    let mut m = machine().poke64(FROM, 5).poke64(TO, 7).with(Gpr::Rax, 7);
    m.run(|p| p.cmpsd());
    assert_eq!(m.state.rflags & (CF | ZF), CF, "source minus destination");
    assert_eq!(registers(&m)[1..], [FROM + 4, TO + 4]);
    let mut m = m.with(Gpr::Rdi, TO);
    m.run(|p| p.scasq());
    assert_eq!(m.state.rflags & (CF | ZF), ZF);
    assert_eq!(registers(&m)[1..], [FROM + 4, TO + 8]);
}

#[test]
fn repeated_stores_across_pages_and_calls() {
    let start = TO + 0xfc8;
    let mut m = machine().with(Gpr::Rdi, start).with(Gpr::Rcx, 600).with(Gpr::Rax, 0x55aa);
    let calls = run(&mut m, |p| p.rep().stosq());
    assert!((2..=600).contains(&calls), "bounded work in each call: {calls}");
    assert!((0..600).all(|n| m.peek64(start + 8 * n) == 0x55aa));
    assert_eq!(m.state.memory.len(), 4800);
    assert_eq!(registers(&m), [0, FROM, start + 4800]);
}

#[test]
fn repeated_moves_up_and_down() {
    let mut m = machine().with(Gpr::Rcx, 300);
    run(&mut m, |p| p.rep().movsb());
    assert!((0..300).all(|n| m.peek(TO + n, 1) == u64::from(background(FROM + n))));
    assert_eq!(registers(&m), [0, FROM + 300, TO + 300]);

    // Overlapping, downwards: a move by one element.
    let mut m = machine().flags(DF).with(Gpr::Rcx, 100).with(Gpr::Rdi, FROM + 4);
    let before: Vec<_> = (0..100).map(|n| m.peek(FROM - 4 * n, 4)).collect();
    run(&mut m, |p| p.rep().movsd());
    assert!((0..100).all(|n| m.peek(FROM + 4 - 4 * n, 4) == before[n as usize]));
    assert_eq!(registers(&m), [0, FROM - 400, FROM + 4 - 400]);
}

#[test]
fn zero_iterations_do_nothing() {
    let mut m = machine().with(Gpr::Rcx, 0).flags(STATUS);
    m.run(|p| p.repe().cmpsb());
    m.run(|p| p.rep().stosq());
    assert!(m.accesses.is_empty());
    assert_eq!(m.state.rflags, ONE | STATUS);
    assert_eq!(registers(&m), [0, FROM, TO]);
}

#[test]
fn comparisons_stop_where_they_should() {
    // Equal for 100 bytes, then not.
    let mut m = machine()
        .with(Gpr::Rcx, 500)
        .poke(FROM, &[7; 500])
        .poke(TO, &[7; 500])
        .poke(TO + 100, &[9]);
    run(&mut m, |p| p.repe().cmpsb());
    assert_eq!(registers(&m), [399, FROM + 101, TO + 101]);
    assert_eq!(m.state.rflags & (CF | ZF), CF);
    // Equal throughout: ends with the count.
    let mut m = machine().with(Gpr::Rcx, 100).poke(FROM, &[7; 500]).poke(TO, &[7; 500]);
    run(&mut m, |p| p.repe().cmpsb());
    assert_eq!(registers(&m), [0, FROM + 100, TO + 100]);
    assert_eq!(m.state.rflags & (CF | ZF), ZF);
    // Looking for a byte: the strlen of old.
    let mut m = machine()
        .with(Gpr::Rcx, u64::MAX)
        .with(Gpr::Rax, 0)
        .poke(TO, &[1; 200])
        .poke(TO + 200, &[0]);
    run(&mut m, |p| p.repne().scasb());
    assert_eq!(registers(&m), [u64::MAX - 201, FROM, TO + 201]);
    assert_eq!(m.state.rflags & ZF, ZF);
}

#[test]
fn a_fault_leaves_the_finished_iterations() {
    // The page behind TO is gone; the flags are those from before the instruction.
    let start = TO + 0x1000 - 20;
    let new = || {
        let mut m = machine().with(Gpr::Rdi, start).with(Gpr::Rcx, 50).flags(STATUS);
        m.absent.insert((TO >> 12) + 1);
        m
    };
    let mut m = new();
    let fault = Access { kind: Kind::Write, gva: TO + 0x1000, length: 4 };
    assert_eq!(m.step(|p| p.rep().movsd()), Err(Error::Fault(fault)));
    assert_eq!(registers(&m), [45, FROM + 20, start + 20]);
    assert_eq!((m.state.rip, m.state.rflags), (START, ONE | STATUS));
    assert!((0..20).all(|n| m.peek(start + n, 1) == u64::from(background(FROM + n))));
    m.absent.clear();
    run(&mut m, |p| p.rep().movsd());
    assert_eq!(registers(&m), [0, FROM + 200, start + 200]);

    // An element that straddles the end is not written in part.
    let mut m = new().with(Gpr::Rdi, start + 2);
    assert!(matches!(m.step(|p| p.rep().movsd()), Err(Error::Fault(Access { length: 4, .. }))));
    assert_eq!(registers(&m), [46, FROM + 16, start + 18]);
    assert_eq!(m.state.memory.len(), 16);

    let mut m = new().poke(FROM, &[3; 400]).poke(start, &[3; 20]);
    assert!(matches!(m.step(|p| p.repe().cmpsb()), Err(Error::Fault(_))));
    assert_eq!(registers(&m), [30, FROM + 20, start + 20]);
    assert_eq!(m.state.rflags, ONE | STATUS);
}

#[test]
fn single_stepping_sees_each_iteration() {
    let mut m = machine().with(Gpr::Rcx, 3).flags(TF);
    assert_eq!(run(&mut m, |p| p.rep().stosb()), 3);
    assert_eq!(registers(&m), [0, FROM, TO + 3]);
}

#[test]
fn a_data_breakpoint_is_seen_behind_its_iteration() {
    let mut m = machine().with(Gpr::Rcx, 5);
    m.breakpoint = Some(TO + 2);
    assert_eq!(m.step(|p| p.rep().stosb()), Ok(Outcome::Continue));
    assert_eq!(registers(&m), [2, FROM, TO + 3]);
    // Met by the last iteration: the instruction is over.
    let mut m = machine().with(Gpr::Rcx, 3);
    m.breakpoint = Some(TO + 2);
    assert_eq!(m.step(|p| p.rep().stosb()), Ok(Outcome::Done));
}

#[test]
fn narrow_addresses() {
    let mut m =
        machine().with(Gpr::Rcx, 0x5_0000_0002).with(Gpr::Rdi, 0x7_ffff_fffc).with(Gpr::Rax, 1);
    let bytes = common::assemble(Mode::Bits64, START, |p| p.rep().stosd());
    let narrow = [&[0x67], &bytes[..]].concat();
    assert_eq!(umbra_emulator::emulate(&mut m, &narrow), Ok(Outcome::Done));
    assert_eq!((m.peek(0xffff_fffc, 4), m.peek(0, 4)), (1, 1));
    assert_eq!(registers(&m), [0, FROM, 4], "ECX and EDI count, and are zero-extended");

    let mut m = Machine::new(Mode::Bits16)
        .with(Gpr::Rcx, 0x1_0003)
        .with(Gpr::Rdi, 0x2_fffe)
        .with(Gpr::Rax, 0x1234);
    m.segments[0].base = 0x4_0000;
    assert_eq!(m.step(|p| p.rep().stosw()), Ok(Outcome::Done));
    assert_eq!(
        registers(&m),
        [0x1_0000, 0x6666_6666_6666_6666, 0x2_0004],
        "CX and DI alone change"
    );
    assert_eq!((m.peek(0x4_fffe, 2), m.peek(0x4_0002, 2)), (0x1234, 0x1234));
}

#[test]
fn the_source_takes_a_segment_prefix_and_the_destination_does_not() {
    let mut m = machine();
    m.segments[Segment::Gs as usize].base = 0x100_0000;
    let plain = common::assemble(Mode::Bits64, START, |p| p.movsb());
    let prefixed = [&[0x65], &plain[..]].concat();
    assert_eq!(umbra_emulator::emulate(&mut m, &prefixed), Ok(Outcome::Done));
    let gvas: Vec<_> = m.accesses.iter().map(|access| access.gva).collect();
    assert_eq!(gvas, [FROM + 0x100_0000, TO]);
}

/// The limit of a segment, the upper bound of one that expands down, and a type.
#[test]
fn every_iteration_is_checked() {
    let new = |limit, rights| {
        let m = Machine::new(Mode::Bits32)
            .with(Gpr::Rdi, 0xff0)
            .with(Gpr::Rcx, 100)
            .with(Gpr::Rsi, FROM);
        m.segment(Segment::Es, limit, rights)
    };
    let gp = Err(Error::Exception(Exception::GENERAL_PROTECTION));
    let mut m = new(0xfff, 0xc093);
    assert_eq!(m.step(|p| p.rep().stosd()), gp);
    assert_eq!((registers(&m), m.state.memory.len()), ([96, FROM, 0x1000], 16));
    let mut m = new(0x1000, 0xc093);
    assert_eq!(m.step(|p| p.rep().movsw()), gp);
    assert_eq!((registers(&m), m.state.memory.len()), ([92, FROM + 16, 0x1000], 16));
    let mut m = new(0xfe7, 0xc097).flags(DF);
    assert_eq!(m.step(|p| p.rep().stosd()), gp);
    assert_eq!((registers(&m), m.state.memory.len()), ([97, FROM, 0xfe4], 12));
    let mut m = new(u32::MAX, 0xc091);
    assert_eq!(m.step(|p| p.rep().stosd()), gp);
    assert_eq!(registers(&m), [100, FROM, 0xff0]);
    assert_eq!(m.step(|p| p.repne().scasw()), Ok(Outcome::Continue), "it can be read");
    // The source is read, but the destination refuses.
    let mut m = new(0xfef, 0xc093);
    assert_eq!((m.step(|p| p.movsb()), registers(&m)), (gp, [100, FROM, 0xff0]));
}
