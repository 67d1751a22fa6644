//! VERR, VERW, LAR, LSL and ARPL.

use iced_x86::code_asm::*;
use umbra_emulator::{Error, Exception, Outcome, Privilege};

use crate::machine::{
    BEYOND, DATA, DATA_0, FREE, GDT, LDT, Machine, PageFault, available_tss, code, data, gate,
    refuses, system,
};

const ZF: u64 = 1 << 6;

/// Whether VERR, VERW, LAR and LSL answer about the selector; what the last two say.
fn answers(machine: &Machine, selector: u16) -> ([bool; 4], u64, u64) {
    let mut machine = machine.clone();
    machine.poke(DATA, &selector.to_le_bytes());
    let mut ask = |step: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        assert_eq!(machine.step(step), Ok(Outcome::Done));
        (machine.rflags & ZF != 0, machine.gprs[0])
    };
    let (verr, _) = ask(|a| a.verr(word_ptr(DATA)));
    let (verw, _) = ask(|a| a.verw(word_ptr(DATA)));
    let (lar, rights) = ask(|a| a.lar(eax, word_ptr(DATA)));
    let (lsl, limit) = ask(|a| a.lsl(eax, word_ptr(DATA)));
    ([verr, verw, lar, lsl], rights, limit)
}

#[test]
fn every_kind_of_descriptor() {
    let (yes, no) = (true, false);
    for (entry, legacy, long) in [
        (data(3), [yes, yes, yes, yes], [yes, yes, yes, yes]),
        (data(3).closed(), [yes, no, yes, yes], [yes, no, yes, yes]),
        (code(3), [yes, no, yes, yes], [yes, no, yes, yes]),
        (code(3).closed(), [no, no, yes, yes], [no, no, yes, yes]),
        (code(0).conforming(), [yes, no, yes, yes], [yes, no, yes, yes]),
        (data(3).absent(), [yes, yes, yes, yes], [yes, yes, yes, yes]),
        (data(2), [no; 4], [no; 4]),
        (system(1, 0, 0x2b).dpl(3), [no, no, yes, yes], [no; 4]),
        (system(2, LDT, 7).dpl(3), [no, no, yes, yes], [no, no, yes, yes]),
        (available_tss(0).dpl(3), [no, no, yes, yes], [no, no, yes, yes]),
        (gate(4, 8, 0).dpl(3), [no, no, yes, no], [no; 4]),
        (gate(5, 8, 0).dpl(3), [no, no, yes, no], [no; 4]),
        (gate(12, 8, 0).dpl(3), [no, no, yes, no], [no, no, yes, no]),
        (gate(14, 8, 0).dpl(3), [no; 4], [no; 4]),
    ] {
        for (mut machine, expected) in [(Machine::protected(3), legacy), (Machine::long(3), long)] {
            machine.gdt(FREE, entry);
            assert_eq!(answers(&machine, FREE).0, expected, "{entry:?}");
        }
    }
}

#[test]
fn rights_and_limit() {
    let mut machine = Machine::protected(3);
    machine.gdt(FREE, data(3));
    assert_eq!(answers(&machine, FREE), ([true; 4], 0x00c0_f200, 0xffff_ffff));
    machine.gdt(FREE, data(3).limit(0x4_5678));
    assert_eq!(answers(&machine, FREE), ([true; 4], 0x0040_f200, 0x4_5678));
    for selector in [0, 3, BEYOND, DATA_0] {
        let before = machine.gprs[0];
        assert_eq!(answers(&machine, selector), ([false; 4], before, before), "{selector:#x}");
    }
    machine.gdt(FREE, data(0));
    let mut kernel = Machine::protected(0);
    kernel.gdt(FREE, data(0));
    assert_eq!(answers(&kernel, FREE).0, [true; 4]);
    assert_eq!(answers(&kernel, FREE | 1).0, [false; 4], "RPL counts");
}

#[test]
fn page_faults_are_raised() {
    let mut machine = Machine::protected(3);
    machine.poke(DATA, &FREE.to_le_bytes());
    machine.absent.insert(GDT >> 12);
    let gva = GDT + u64::from(FREE);
    let fault = Error::Fault(PageFault { gva, write: false, privilege: Privilege::Implicit });
    refuses(&machine, fault, |m| m.step(|a| a.verr(word_ptr(DATA))));
    refuses(&machine, fault, |m| m.step(|a| a.lsl(eax, word_ptr(DATA))));
}

#[test]
fn arpl() {
    let mut machine = Machine::protected(3);
    machine.poke(DATA, &0x1235u16.to_le_bytes());
    machine.gprs[1] = 0x4443;
    assert_eq!(machine.step(|a| a.arpl(word_ptr(DATA), cx)), Ok(Outcome::Done));
    assert_eq!((machine.peek(DATA, 2), machine.rflags & ZF), (0x1237, ZF));
    machine.gprs[1] = 1;
    assert_eq!(machine.step(|a| a.arpl(word_ptr(DATA), cx)), Ok(Outcome::Done));
    assert_eq!((machine.peek(DATA, 2), machine.rflags & ZF), (0x1237, 0));
    let undefined = Error::Exception(Exception::INVALID_OPCODE);
    refuses(&Machine::virtual_8086(), undefined, |m| m.step(|a| a.arpl(word_ptr(0x20), cx)));
    refuses(&Machine::virtual_8086(), undefined, |m| m.step(|a| a.lar(ax, word_ptr(0x20))));
}
