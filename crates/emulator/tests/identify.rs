//! What an instruction is that a processor intercepts without telling.

mod common;

use common::{START, assemble};
use iced_x86::code_asm::*;
use umbra_emulator::{Gpr, Mode, Operation, identify};

fn operation(
    mode: Mode,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Operation {
    let bytes = assemble(mode, START, program);
    let identity = identify(&bytes, mode).expect("an instruction");
    assert_eq!(usize::from(identity.length), bytes.len(), "{bytes:02x?}");
    identity.operation
}

#[test]
fn moves_to_and_from_control_registers() {
    let to = operation(Mode::Bits64, |p| p.mov(cr3, r13));
    assert_eq!(to, Operation::MovToCr { cr: 3, gpr: Gpr::R13 });
    let to = operation(Mode::Bits64, |p| p.mov(cr8, rax));
    assert_eq!(to, Operation::MovToCr { cr: 8, gpr: Gpr::Rax });
    let from = operation(Mode::Bits64, |p| p.mov(rsp, cr4));
    assert_eq!(from, Operation::MovFromCr { cr: 4, gpr: Gpr::Rsp });
    for mode in [Mode::Bits16, Mode::Bits32] {
        let from = operation(mode, |p| p.mov(edi, cr0));
        assert_eq!(from, Operation::MovFromCr { cr: 0, gpr: Gpr::Rdi });
    }
}

#[test]
fn parts_of_cr0_flushes_and_software_interrupts() {
    use Operation::{Invalidation, MachineStatusWord, SoftwareInterrupt};
    assert_eq!(operation(Mode::Bits64, |p| p.clts()), MachineStatusWord);
    assert_eq!(operation(Mode::Bits64, |p| p.lmsw(word_ptr(rbx))), MachineStatusWord);
    assert_eq!(operation(Mode::Bits32, |p| p.smsw(eax)), MachineStatusWord);
    assert_eq!(operation(Mode::Bits64, |p| p.invlpg(byte_ptr(r8 + 8))), Invalidation);
    assert_eq!(operation(Mode::Bits64, |p| p.invpcid(rax, xmmword_ptr(rdx))), Invalidation);
    assert_eq!(operation(Mode::Bits64, |p| p.int(0x80)), SoftwareInterrupt);
    assert_eq!(operation(Mode::Bits32, |p| p.into()), SoftwareInterrupt);
    assert_eq!(operation(Mode::Bits64, |p| p.int3()), SoftwareInterrupt);
}

#[test]
fn everything_else_has_a_length_at_least() {
    assert_eq!(operation(Mode::Bits64, |p| p.mov(rax, rbx)), Operation::Other);
    assert_eq!(operation(Mode::Bits64, |p| p.mov(dr7, rbx)), Operation::Other);
    assert_eq!(operation(Mode::Bits16, |p| p.cpuid()), Operation::Other);
}

#[test]
fn bytes_that_are_no_instruction_or_a_part_of_one() {
    let bytes = assemble(Mode::Bits64, START, |p| p.invlpg(byte_ptr(0x1234_5678)));
    for length in 0..bytes.len() {
        assert_eq!(identify(&bytes[..length], Mode::Bits64), None);
    }
    // UD2 is an instruction, 0F FF without its operand's bytes is none.
    assert_eq!(identify(&[0x0f, 0xff], Mode::Bits64), None);
    // MOV to CR1.
    assert_eq!(identify(&[0x0f, 0x22, 0xc8], Mode::Bits64), None);
}

#[test]
fn instructions_of_a_virtualization_extension() {
    let is_one = |bytes: &[u8], mode| {
        identify(bytes, mode)
            .is_some_and(|identity| identity.operation == Operation::Virtualization)
    };
    for mode in [Mode::Bits64, Mode::Bits32, Mode::Bits16] {
        for last in 0xd8..=0xdf {
            assert!(is_one(&[0x0f, 0x01, last], mode), "{last:#x}");
        }
        // VMCALL, MONITOR, RDPRU.
        for last in [0xc1, 0xc8, 0xfd] {
            assert!(!is_one(&[0x0f, 0x01, last], mode), "{last:#x}");
        }
    }
    assert!(
        is_one(&[0x48, 0x0f, 0x01, 0xda], Mode::Bits64)
            && is_one(&[0x67, 0x0f, 0x01, 0xd8], Mode::Bits64)
    );
    assert!(is_one(&[0x0f, 0x01, 0xfe], Mode::Bits64) && is_one(&[0x0f, 0x01, 0xff], Mode::Bits64));
    assert!(!is_one(&[0x0f, 0x01], Mode::Bits64));
}

#[test]
fn what_only_ring_0_may_do_is_told_from_the_rest() {
    let privileged = |program: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        operation(Mode::Bits64, program).is_privileged()
    };
    assert!(privileged(|p| p.mov(cr3, rax)) && privileged(|p| p.mov(rax, cr4)));
    assert!(privileged(|p| p.invlpg(byte_ptr(rax))) && privileged(|p| p.invlpg(byte_ptr(r8 + 8))));
    assert!(privileged(|p| p.invpcid(rax, xmmword_ptr(rdx))));
    assert!(!privileged(|p| p.smsw(eax)) && !privileged(|p| p.int(0x80)));
    assert!(!privileged(|p| p.vmmcall()) && !privileged(|p| p.nop()));
}
