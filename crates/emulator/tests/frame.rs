//! ENTER, LEAVE, PUSHA, POPA, RET, and pushes of segment registers.

mod common;

use common::{Kind, Machine};
use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction};
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome, Segment};

const STACK: u64 = 0x9000;
const FRAME: u64 = 0x9100;

fn machine(mode: Mode) -> Machine {
    Machine::new(mode).with(Gpr::Rsp, STACK).with(Gpr::Rbp, FRAME)
}

fn pointers(machine: &Machine) -> (u64, u64) {
    (machine.get(Gpr::Rsp), machine.get(Gpr::Rbp))
}

#[test]
fn enter_without_nesting() {
    let mut m = machine(Mode::Bits64);
    m.run(|p| p.enter(0x40, 0));
    assert_eq!((m.peek64(STACK - 8), pointers(&m)), (FRAME, (STACK - 0x48, STACK - 8)));
    m.run(|p| p.leave());
    assert_eq!(pointers(&m), (STACK, FRAME));
}

#[test]
fn enter_copies_the_display() {
    let mut m = machine(Mode::Bits32).poke(FRAME - 4, &[1, 0, 0, 0]).poke(FRAME - 8, &[2, 0, 0, 0]);
    m.run(|p| p.enter(0x10, 3));
    let pushed = [4, 8, 12, 16].map(|below| m.peek(STACK - below, 4));
    assert_eq!(pushed, [FRAME, 1, 2, STACK - 4]);
    assert_eq!(pointers(&m), (STACK - 0x20, STACK - 4));
    // Level 1 has the new frame alone; 33 is 1.
    let mut m = machine(Mode::Bits32);
    m.run(|p| p.enter(0, 33));
    assert_eq!([4, 8].map(|below| m.peek(STACK - below, 4)), [FRAME, STACK - 4]);
    // The display may lie where rBP was just pushed.
    let mut m = machine(Mode::Bits32).with(Gpr::Rbp, STACK);
    m.run(|p| p.enter(0, 2));
    assert_eq!([4, 8, 12].map(|below| m.peek(STACK - below, 4)), [STACK, STACK, STACK - 4]);
}

/// With 32-bit operands the frame pointer is the whole of ESP, of which a 16-bit stack moves the
/// low half.
#[test]
fn enter_on_a_16_bit_stack() {
    let mut m = machine(Mode::Bits16).with(Gpr::Rsp, 0x14_9000);
    let enterd = Instruction::with2(Code::Enterd_imm16_imm8, 0x20, 2).unwrap();
    m.run(|p| p.add_instruction(enterd));
    assert_eq!((m.get(Gpr::Rbp), m.get(Gpr::Rsp)), (0x14_8ffc, 0x14_8fd4));
    assert_eq!(m.peek(0x8ff4, 4), 0x14_8ffc);
}

#[test]
fn enter_fails_whole() {
    // The last slot, a part of the display, and the final top of the stack.
    for (page, size, level) in [(8, 0, 2), (9, 0, 2), (7, 0x1800, 0)] {
        let mut m = machine(Mode::Bits64).with(Gpr::Rsp, if page == 8 { STACK + 8 } else { STACK });
        m = m.with(Gpr::Rbp, if page == 9 { STACK + 8 } else { 0xa010 });
        m.absent.insert(page);
        let before = m.state.clone();
        assert!(matches!(m.step(|p| p.enter(size, level)), Err(Error::Fault(_))), "page {page}");
        assert_eq!(m.state, before);
    }
    let mut m = machine(Mode::Bits32).segment(Segment::Ss, 0x8f00, 0xc097);
    let stack_fault = Err(Error::Exception(Exception::STACK_FAULT));
    assert_eq!(m.step(|p| p.enter(0x100, 0)), stack_fault);
    assert_eq!(m.step(|p| p.enter(0xfb, 0)), Ok(Outcome::Done));
}

#[test]
fn the_stack_of_16_bits_wraps() {
    let mut m = machine(Mode::Bits16).with(Gpr::Rsp, 0x1234_0002).with(Gpr::Rbp, 0x5678_0010);
    m.run(|p| p.add_instruction(Instruction::with2(Code::Enterw_imm16_imm8, 4, 0)?));
    assert_eq!(pointers(&m), (0x1234_fffc, 0x5678_0000));
    assert_eq!(m.peek(0, 2), 0x10);
    m.run(|p| p.add_instruction(Instruction::with(Code::Leavew)));
    assert_eq!(pointers(&m), (0x1234_0002, 0x5678_0010));
}

