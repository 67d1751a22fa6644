//! Effective addresses, segments, and addresses that cannot be.

mod common;

use common::{Access, Kind, Machine, START};
use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome, Segment};

const VALUE: u64 = 0x0123_4567_89ab_cdef;

fn machine(mode: Mode) -> Machine {
    Machine::new(mode)
}

/// Where the instruction's single access goes.
fn place(
    mut machine: Machine,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> u64 {
    assert_eq!(machine.step(program), Ok(Outcome::Done));
    assert_eq!(machine.accesses.len(), 1);
    machine.accesses[0].gva
}

#[test]
fn base_index_scale_displacement() {
    let m = || machine(Mode::Bits64).with(Gpr::Rbx, 0x1000).with(Gpr::R12, 0x20);
    assert_eq!(place(m(), |p| p.mov(qword_ptr(rbx + r12 * 8 - 4), rax)), 0x10fc);
    assert_eq!(place(m(), |p| p.mov(qword_ptr(r12 * 4 + 0x7000), rax)), 0x7080);
    assert_eq!(place(m(), |p| p.mov(qword_ptr(r12), rax)), 0x20);
    assert_eq!(place(m().with(Gpr::R13, 0x900), |p| p.mov(qword_ptr(r13), rax)), 0x900);
    assert_eq!(place(m(), |p| p.mov(qword_ptr(rbx - 0x1008), rax)), -8i64 as u64);
}

#[test]
fn rip_relative() {
    let target = START - 0x1234;
    let operand = MemoryOperand::with_base_displ(Register::RIP, target as i64);
    let store = Instruction::with2(Code::Mov_rm32_r32, operand, Register::EAX);
    assert_eq!(place(machine(Mode::Bits64), |p| p.add_instruction(store?)), target);
    // The end of the instruction counts, behind its immediate.
    let store = Instruction::with2(Code::Mov_rm32_imm32, operand, 0x7654_3210);
    assert_eq!(place(machine(Mode::Bits64), |p| p.add_instruction(store?)), target);
    let operand = MemoryOperand::with_base_displ(Register::EIP, target as i64);
    let store = Instruction::with2(Code::Mov_rm32_r32, operand, Register::EAX);
    assert_eq!(place(machine(Mode::Bits64), |p| p.add_instruction(store?)), target);
}

#[test]
fn addresses_wrap_at_the_address_width() {
    let m = || machine(Mode::Bits64).with(Gpr::Rbx, 0xffff_ffff_ffff_fff0).with(Gpr::Rcx, 0x30);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(rbx + rcx), al)), 0x20);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(ebx + ecx), al)), 0x20, "32 bits, zero-extended");
    assert_eq!(place(m(), |p| p.mov(byte_ptr(ebx), al)), 0xffff_fff0);
    let m = || machine(Mode::Bits32).with(Gpr::Rbx, 0xffff_fff0).with(Gpr::Rcx, 0x30);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(ebx + ecx), al)), 0x20);
    let m = || machine(Mode::Bits32).with(Gpr::Rbx, 0x0123_fff0).with(Gpr::Rsi, 0x4567_0030);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(bx + si), al)), 0x20, "16 bits");
    assert_eq!(place(m(), |p| p.mov(byte_ptr(bx - 0x10), al)), 0xffe0);
    let m = || machine(Mode::Bits16).with(Gpr::Rbp, 0x10).with(Gpr::Rdi, 0x20);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(bp + di + 3), al)), 0x33);
}

#[test]
fn segments_add_their_base() {
    let based = |mode| {
        let mut m = machine(mode).with(Gpr::Rbx, 0x10).with(Gpr::Rbp, 0x20).with(Gpr::Rsp, 0x30);
        for (number, segment) in m.segments.iter_mut().enumerate() {
            segment.base = (number as u64 + 1) << 16;
        }
        m
    };
    let m = || based(Mode::Bits32);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(ebx), al)), 0x4_0010);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(ebp), al)), 0x3_0020);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(esp), al)), 0x3_0030);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(ebx).es(), al)), 0x1_0010);
    assert_eq!(place(m(), |p| p.mov(al, byte_ptr(ebp).cs())), 0x2_0020);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(0x77).gs(), al)), 0x6_0077);
    let m = || based(Mode::Bits64);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(rbx).fs(), al)), 0x5_0010);
    assert_eq!(place(m(), |p| p.mov(byte_ptr(rbp).gs(), al)), 0x6_0020);
    assert_eq!(
        place(m(), |p| p.mov(byte_ptr(ebx - 0x11).gs(), al)),
        0x1_0005_ffff,
        "the base is not truncated"
    );
    assert_eq!(place(m(), |p| p.mov(byte_ptr(rbx).es(), al)), 0x10, "ignored in 64-bit mode");
    assert_eq!(place(m(), |p| p.mov(byte_ptr(rbp).cs(), al)), 0x20);

    let wrapping = based(Mode::Bits32).with(Gpr::Rbx, 0x20).base(Segment::Ds, 0xffff_fff0);
    assert_eq!(
        place(wrapping, |p| p.mov(byte_ptr(ebx), al)),
        0x10,
        "linear addresses of 32 bits wrap"
    );
}

