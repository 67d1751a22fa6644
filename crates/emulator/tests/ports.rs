//! INS and OUTS: each element is computed from the register, checked, and done.

mod common;

use common::{Access, DF, Kind, Machine, RF, START, TF, Verdict};
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome, Rights, Segment};

const PORT: u16 = 0xe9;
const GP: Verdict = Err(Error::Exception(Exception::GENERAL_PROTECTION));

fn machine(mode: Mode) -> Machine {
    let mut machine = Machine::new(mode).with(Gpr::Rdx, 0x5555_0000 | u64::from(PORT));
    machine.inputs = (0xa1b2_c300..0xa1b2_c400).collect();
    machine
}

fn registers(machine: &Machine) -> [u64; 3] {
    [Gpr::Rcx, Gpr::Rsi, Gpr::Rdi].map(|gpr| machine.get(gpr))
}

fn values(machine: &Machine) -> Vec<u32> {
    machine.ports.iter().map(|(_, _, value)| *value).collect()
}

#[test]
fn once() {
    let mut m = machine(Mode::Bits64).with(Gpr::Rsi, 0x7000).with(Gpr::Rdi, 0x8000);
    m.run(|p| p.outsb());
    m.run(|p| p.outsw());
    m.run(|p| p.outsd());
    let read = [(0x7000, 1), (0x7001, 2), (0x7003, 4)].map(|(gva, size)| m.peek(gva, size) as u32);
    assert_eq!(m.ports, [(PORT, 1, read[0]), (PORT, 2, read[1]), (PORT, 4, read[2])]);
    assert_eq!(registers(&m)[1..], [0x7007, 0x8000]);
    m.run(|p| p.insb());
    m.run(|p| p.insw());
    m.run(|p| p.insd());
    assert_eq!(
        [(0x8000, 1), (0x8001, 2), (0x8003, 4)].map(|(gva, size)| m.peek(gva, size)),
        [0, 0xc301, 0xa1b2_c302]
    );
    assert_eq!(registers(&m)[1..], [0x7007, 0x8007]);
}

#[test]
fn repeated_up_and_down() {
    let mut m = machine(Mode::Bits32).with(Gpr::Rdi, 0x8ffc).with(Gpr::Rcx, 5).flags(DF);
    m.run(|p| p.rep().insd());
    assert_eq!(registers(&m)[0], 0);
    assert_eq!(registers(&m)[2], 0x8ffc - 20);
    assert_eq!(
        [0, 1, 2, 3, 4].map(|n| m.peek(0x8ffc - 4 * n, 4)),
        [0, 1, 2, 3, 4].map(|n| 0xa1b2_c300 + n)
    );
    let mut m = machine(Mode::Bits32).with(Gpr::Rsi, 0x7000).with(Gpr::Rcx, 0);
    m.run(|p| p.rep().outsb());
    assert!(m.ports.is_empty() && m.accesses.is_empty());
}

#[test]
fn work_is_bounded_and_goes_on() {
    let mut m = machine(Mode::Bits64).with(Gpr::Rsi, 0x7000).with(Gpr::Rcx, 600);
    let mut calls = 0;
    while m.step(|p| p.rep().outsb()) == Ok(Outcome::Continue) {
        calls += 1;
        assert_eq!((m.state.rip, m.state.rflags & RF), (START, RF));
    }
    assert_eq!((calls, registers(&m)[0], m.ports.len()), (2, 0, 600));
    let mut m = machine(Mode::Bits64).with(Gpr::Rsi, 0x7000).with(Gpr::Rcx, 2).flags(TF);
    assert_eq!(m.step(|p| p.rep().outsb()), Ok(Outcome::Continue));
    assert_eq!(m.ports.len(), 1);
}

/// The guest program `outslimit`.
#[test]
fn the_limit_stops_the_third_byte() {
    let m = machine(Mode::Bits32).with(Gpr::Rsi, 0xffe).with(Gpr::Rcx, 4);
    let mut m = m.segment(Segment::Ds, 0xfff, 0x4093).poke(0xffe, b"AAAA");
    assert_eq!(m.step(|p| p.rep().outsb()), GP);
    assert_eq!((values(&m), registers(&m)[0], registers(&m)[1]), (vec![0x41; 2], 2, 0x1000));
    assert_eq!(m.state.rip, START);
}

#[test]
fn a_port_is_not_read_where_its_value_cannot_go() {
    let new = || machine(Mode::Bits32).with(Gpr::Rdi, 0x2000);
    let refused: [fn(Machine) -> Machine; 3] = [
        |m| m.segment(Segment::Es, u32::MAX, 0xc091),
        |m| m.segment(Segment::Es, 0, Rights::UNUSABLE.0),
        |m| m.segment(Segment::Es, 0x2000, 0xc093),
    ];
    for refused in refused {
        let mut m = refused(new());
        let before = m.state.clone();
        assert_eq!((m.step(|p| p.insw()), &m.state, m.ports.len()), (GP, &before, 0));
    }
    let mut m = new();
    m.read_only.insert(2);
    let fault = Access { kind: Kind::CheckWrite, gva: 0x2000, length: 2 };
    assert_eq!((m.step(|p| p.insw()), m.ports.len()), (Err(Error::Fault(fault)), 0));
    let mut m = new().with(Gpr::Rdi, 0x2001).aligned();
    assert_eq!(m.step(|p| p.insw()), Err(Error::Exception(Exception::ALIGNMENT_CHECK)));
    assert!(m.ports.is_empty());
    // In a later iteration: what is done stays done.
    let mut m = new().with(Gpr::Rdi, 0x2ffc).with(Gpr::Rcx, 4);
    m.absent.insert(3);
    assert!(matches!(m.step(|p| p.rep().insw()), Err(Error::Fault(Access { gva: 0x3000, .. }))));
    assert_eq!((m.ports.len(), registers(&m)[0], registers(&m)[2]), (2, 2, 0x3000));
}

