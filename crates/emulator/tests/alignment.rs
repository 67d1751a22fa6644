//! #AC: which accesses are checked, when, and what comes before it.

mod common;

use common::{AC, Access, Kind, Machine, Verdict};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use umbra_emulator::{Error, Exception, Gpr, Mode, Outcome, Segment};

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Each with the alignment that it needs, and the width of its access.
const PROGRAMS: &[(Program, u64, usize)] = &[
    (|p| p.mov(al, byte_ptr(ebx)), 1, 1),
    (|p| p.mov(ax, word_ptr(ebx)), 2, 2),
    (|p| p.mov(dword_ptr(ebx), eax), 4, 4),
    (|p| p.add(dword_ptr(ebx), eax), 4, 4),
    (|p| p.movzx(eax, word_ptr(ebx)), 2, 2),
    (|p| p.cmpxchg8b(qword_ptr(ebx)), 8, 8),
    (|p| p.bts(word_ptr(ebx), 3), 2, 2),
    (|p| p.clflush(byte_ptr(ebx)), 1, 1),
];

const MODES: [Mode; 3] = [Mode::Bits16, Mode::Bits32, Mode::Bits64];
const AC_RAISED: Verdict = Err(Error::Exception(Exception::ALIGNMENT_CHECK));

fn machine(mode: Mode, address: u64) -> Machine {
    Machine::new(mode).with(Gpr::Rbx, address).aligned()
}

#[test]
fn operands_at_multiples_of_their_length() {
    for mode in MODES {
        for (number, &(program, alignment, _)) in PROGRAMS.iter().enumerate() {
            for address in 0x7000..0x7010 {
                let mut m = machine(mode, address);
                let before = m.state.clone();
                if address % alignment == 0 {
                    assert_eq!(
                        m.step(program),
                        Ok(Outcome::Done),
                        "program {number} at {address:#x}"
                    );
                } else {
                    assert_eq!(m.step(program), AC_RAISED, "program {number} at {address:#x}");
                    assert_eq!(m.state, before);
                    assert!(
                        m.accesses
                            .iter()
                            .all(|access| !matches!(access.kind, Kind::Read | Kind::Write))
                    );
                }
            }
        }
    }
}

#[test]
fn the_linear_address_counts() {
    let mut m = machine(Mode::Bits32, 0x7001).base(Segment::Ds, 0xfff);
    assert_eq!(m.step(|p| p.mov(dword_ptr(ebx), eax)), Ok(Outcome::Done));
    let mut m = machine(Mode::Bits32, 0x7000).base(Segment::Ds, 0xfff);
    assert_eq!(m.step(|p| p.mov(dword_ptr(ebx), eax)), AC_RAISED);
}

#[test]
fn all_of_level_and_masks_are_needed() {
    let off: [fn(&mut Machine); 3] =
        [|m| m.cpl = 2, |m| m.cr0 &= !(1 << 18), |m| m.state.rflags &= !AC];
    for off in off {
        let mut m = machine(Mode::Bits32, 0x7001);
        off(&mut m);
        assert_eq!(m.step(|p| p.mov(dword_ptr(ebx), eax)), Ok(Outcome::Done));
    }
}

#[test]
fn page_faults_and_protection_come_first() {
    for mode in MODES {
        for &(program, alignment, width) in
            PROGRAMS.iter().filter(|(_, alignment, _)| *alignment > 1)
        {
            // The second page is the one that is missing.
            let mut m = machine(mode, 0x7fff);
            m.absent.insert(8);
            let verdict = m.step(program);
            let fault = *m.accesses.last().unwrap();
            assert_eq!(
                (verdict, fault.gva, fault.length),
                (Err(Error::Fault(fault)), 0x7fff, width)
            );
            assert!(matches!(fault.kind, Kind::CheckRead | Kind::CheckWrite), "{alignment}");
        }
    }
    // With the rights of a write.
    let mut m = machine(Mode::Bits64, 0x7001);
    m.read_only.insert(7);
    let fault = Access { kind: Kind::CheckWrite, gva: 0x7001, length: 4 };
    assert_eq!(m.step(|p| p.add(dword_ptr(ebx), eax)), Err(Error::Fault(fault)));
    assert_eq!(m.step(|p| p.mov(eax, dword_ptr(ebx))), AC_RAISED);
    // A limit.
    let mut m = machine(Mode::Bits32, 0x7001).segment(Segment::Ds, 0x7003, 0xc0f3);
    let gp = Err(Error::Exception(Exception::GENERAL_PROTECTION));
    assert_eq!(m.step(|p| p.mov(dword_ptr(ebx), eax)), gp);
    assert_eq!(m.step(|p| p.mov(word_ptr(ebx), ax)), AC_RAISED);
}

#[test]
fn the_stack_and_strings_are_checked() {
    let mut m = machine(Mode::Bits64, 0).with(Gpr::Rsp, 0x9004);
    assert_eq!(m.step(|p| p.push(rax)), AC_RAISED);
    assert_eq!(m.step(|p| p.pop(rax)), AC_RAISED);
    assert_eq!(m.step(|p| p.call(0x50_0000)), AC_RAISED);
    let mut m = m.with(Gpr::Rsi, 0x7000).with(Gpr::Rdi, 0x8002).with(Gpr::Rcx, 3);
    assert_eq!(m.step(|p| p.rep().movsd()), AC_RAISED);
    assert_eq!(m.step(|p| p.rep().movsw()), Ok(Outcome::Done));
}

#[test]
fn cmpxchg16b_has_its_own_rule() {
    for address in 0x7000..0x7010 {
        for m in
            [machine(Mode::Bits64, address), Machine::new(Mode::Bits64).with(Gpr::Rbx, address)]
        {
            let mut m = m;
            let expected = if address == 0x7000 {
                Ok(Outcome::Done)
            } else {
                Err(Error::Exception(Exception::GENERAL_PROTECTION))
            };
            assert_eq!(m.step(|p| p.cmpxchg16b(xmmword_ptr(rbx))), expected);
        }
    }
}