#[test]
fn all_registers_there_and_back() {
    for (push, pop, width) in [(Code::Pushad, Code::Popad, 4), (Code::Pushaw, Code::Popaw, 2)] {
        let mut m = machine(Mode::Bits32);
        let before = m.state.gprs;
        m.run(|p| p.add_instruction(Instruction::with(push)));
        assert_eq!(m.get(Gpr::Rsp), STACK - 8 * width);
        for (number, gpr) in Gpr::ALL[..8].iter().enumerate() {
            let at = STACK - (number as u64 + 1) * width;
            let value = common::low(width as usize, before[*gpr as usize]);
            assert_eq!(m.peek(at, width as usize), value, "{gpr:?}");
        }
        for gpr in Gpr::ALL.into_iter().filter(|gpr| *gpr != Gpr::Rsp) {
            m = m.with(gpr, 0);
        }
        m.run(|p| p.add_instruction(Instruction::with(pop)));
        for gpr in Gpr::ALL[..8].iter().filter(|gpr| **gpr != Gpr::Rsp) {
            assert_eq!(m.get(*gpr), common::low(width as usize, before[*gpr as usize]), "{gpr:?}");
        }
        assert_eq!(m.get(Gpr::Rsp), STACK);
        // The lowest of the eight places cannot be written: nothing is.
        let mut m = machine(Mode::Bits32).segment(Segment::Ss, (STACK - 8 * width) as u32, 0xc097);
        let before = m.state.clone();
        let verdict = m.step(|p| p.add_instruction(Instruction::with(push)));
        assert_eq!((verdict, &m.state), (Err(Error::Exception(Exception::STACK_FAULT)), &before));
    }
}

#[test]
fn a_segment_register_is_pushed_as_a_word_or_zero_extended_to_64_bits() {
    for (mode, moved, written) in [(Mode::Bits64, 8, 8), (Mode::Bits32, 4, 2)] {
        let mut m = machine(mode);
        m.segments[Segment::Fs as usize].selector = 0x33;
        m.run(|p| p.push(fs));
        assert_eq!((m.peek(STACK - moved, written), m.get(Gpr::Rsp)), (0x33, STACK - moved));
        assert_eq!(
            (m.accesses.len(), m.accesses[0].kind, m.accesses[0].length),
            (1, Kind::Write, written)
        );
        let m = &mut m.with(Gpr::Rdi, 0x7000);
        m.run(|p| p.mov(word_ptr(edi), fs));
        assert_eq!((m.peek(0x7000, 2), m.accesses[1].length), (0x33, 2));
    }
}

#[test]
fn ret_releases_parameters() {
    let mut m = machine(Mode::Bits64).poke64(STACK, 0x1234);
    assert_eq!(m.step(|p| p.ret_1(0x20)), Ok(Outcome::Done));
    assert_eq!((m.state.rip, m.get(Gpr::Rsp)), (0x1234, STACK + 0x28));
    let mut m = machine(Mode::Bits64).poke64(STACK, 0x8000_0000_0000);
    let before = m.state.clone();
    assert_eq!(m.step(|p| p.ret()), Err(Error::Exception(Exception::GENERAL_PROTECTION)));
    assert_eq!(m.state, before);
    let mut m = machine(Mode::Bits64).poke64(0x7000, 0x8000_0000_0000).with(Gpr::Rdi, 0x7000);
    assert_eq!(
        m.step(|p| p.jmp(qword_ptr(rdi))),
        Err(Error::Exception(Exception::GENERAL_PROTECTION))
    );
}

#[test]
fn pop_to_memory_by_the_pointer_that_it_moves() {
    // 16 bits of the pointer wrap, the address uses 32.
    let mut m = Machine::new(Mode::Bits32).with(Gpr::Rsp, 0x5_fffe).poke(0xfffe, &[0x34, 0x12]);
    m.stack_mode = Mode::Bits16;
    m.run(|p| p.pop(word_ptr(esp + 0x10)));
    assert_eq!((m.get(Gpr::Rsp), m.peek(0x5_0010, 2)), (0x5_0000, 0x1234));
}

#[test]
fn bounds_are_signed() {
    let new = || {
        Machine::new(Mode::Bits32)
            .with(Gpr::Rdi, 0x7000)
            .poke(0x7000, &[0xfe, 0xff, 0xff, 0xff, 5, 0, 0, 0])
    };
    for (index, inside) in [(-3, false), (-2, true), (0, true), (5, true), (6, false)] {
        let mut m = new().with(Gpr::Rcx, u64::from(i32::cast_unsigned(index)));
        let expected =
            if inside { Ok(Outcome::Done) } else { Err(Error::Exception(Exception::BOUND_RANGE)) };
        assert_eq!(m.step(|p| p.bound(ecx, qword_ptr(edi))), expected);
    }
}

#[test]
fn xlat_and_smsw_and_umip() {
    let mut m = Machine::new(Mode::Bits64)
        .with(Gpr::Rbx, 0x7000)
        .with(Gpr::Rax, 0x1180)
        .poke(0x7080, &[0x5a]);
    m.run(|p| p.xlatb());
    assert_eq!(m.get(Gpr::Rax), 0x115a);
    let mut m = Machine::new(Mode::Bits64).with(Gpr::Rdi, 0x7000);
    m.cpl = 3;
    m.cr0 = 0x8005_0033;
    m.run(|p| p.smsw(word_ptr(rdi)));
    assert_eq!((m.peek(0x7000, 2), m.accesses[0].length), (0x33, 2));
    m.cr4 = 1 << 11;
    type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let programs: [Program; 5] = [
        |p| p.smsw(word_ptr(rdi)),
        |p| p.sldt(word_ptr(rdi)),
        |p| p.str(word_ptr(rdi)),
        |p| p.sgdt(ptr(rdi)),
        |p| p.sidt(ptr(rdi)),
    ];
    for program in programs {
        assert_eq!(m.step(program), Err(Error::Exception(Exception::GENERAL_PROTECTION)));
        let mut kernel = m.clone();
        kernel.cpl = 0;
        assert_eq!(kernel.step(program), Ok(Outcome::Done));
    }
}