#[test]
fn memory_comes_before_the_port() {
    let mut m = machine(Mode::Bits64).with(Gpr::Rsi, 0x7000);
    m.absent.insert(7);
    assert!(matches!(m.step(|p| p.outsb()), Err(Error::Fault(_))));
    assert!(m.ports.is_empty());
    let mut m = machine(Mode::Bits64).with(Gpr::Rsi, 0x7fff_ffff_ffff).with(Gpr::Rcx, 3);
    assert_eq!(m.step(|p| p.rep().outsb()), GP);
    assert_eq!((m.ports.len(), registers(&m)[0], registers(&m)[1]), (1, 2, 0x8000_0000_0000));
    let mut m = machine(Mode::Bits64).with(Gpr::Rsi, 0x7fff_ffff_ffff);
    assert_eq!((m.step(|p| p.outsw()), m.ports.len()), (GP, 0));
}

/// The guest program `int16`.
#[test]
fn sixteen_bit_addresses_wrap_within_64_kib() {
    let m = machine(Mode::Bits32)
        .with(Gpr::Rsi, 0x1234_fffe)
        .with(Gpr::Rcx, 0x9_0004)
        .base(Segment::Ds, 0x1_0000);
    let mut m =
        m.segment(Segment::Ds, 0x3_ffff, 0x4093).poke(0x1_fffe, b"AABB").poke(0x1_0000, b"CCCC");
    let code = [&[0x67], &common::assemble(Mode::Bits32, START, |p| p.rep().outsb())[..]].concat();
    assert_eq!(umbra_emulator::emulate(&mut m, &code), Ok(Outcome::Done));
    assert_eq!(values(&m), b"AACC".map(u32::from));
    assert_eq!(registers(&m)[..2], [0x9_0000, 0x1234_0002]);
    // An element does not wrap.
    let m = machine(Mode::Bits16).with(Gpr::Rsi, 0xffff).segment(Segment::Ds, 0xffff, 0x93);
    for (limit, expected) in [(0xffff, GP), (0x1_0000, Ok(Outcome::Done))] {
        let mut m = m.clone().segment(Segment::Ds, limit, 0x93);
        assert_eq!(m.step(|p| p.outsw()), expected);
    }
}

#[test]
fn thirty_two_bit_addresses_wrap_at_4_gib() {
    let m = machine(Mode::Bits64).with(Gpr::Rdi, 0x77_ffff_fffc).with(Gpr::Rcx, 0x88_0000_0002);
    let code = [&[0x67], &common::assemble(Mode::Bits64, START, |p| p.rep().insd())[..]].concat();
    let mut m = m;
    assert_eq!(umbra_emulator::emulate(&mut m, &code), Ok(Outcome::Done));
    assert_eq!((m.peek(0xffff_fffc, 4), m.peek(0, 4)), (0xa1b2_c300, 0xa1b2_c301));
    assert_eq!((registers(&m)[0], registers(&m)[2]), (0, 4));
}

#[test]
fn thirty_two_bit_pointers_are_extended_after_no_iteration_too() {
    const HIGH: u64 = 0x77_8888_8888;
    for (outs, expected) in [(true, [0x8888_8888, HIGH]), (false, [HIGH, 0x8888_8888])] {
        let start = machine(Mode::Bits64).with(Gpr::Rsi, HIGH).with(Gpr::Rdi, HIGH);
        let mut m = start.with(Gpr::Rcx, 1 << 32);
        let string = common::assemble(Mode::Bits64, START, |p| match outs {
            true => p.rep().outsb(),
            false => p.rep().insb(),
        });
        let done = umbra_emulator::emulate(&mut m, &[&[0x67], &string[..]].concat());
        assert_eq!(done, Ok(Outcome::Done));
        assert_eq!(registers(&m)[1..], expected);
        assert!(m.ports.is_empty());
    }
}

#[test]
fn outs_takes_a_segment_prefix_and_ins_does_not() {
    let mut m =
        machine(Mode::Bits32).with(Gpr::Rsi, 0x10).with(Gpr::Rdi, 0x20).base(Segment::Fs, 0x5_0000);
    for (prefixed, gva) in [([0x64, 0x6e], 0x5_0010), ([0x64, 0x6c], 0x20)] {
        assert_eq!(umbra_emulator::emulate(&mut m, &prefixed), Ok(Outcome::Done));
        assert_eq!(m.accesses.last().unwrap().gva, gva);
    }
}