#[test]
fn bad_addresses_are_gp_or_ss() {
    let end = 0x8000_0000_0000u64;
    let check =
        |machine: &Machine,
         expected,
         program: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
            let mut machine = machine.clone();
            let before = machine.state.clone();
            assert_eq!(machine.step(program), Err(expected));
            assert_eq!(machine.state, before);
            assert!(machine.accesses.is_empty());
        };
    let gp = Error::Exception(Exception::GENERAL_PROTECTION);
    let m = machine(Mode::Bits64).with(Gpr::Rbx, end).with(Gpr::Rbp, end).with(Gpr::Rsp, end);
    check(&m, gp, &|p| p.mov(byte_ptr(rbx), al));
    check(&m, gp, &|p| p.mov(eax, dword_ptr(rbx - 2)));
    check(&m, gp, &|p| p.xchg(qword_ptr(rbx - 7), rax));
    check(&m, Error::Exception(Exception::STACK_FAULT), &|p| p.mov(byte_ptr(rbp), al));
    check(&m, Error::Exception(Exception::STACK_FAULT), &|p| p.mov(byte_ptr(rbp).ds(), al));
    check(&m, gp, &|p| p.mov(byte_ptr(rbp).fs(), al));
    check(&m, gp, &|p| p.mov(byte_ptr(rbx).ss(), al));
    check(&m, Error::Exception(Exception::STACK_FAULT), &|p| p.pop(rax));
    check(&m.clone().with(Gpr::Rsp, end + 8), Error::Exception(Exception::STACK_FAULT), &|p| {
        p.push(rax)
    });
    check(&m.clone().with(Gpr::Rdi, end), gp, &|p| p.stosb());
    check(&m.clone().with(Gpr::Rbx, 0xffff_7fff_ffff_ffff), gp, &|p| p.mov(word_ptr(rbx), ax));
}

#[test]
fn accesses_reach_to_the_very_ends() {
    let m = || machine(Mode::Bits64).with(Gpr::Rbx, 0x7fff_ffff_fff8);
    assert_eq!(place(m(), |p| p.mov(qword_ptr(rbx), rax)), 0x7fff_ffff_fff8);
    let mut top = m().with(Gpr::Rbx, u64::MAX);
    assert_eq!(top.step(|p| p.mov(al, byte_ptr(rbx))), Ok(Outcome::Done));
    assert_eq!(top.accesses, [Access { kind: Kind::Read, gva: u64::MAX, length: 1 }]);
    let m = machine(Mode::Bits32).with(Gpr::Rbx, 0xffff_fffc);
    assert_eq!(place(m, |p| p.mov(dword_ptr(ebx), eax)), 0xffff_fffc);
}

/// The manual allows it (SDM volume 3, "Limit Checking"), and Bochs does it.
#[test]
fn accesses_wrap_at_the_end_of_flat_segments() {
    for (mode, top) in [(Mode::Bits64, u64::MAX), (Mode::Bits32, u32::MAX.into())] {
        let mut m = machine(mode).with(Gpr::Rbx, top - 1).with(Gpr::Rax, 0x1234_5678);
        match mode {
            Mode::Bits64 => m.run(|p| p.mov(dword_ptr(rbx), eax)),
            _ => m.run(|p| p.mov(dword_ptr(ebx), eax)),
        }
        assert_eq!(m.accesses, [Access { kind: Kind::Write, gva: top - 1, length: 4 }]);
        assert_eq!((m.peek(top - 1, 1), m.peek(top, 1), m.peek(0, 2)), (0x78, 0x56, 0x1234));
    }
}

#[test]
fn rip_goes_on_within_its_mode() {
    let mut m = machine(Mode::Bits32).with(Gpr::Rbx, 0x1000);
    m.state.rip = 0xffff_fffe;
    assert_eq!(m.step(|p| p.mov(dword_ptr(ebx), eax)), Ok(Outcome::Done));
    assert_eq!(m.state.rip, 0);
    // Only branches cut IP to 16 bits.
    let mut m = machine(Mode::Bits16).with(Gpr::Rbx, 0x1000);
    m.state.rip = 0xfffe;
    m.run(|p| p.mov(word_ptr(bx), ax));
    assert_eq!(m.state.rip, 0x1_0000);
    let mut m = machine(Mode::Bits16).with(Gpr::Rbx, 0x1000);
    m.state.rip = 0x12_3456;
    m.run(|p| p.mov(word_ptr(bx), ax));
    assert_eq!(m.state.rip, 0x12_3458);
    let mut m = machine(Mode::Bits64).with(Gpr::Rbx, 0x1000);
    m.state.rip = 0x7fff_ffff_fffd;
    m.run(|p| p.mov(qword_ptr(rbx), rax));
    assert_eq!(m.state.rip, 0x8000_0000_0000, "the next fetch faults, not this instruction");
}

#[test]
fn operand_width_follows_mode_and_prefix() {
    let run = |mode, bytes: &[u8]| {
        let mut m = machine(mode).with(Gpr::Rax, VALUE);
        assert_eq!(umbra_emulator::emulate(&mut m, bytes), Ok(Outcome::Done));
        m.accesses[0].length
    };
    // One and the same opcode, MOV [moffs], rAX, assembled for each mode.
    for (mode, width) in [(Mode::Bits16, 2), (Mode::Bits32, 4), (Mode::Bits64, 4)] {
        let plain = match mode {
            Mode::Bits16 => common::assemble(mode, START, |p| p.mov(word_ptr(0x1000), ax)),
            _ => common::assemble(mode, START, |p| p.mov(dword_ptr(0x1000), eax)),
        };
        let prefixed = [&[0x66], &plain[..]].concat();
        assert_eq!(run(mode, &plain), width);
        assert_eq!(run(mode, &prefixed), 6 - width);
    }
}
