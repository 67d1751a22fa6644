//! PUSHF and POPF: which flags show, and who may change which.

mod common;

use common::{AC, Machine, ONE, RF, TF, VM, Verdict, ZF};
use iced_x86::{Code, Instruction};
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome};

const STACK: u64 = 0x9000;
const IF: u64 = 1 << 9;
const IOPL: u64 = 3 << 12;
const NT: u64 = 1 << 14;
const VIF: u64 = 1 << 19;
const VIP: u64 = 1 << 20;
const ID: u64 = 1 << 21;
const GP: Verdict = Err(Error::Exception(Exception::GENERAL_PROTECTION));

fn run(machine: &mut Machine, code: Code) -> Verdict {
    machine.step(|p| p.add_instruction(Instruction::with(code)))
}

fn machine(mode: Mode, cpl: u8, rflags: u64) -> Machine {
    let mut machine = Machine::new(mode).with(Gpr::Rsp, STACK).flags(rflags);
    machine.cpl = cpl;
    machine
}

/// RFLAGS after a POPF of 32 bits, or in 64-bit mode, of `image`.
fn popped(cpl: u8, rflags: u64, image: u64) -> u64 {
    let [long, narrow] =
        [(Mode::Bits64, Code::Popfq), (Mode::Bits32, Code::Popfd)].map(|(mode, code)| {
            let mut m = machine(mode, cpl, rflags).poke64(STACK, image);
            assert_eq!(run(&mut m, code), Ok(Outcome::Done));
            m.state.rflags
        });
    assert_eq!(long, narrow);
    long
}

#[test]
fn pushf_hides_rf_and_vm() {
    let mut m = machine(Mode::Bits64, 3, ZF | RF | TF | AC | ID);
    assert_eq!(run(&mut m, Code::Pushfq), Ok(Outcome::Done));
    assert_eq!((m.peek64(STACK - 8), m.get(Gpr::Rsp)), (ONE | ZF | TF | AC | ID, STACK - 8));
    let mut m = machine(Mode::Bits16, 3, ZF | VM | RF | IOPL);
    assert_eq!(run(&mut m, Code::Pushfd), Ok(Outcome::Done));
    assert_eq!(m.peek(STACK - 4, 4), ONE | ZF | IOPL);
}

#[test]
fn popf_by_privilege() {
    let all = u64::MAX >> 32;
    let any = ONE | 0x8d5 | 1 << 10 | TF | NT | AC | ID;
    assert_eq!(popped(0, 0, all), any | IF | IOPL);
    assert_eq!(popped(3, 0, all), any);
    assert_eq!(popped(3, IOPL, all), any | IF | IOPL);
    assert_eq!(popped(2, 1 << 12, all), any | 1 << 12, "IOPL is 1");
    assert_eq!(popped(1, 1 << 12, all), any | IF | 1 << 12);
    assert_eq!(popped(0, IF | IOPL | AC | VIF | VIP, 0), ONE | VIF | VIP);
    assert_eq!(popped(3, IF, 0), ONE | IF);
    // 16 bits do not reach AC and ID.
    let mut m = machine(Mode::Bits32, 0, AC | ID).poke64(STACK, 0);
    assert_eq!(run(&mut m, Code::Popfw), Ok(Outcome::Done));
    assert_eq!((m.state.rflags, m.get(Gpr::Rsp)), (ONE | AC | ID, STACK + 2));
}

#[test]
fn virtual_8086_mode_needs_the_privilege() {
    for code in [Code::Pushfw, Code::Pushfd, Code::Popfw, Code::Popfd] {
        for iopl in 0..4 {
            let mut m = machine(Mode::Bits16, 3, VM | iopl << 12).poke64(STACK, 0);
            let before = m.state.clone();
            let verdict = run(&mut m, code);
            if iopl == 3 {
                assert_eq!(verdict, Ok(Outcome::Done));
            } else {
                assert_eq!((verdict, &m.state), (GP, &before), "{code:?}");
            }
        }
    }
    let mut m = machine(Mode::Bits16, 3, VM | IOPL).poke64(STACK, IF);
    assert_eq!(run(&mut m, Code::Popfw), Ok(Outcome::Done));
    assert_eq!(m.state.rflags, ONE | VM | IOPL | IF, "IOPL stays");
}

#[test]
fn virtual_8086_extensions_keep_an_interrupt_flag_of_their_own() {
    let new = |rflags, image| {
        let mut m = machine(Mode::Bits16, 3, VM | rflags).poke64(STACK, image);
        m.cr4 = 1;
        m
    };
    for (rflags, image) in [(IF, ONE | IOPL), (VIF, ONE | IOPL | IF)] {
        let mut m = new(rflags, 0);
        assert_eq!(run(&mut m, Code::Pushfw), Ok(Outcome::Done));
        assert_eq!(m.peek(STACK - 2, 2), image);
    }
    assert_eq!(run(&mut new(0, 0), Code::Pushfd), GP);
    assert_eq!(run(&mut new(0, 0), Code::Popfd), GP);
    let mut m = new(IF, IF | ZF);
    assert_eq!(run(&mut m, Code::Popfw), Ok(Outcome::Done));
    assert_eq!(m.state.rflags, ONE | VM | IF | VIF | ZF);
    let mut m = new(IF | VIF | VIP, ZF);
    assert_eq!(run(&mut m, Code::Popfw), Ok(Outcome::Done));
    assert_eq!(m.state.rflags, ONE | VM | IF | VIP | ZF);
    assert_eq!(run(&mut new(VIP, IF), Code::Popfw), GP);
    assert_eq!(run(&mut new(0, TF), Code::Popfw), GP);
}
