//! PUSH, POP and CALL.

mod common;

use common::{Access, Kind, Machine, START};
use iced_x86::code_asm::*;
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome};

const STACK: u64 = 0x9000;
const VALUE: u64 = 0x0123_4567_89ab_cdef;

fn machine() -> Machine {
    Machine::new(Mode::Bits64).with(Gpr::Rsp, STACK).with(Gpr::Rdi, 0x7000).with(Gpr::Rcx, VALUE)
}

#[test]
fn push_of_registers_memory_and_immediates() {
    let mut m = machine().poke64(0x7000, 0x55aa);
    m.run(|p| p.push(rcx));
    m.run(|p| p.push(qword_ptr(rdi)));
    m.run(|p| p.push(-3));
    m.run(|p| p.push(rsp));
    assert_eq!(m.peek64(STACK - 8), VALUE);
    assert_eq!(m.peek64(STACK - 16), 0x55aa);
    assert_eq!(m.peek64(STACK - 24), -3i64 as u64);
    assert_eq!(m.peek64(STACK - 32), STACK - 24, "RSP as it was before");
    assert_eq!(m.get(Gpr::Rsp), STACK - 32);
    m.run(|p| p.push(cx));
    assert_eq!(m.get(Gpr::Rsp), STACK - 34);
    assert_eq!(m.peek(STACK - 34, 2), 0xcdef);
}

#[test]
fn pop_to_registers_and_memory() {
    let mut m = machine()
        .poke64(STACK, 1)
        .poke64(STACK + 8, 2)
        .poke64(STACK + 16, 3)
        .poke64(STACK + 24, 0x1_2345);
    m.run(|p| p.pop(rcx));
    assert_eq!((m.get(Gpr::Rcx), m.get(Gpr::Rsp)), (1, STACK + 8));
    m.run(|p| p.pop(qword_ptr(rdi)));
    assert_eq!((m.peek64(0x7000), m.get(Gpr::Rsp)), (2, STACK + 16));
    m.run(|p| p.pop(qword_ptr(rsp + 0x100)));
    assert_eq!(m.peek64(STACK + 24 + 0x100), 3, "addressed with RSP already moved");
    m.run(|p| p.pop(rsp));
    assert_eq!(m.get(Gpr::Rsp), 0x1_2345, "the value popped stays");
}

#[test]
fn the_stack_pointer_is_as_wide_as_the_stack() {
    let mut m = Machine::new(Mode::Bits32).with(Gpr::Rsp, 2).with(Gpr::Rax, 0x1234);
    m.stack_mode = Mode::Bits16;
    m.segments[umbra_emulator::Segment::Ss as usize].base = 0x5_0000;
    m.state.gprs[Gpr::Rsp as usize] = 0x7654_0002;
    m.run(|p| p.push(eax));
    assert_eq!(m.get(Gpr::Rsp), 0x7654_fffe, "SP wraps, the rest stays");
    assert_eq!(m.peek(0x5_fffe, 4), 0x1234);
    m.run(|p| p.pop(ebx));
    assert_eq!((m.get(Gpr::Rsp), m.get(Gpr::Rbx)), (0x7654_0002, 0x1234));
    let mut m = Machine::new(Mode::Bits16).with(Gpr::Rsp, 0x1_0000).with(Gpr::Rax, 0x1234);
    m.stack_mode = Mode::Bits32;
    m.run(|p| p.push(ax));
    assert_eq!((m.get(Gpr::Rsp), m.peek(0xfffe, 2)), (0xfffe, 0x1234));
}

#[test]
fn call_pushes_the_return_address() {
    let mut m = machine();
    assert_eq!(m.step(|p| p.call(START + 0x1000)), Ok(Outcome::Done));
    assert_eq!(m.state.rip, START + 0x1000);
    assert_eq!((m.peek64(STACK - 8), m.get(Gpr::Rsp)), (START + 5, STACK - 8));
    let mut m = machine().poke64(0x7000, 0xffff_8000_0000_1234);
    assert_eq!(m.step(|p| p.call(qword_ptr(rdi))), Ok(Outcome::Done));
    assert_eq!((m.state.rip, m.peek64(STACK - 8)), (0xffff_8000_0000_1234, START + 2));
    let mut m = Machine::new(Mode::Bits32).with(Gpr::Rsp, STACK);
    assert_eq!(m.step(|p| p.call(START - 16)), Ok(Outcome::Done));
    assert_eq!(
        (m.state.rip, m.peek(STACK - 4, 4), m.get(Gpr::Rsp)),
        (START - 16, START + 5, STACK - 4)
    );
}

#[test]
fn call_to_an_address_that_is_not_canonical_changes_nothing() {
    let mut m = machine().poke64(0x7000, 0x8000_0000_0000);
    let before = m.state.clone();
    assert_eq!(
        m.step(|p| p.call(qword_ptr(rdi))),
        Err(Error::Exception(Exception::GENERAL_PROTECTION))
    );
    assert_eq!(m.state, before);
    assert_eq!(m.accesses, [Access { kind: Kind::Read, gva: 0x7000, length: 8 }]);
}
