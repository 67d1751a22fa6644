//! Which instructions the processor may carry out on copies of their operands, and what these are.

mod common;

use common::{Machine, assemble};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use umbra_emulator::{Gpr, Mode, Native, NativeOperand, Segment, names_operand};

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const AREA: usize = 832;

fn decode(machine: &Machine, program: Program) -> Option<Native> {
    let bytes = assemble(machine.mode, machine.state.rip, program);
    let native = Native::decode(machine, &bytes, AREA, vector);
    assert!(native.as_ref().is_none_or(|native| native.length == bytes.len()));
    native
}

/// Length, and whether all of it is read and written.
fn only_operand(program: Program) -> (usize, bool, bool) {
    let machine = Machine::new(Mode::Bits64).with(Gpr::Rdi, 0x7000).with(Gpr::Rcx, 3);
    let native = decode(&machine, program).expect("the processor can carry it out");
    let [NativeOperand { gva, length, read, written }] = native.operands[..] else {
        panic!("{native:?}");
    };
    assert_eq!(gva, 0x7000);
    (length, read, written)
}

#[test]
fn operands_of_vector_and_x87_instructions() {
    let programs: [(Program, _); 14] = [
        (|p| p.movups(xmmword_ptr(rdi), xmm0), (16, false, true)),
        (|p| p.movaps(xmm3, xmmword_ptr(rdi)), (16, true, false)),
        (|p| p.movd(mm1, dword_ptr(rdi)), (4, true, false)),
        (|p| p.addsd(xmm1, qword_ptr(rdi)), (8, true, false)),
        (|p| p.vmovdqu(ymmword_ptr(rdi), ymm9), (32, false, true)),
        (|p| p.vaddps(zmm1, zmm2, zmmword_ptr(rdi)), (64, true, false)),
        (|p| p.vaddps(zmm1, zmm2, dword_bcst(rdi)), (4, true, false)),
        (|p| p.fld(tbyte_ptr(rdi)), (10, true, false)),
        (|p| p.fnstenv(ptr(rdi)), (28, false, true)),
        (|p| p.fnsave(ptr(rdi)), (108, false, true)),
        (|p| p.fxsave(ptr(rdi)), (512, false, true)),
        (|p| p.xrstor(ptr(rdi)), (AREA, false, false)),
        (|p| p.ldmxcsr(dword_ptr(rdi)), (4, true, false)),
        (|p| p.maskmovq(mm1, mm2), (8, false, false)),
    ];
    for (program, expected) in programs {
        assert_eq!(only_operand(program), expected, "{:?}", assemble(Mode::Bits64, 0, program));
    }
}

#[test]
fn addresses_have_base_index_and_segment() {
    let mut machine = Machine::new(Mode::Bits64).with(Gpr::Rbx, 0x1000).with(Gpr::Rcx, 2);
    Segment::ALL.into_iter().for_each(|segment| machine.segments[segment as usize].base = 0x100);
    let gva = |machine: &Machine, program| decode(machine, program).unwrap().operands[0].gva;
    assert_eq!(gva(&machine, |p| p.movups(xmm0, xmmword_ptr(rbx + rcx * 8 + 4))), 0x1014);
    assert_eq!(gva(&machine, |p| p.movups(xmm0, xmmword_ptr(rbx).fs())), 0x1100);
    let mut machine = Machine::new(Mode::Bits32).with(Gpr::Rbx, 0xffff_ffff_ffff_fff0);
    Segment::ALL.into_iter().for_each(|segment| machine.segments[segment as usize].base = 0x100);
    assert_eq!(gva(&machine, |p| p.movups(xmm0, xmmword_ptr(ebx))), 0xf0, "32 bits wrap");
    let machine = Machine::new(Mode::Bits16).with(Gpr::Rbx, 0x1_fff0).with(Gpr::Rsi, 0x20);
    assert_eq!(gva(&machine, |p| p.movups(xmm0, xmmword_ptr(bx + si))), 0x10, "16 bits wrap");
}

