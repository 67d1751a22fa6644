//! Whichever access of an instruction faults, nothing has changed.

mod common;

use common::{Access, Kind, Machine, RF, STATUS};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use umbra_emulator::{Error, Gpr, Mode, Outcome};

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Each with its accesses.
const PROGRAMS: &[(Program, &[Kind])] = {
    use Kind::{CheckRead, CheckWrite, Read as R, ReadModify as M, Write as W};
    &[
        (|p| p.mov(qword_ptr(rdi), rcx), &[W]),
        (|p| p.mov(rdi, qword_ptr(rdi)), &[R]),
        (|p| p.movzx(edi, word_ptr(rdi)), &[R]),
        (|p| p.movsx(rdi, byte_ptr(rdi)), &[R]),
        (|p| p.movbe(rcx, qword_ptr(rdi)), &[R]),
        (|p| p.movbe(qword_ptr(rdi), rcx), &[W]),
        (|p| p.movnti(qword_ptr(rdi), rcx), &[W]),
        (|p| p.xchg(qword_ptr(rdi), rdi), &[M, W]),
        (|p| p.cmpxchg(qword_ptr(rdi), rcx), &[M, W]),
        (|p| p.lock().cmpxchg8b(qword_ptr(rdi)), &[M, W]),
        (|p| p.lock().cmpxchg16b(xmmword_ptr(rdi)), &[M, W]),
        (|p| p.lock().xadd(qword_ptr(rdi), rdi), &[M, W]),
        (|p| p.add(qword_ptr(rdi), rcx), &[M, W]),
        (|p| p.adc(rdi, qword_ptr(rdi)), &[R]),
        (|p| p.or(dword_ptr(rdi), 8), &[M, W]),
        (|p| p.cmp(qword_ptr(rdi), rcx), &[R]),
        (|p| p.test(qword_ptr(rdi), rcx), &[R]),
        (|p| p.inc(byte_ptr(rdi)), &[M, W]),
        (|p| p.neg(qword_ptr(rdi)), &[M, W]),
        (|p| p.not(qword_ptr(rdi)), &[M, W]),
        (|p| p.shl(qword_ptr(rdi), 3), &[M, W]),
        (|p| p.rcr(dword_ptr(rdi), cl), &[M, W]),
        (|p| p.bt(qword_ptr(rdi), 3), &[R]),
        (|p| p.lock().bts(qword_ptr(rdi), 3), &[M, W]),
        (|p| p.lock().btr(dword_ptr(rdi), 3), &[M, W]),
        (|p| p.btc(word_ptr(rdi), 3), &[M, W]),
        (|p| p.setne(byte_ptr(rdi)), &[W]),
        (|p| p.cmovne(rdi, qword_ptr(rdi)), &[R]),
        (|p| p.push(qword_ptr(rdi)), &[R, W]),
        (|p| p.push(rcx), &[W]),
        (|p| p.pushfq(), &[W]),
        (|p| p.pop(qword_ptr(rdi)), &[R, W]),
        (|p| p.pop(rsp), &[R]),
        (|p| p.call(qword_ptr(rdi)), &[R, W]),
        (|p| p.call(0x50_0000), &[W]),
        (|p| p.jmp(qword_ptr(rdi)), &[R]),
        (|p| p.ret(), &[R]),
        (|p| p.shld(qword_ptr(rdi), rcx, 3), &[M, W]),
        (|p| p.mul(byte_ptr(rdi)), &[R]),
        (|p| p.imul_2(rcx, qword_ptr(rdi)), &[R]),
        (|p| p.idiv(byte_ptr(rdi)), &[R]),
        (|p| p.bsf(rcx, qword_ptr(rdi)), &[R]),
        (|p| p.popcnt(rcx, qword_ptr(rdi)), &[R]),
        (|p| p.crc32(rcx, qword_ptr(rdi)), &[R]),
        (|p| p.clflush(byte_ptr(rdi)), &[CheckRead]),
        (|p| p.mov(word_ptr(rdi), fs), &[W]),
        (|p| p.push(gs), &[W]),
        (|p| p.popfq(), &[R]),
        (|p| p.leave(), &[R]),
        (|p| p.insb(), &[CheckWrite, W]),
        (|p| p.outsb(), &[R]),
        (|p| p.movsq(), &[R, W]),
        (|p| p.stosd(), &[W]),
        (|p| p.lodsw(), &[R]),
        (|p| p.scasb(), &[R]),
        (|p| p.cmpsq(), &[R, R]),
        (|p| p.rep().movsb(), &[R, W]),
        (|p| p.repne().scasq(), &[R]),
    ]
};

fn machine() -> Machine {
    let mut machine = Machine::new(Mode::Bits64);
    machine.inputs = vec![7];
    machine
        .with(Gpr::Rax, 0x10)
        .with(Gpr::Rbp, 0x9100)
        .with(Gpr::Rcx, 1)
        .with(Gpr::Rdi, 0x7000)
        .with(Gpr::Rsi, 0x8000)
        .with(Gpr::Rsp, 0x9000)
        .poke64(0x7000, 0x1234)
        .poke64(0x9000, 0x1234)
        .flags(STATUS | RF)
}

#[test]
fn a_fault_in_any_access_changes_nothing() {
    for (number, (program, kinds)) in PROGRAMS.iter().enumerate() {
        let mut whole = machine();
        assert_eq!(whole.step(program), Ok(Outcome::Done), "program {number}");
        let performed: Vec<_> = whole.accesses.iter().map(|access| access.kind).collect();
        assert_eq!(&performed, kinds, "program {number}");
        for failing in 0..kinds.len() {
            let mut m = machine();
            m.failing = Some(failing);
            assert_eq!(
                m.step(program),
                Err(Error::Fault(whole.accesses[failing])),
                "program {number}, access {failing}"
            );
            assert_eq!(m.state, machine().state, "program {number}, access {failing}");
        }
    }
}

#[test]
fn what_will_be_written_is_read_with_the_rights_of_a_write() {
    for (number, (program, kinds)) in
        PROGRAMS.iter().enumerate().filter(|(_, (_, kinds))| kinds[0] == Kind::ReadModify)
    {
        let mut m = machine();
        m.read_only.insert(7);
        assert!(
            matches!(
                m.step(program),
                Err(Error::Fault(Access { kind: Kind::ReadModify, gva: 0x7000, .. }))
            ),
            "program {number}"
        );
        assert_eq!(m.state, machine().state, "program {number}");
        assert_eq!(kinds.len(), 2);
    }
}

#[test]
fn an_access_across_pages_faults_whole() {
    let mut m = machine().with(Gpr::Rdi, 0x7ffc);
    m.absent.insert(8);
    let before = m.state.clone();
    let fault = Access { kind: Kind::Write, gva: 0x7ffc, length: 8 };
    assert_eq!(m.step(|p| p.mov(qword_ptr(rdi), rcx)), Err(Error::Fault(fault)));
    assert_eq!(m.state, before);
}