#[test]
fn what_changes_more_than_registers_is_refused() {
    let programs: [Program; 18] = [
        |p| p.call(qword_ptr(rdi)),
        |p| p.jmp(qword_ptr(rdi)),
        |p| p.push(qword_ptr(rdi)),
        |p| p.ret(),
        |p| p.mov(ds, word_ptr(rdi)),
        |p| p.lgdt(ptr(rdi)),
        |p| p.sidt(ptr(rdi)),
        |p| p.lar(eax, word_ptr(rdi)),
        |p| p.verr(word_ptr(rdi)),
        |p| p.invlpg(byte_ptr(rdi)),
        |p| p.movsb(),
        |p| p.popfq(),
        |p| p.cpuid(),
        |p| p.sti(),
        |p| p.wrmsr(),
        |p| p.hlt(),
        |p| p.in_(al, dx),
        |p| p.xbegin(0x1000),
    ];
    for program in programs {
        let machine = Machine::new(Mode::Bits64);
        let bytes = assemble(Mode::Bits64, machine.state.rip, program);
        assert_eq!(Native::decode(&machine, &bytes, AREA, vector), None, "{bytes:02x?}");
    }
}

/// YMM2 holds the indices 1, -1, 2, -2 as dwords, and YMM3 masks the first, third and fourth of
/// them.
fn vector(number: usize) -> Option<[u8; 32]> {
    let words: [u32; 8] = match number {
        2 => [1, u32::MAX, 2, u32::MAX - 1, 0, 0, 0, 0],
        3 => [1 << 31, 0, 1 << 31, 1 << 31, 0, 0, 0, 0],
        _ => [0; 8],
    };
    let mut bytes = [0; 32];
    bytes
        .chunks_mut(4)
        .zip(words)
        .for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
    Some(bytes)
}

#[test]
fn a_gather_reads_the_elements_of_its_mask() {
    let machine = Machine::new(Mode::Bits64).with(Gpr::Rdi, 0x7000);
    // VPGATHERDD xmm1, [rdi+xmm2*4+8], xmm3; VPGATHERQQ ymm1, [rdi+ymm2*1], ymm3.
    type Parts = [(u64, usize)];
    let gathers: [(&[u8], &Parts); 2] = [
        (&[0xc4, 0xe2, 0x61, 0x90, 0x4c, 0x97, 8], &[(0x700c, 4), (0x7010, 4), (0x7000, 4)]),
        (&[0xc4, 0xe2, 0xe5, 0x91, 0x0c, 0x17], &[(0xffff_fffe_0000_7002, 8)]),
    ];
    for (bytes, expected) in gathers {
        let native = Native::decode(&machine, bytes, AREA, vector).expect("a gather");
        let found: Vec<_> = native.operands.iter().map(|part| (part.gva, part.length)).collect();
        assert_eq!(found, expected);
        assert!(native.operands.iter().all(|part| part.read && !part.written));
    }
    for (bytes, _) in gathers {
        assert_eq!(Native::decode(&machine, bytes, AREA, |_| None), None, "AVX is off");
    }
    assert_eq!(decode(&machine, |p| p.vpgatherdd(ymm1.k1(), dword_ptr(rdi + ymm2 * 4))), None);
}

#[test]
fn named_operands_are_told_from_what_the_processor_accesses_by_itself() {
    let machine = Machine::new(Mode::Bits64).with(Gpr::Rdi, 0x7000).with(Gpr::Rsp, 0x9000);
    let table: [(Program, u64, bool); 7] = [
        (|p| p.mov(rax, qword_ptr(rdi)), 0x7000, true),
        (|p| p.mov(rax, qword_ptr(rdi)), 0x7007, true),
        (|p| p.mov(rax, qword_ptr(rdi)), 0x7008, false),
        (|p| p.push(rax), 0x8ff8, true),
        (|p| p.stosq(), 0x7000, true),
        (|p| p.mov(ds, eax), 0x7000, false),
        (|p| p.mov(ds, word_ptr(rdi)), 0x7001, true),
    ];
    for (program, gva, named) in table {
        let bytes = assemble(Mode::Bits64, machine.state.rip, program);
        assert_eq!(names_operand(&machine, &bytes, gva), named, "{bytes:02x?} {gva:#x}");
    }
    assert!(!names_operand(&machine, &[0x0f], 0x7000));
}
