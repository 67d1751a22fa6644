//! Loads of segment registers, LDTR, TR, GDTR and IDTR, and stores of them.

use iced_x86::code_asm::*;
use umbra_emulator::{
    Cpu, DescriptorTable, Error, Exception, Outcome, Privilege, Segment, SystemCpu, SystemSegment,
    TableRegister,
};

use crate::machine::{
    BEYOND, CODE_3, DATA, DATA_0, DATA_3, Entry, FREE, GDT, IDT, LDT, LDT_SELECTOR, Machine, OTHER,
    OTHER_TSS, PageFault, TSS_SELECTOR, UNUSABLE, Verdict, available_tss, code, data, gp, np,
    refuses, stack_fault, system, v86,
};

fn mov(machine: &mut Machine, segment: Segment, selector: u16) -> Verdict {
    machine.poke(DATA, &selector.to_le_bytes());
    let to = [es, cs, ss, ds, fs, gs][segment as usize];
    machine.step(|a| a.mov(to, word_ptr(DATA)))
}

/// Every kind of segment a selector can name.
fn kinds(dpl: u8) -> [(Entry, bool, bool, bool); 8] {
    // (entry, readable, writable, conforming)
    [
        (data(dpl), true, true, false),
        (data(dpl).closed(), true, false, false),
        (code(dpl), true, false, false),
        (code(dpl).closed(), false, false, false),
        (code(dpl).conforming(), true, false, true),
        (code(dpl).conforming().closed(), false, false, true),
        (available_tss(0).dpl(dpl), false, false, false),
        (system(12, 0, 0).dpl(dpl), false, false, false),
    ]
}

#[test]
fn every_kind_of_descriptor_at_every_privilege_level() {
    for cpl in [0, 3] {
        for dpl in 0..4 {
            for rpl in 0..4 {
                for (entry, readable, writable, conforming) in kinds(dpl) {
                    for present in [true, false] {
                        let selector = FREE | u16::from(rpl);
                        let mut machine = Machine::protected(cpl);
                        machine.gdt(FREE, if present { entry } else { entry.absent() });
                        let open = conforming || cpl.max(rpl) <= dpl;
                        let expected = match (readable && open, present) {
                            (false, _) => Err(gp(FREE)),
                            (true, false) => Err(np(FREE)),
                            (true, true) => Ok(Outcome::Done),
                        };
                        check(&machine, Segment::Es, selector, expected);
                        let fits = writable && rpl == cpl && dpl == cpl;
                        let expected = match (fits, present) {
                            (false, _) => Err(gp(FREE)),
                            (true, false) => Err(stack_fault(FREE)),
                            (true, true) => Ok(Outcome::Done),
                        };
                        check(&machine, Segment::Ss, selector, expected);
                    }
                }
            }
        }
    }
}

#[track_caller]
fn check(machine: &Machine, segment: Segment, selector: u16, expected: Verdict) {
    let mut after = machine.clone();
    after.poke(DATA, &selector.to_le_bytes());
    match expected {
        Err(error) => refuses(&after, error, |m| mov(m, segment, selector)),
        Ok(_) => {
            assert_eq!(mov(&mut after, segment, selector), expected);
            assert_eq!(after.selector(segment), selector);
            assert_eq!(after.rights_in_gdt(FREE) & 1, 1, "accessed");
            assert_eq!(after.segment(segment).rights.0 & 1, 1);
            assert_eq!(after.interrupts_blocked, segment == Segment::Ss);
        }
    }
}

#[test]
fn selectors_beyond_the_table_and_in_the_local_one() {
    let mut machine = Machine::protected(0);
    let local = FREE | 4;
    machine.ldt(local, data(0).limit(0x1234));
    machine.poke(DATA, &BEYOND.to_le_bytes());
    for segment in [Segment::Ds, Segment::Ss] {
        refuses(&machine, gp(BEYOND), |m| mov(m, segment, BEYOND));
    }
    // Into ES: the operand lies in DS, beyond that limit.
    assert_eq!(mov(&mut machine, Segment::Es, local), Ok(Outcome::Done));
    assert_eq!(machine.segment(Segment::Es).limit, 0x1234);
    machine.ldtr = UNUSABLE;
    refuses(&machine, gp(local), |m| mov(m, Segment::Ds, local));
    machine.gdtr.limit = DATA_3 & !7 | 6;
    machine.poke(DATA, &DATA_3.to_le_bytes());
    refuses(&machine, gp(DATA_3 & !3), |m| mov(m, Segment::Ds, DATA_3));
}

#[test]
fn null_selectors() {
    for rpl in 0..4 {
        for (mut machine, cpl, code_64) in [
            (Machine::protected(0), 0, false),
            (Machine::compatible(0), 0, false),
            (Machine::long(0), 0, true),
            (Machine::long(3), 3, true),
        ] {
            machine.poke(DATA, &rpl_of(rpl));
            if code_64 && cpl == 0 && rpl == 0 {
                let mut after = machine.clone();
                assert_eq!(mov(&mut after, Segment::Ss, rpl), Ok(Outcome::Done));
                assert!(after.segment(Segment::Ss).rights.is_unusable());
                assert_eq!(after.cpl(), 0, "the privilege level stays");
            } else {
                refuses(&machine, gp(0), |m| mov(m, Segment::Ss, rpl));
            }
            assert_eq!(mov(&mut machine, Segment::Fs, rpl), Ok(Outcome::Done));
            assert_eq!(machine.selector(Segment::Fs), rpl, "the selector stays");
            assert!(machine.segment(Segment::Fs).rights.is_unusable());
        }
    }
}

fn rpl_of(rpl: u16) -> [u8; 2] {
    rpl.to_le_bytes()
}

#[test]
fn a_descriptor_that_cannot_be_marked_as_accessed_is_not_loaded() {
    let mut machine = Machine::protected(3);
    machine.gdt(FREE, data(3));
    machine.poke(DATA, &FREE.to_le_bytes());
    machine.read_only.insert(GDT >> 12);
    let gva = GDT + u64::from(FREE) + 5;
    let fault = PageFault { gva, write: true, privilege: Privilege::Implicit };
    refuses(&machine, Error::Fault(fault), |m| mov(m, Segment::Ds, FREE));
    machine.gdt(FREE, data(3).accessed());
    assert_eq!(mov(&mut machine, Segment::Ds, FREE), Ok(Outcome::Done), "nothing is to be written");
    machine.absent.insert(GDT >> 12);
    let gva = GDT + u64::from(FREE);
    let fault = PageFault { gva, write: false, privilege: Privilege::Implicit };
    refuses(&machine, Error::Fault(fault), |m| mov(m, Segment::Ds, FREE));
}

#[test]
fn virtual_8086_mode_takes_any_selector() {
    let mut machine = Machine::virtual_8086();
    machine.poke(0x3000 + 0x20, &0x1234u16.to_le_bytes());
    assert_eq!(machine.step(|a| a.mov(es, word_ptr(0x20))), Ok(Outcome::Done));
    assert_eq!(machine.segment(Segment::Es), v86(0x1234));
    machine.poke(0x3000 + 0x30, &[0x78, 0x56, 0x34, 0x12]);
    assert_eq!(machine.execute(&[0xc5, 0x1e, 0x30, 0x00]), Ok(Outcome::Done), "LDS BX, [0x30]");
    assert_eq!((machine.segment(Segment::Ds), machine.gprs[3] & 0xffff), (v86(0x1234), 0x5678));
}

#[test]
fn cs_is_not_loaded_by_mov() {
    let machine = Machine::protected(0);
    let undefined = Error::Exception(Exception::INVALID_OPCODE);
    refuses(&machine, undefined, |m| m.execute(&[0x8e, 0x0d, 0, 0, 3, 0]));
}

#[test]
fn pop_of_a_segment_register_moves_the_stack_pointer_last() {
    let mut machine = Machine::protected(3);
    machine.poke(machine.gprs[4], &u32::from(DATA_3).to_le_bytes());
    let top = machine.gprs[4];
    assert_eq!(machine.step(|a| a.pop(es)), Ok(Outcome::Done));
    assert_eq!((machine.selector(Segment::Es), machine.gprs[4]), (DATA_3, top + 4));
    machine.poke(machine.gprs[4], &u32::from(DATA_0).to_le_bytes());
    refuses(&machine, gp(DATA_0), |m| m.step(|a| a.pop(ds)));
    machine.poke(machine.gprs[4], &u32::from(DATA_3).to_le_bytes());
    assert_eq!(machine.step(|a| a.pop(ss)), Ok(Outcome::Done));
    assert!(machine.interrupts_blocked);
    let mut machine = Machine::long(3);
    machine.poke(machine.gprs[4], &u64::from(DATA_3).to_le_bytes());
    let top = machine.gprs[4];
    assert_eq!(machine.step(|a| a.pop(gs)), Ok(Outcome::Done));
    assert_eq!((machine.selector(Segment::Gs), machine.gprs[4]), (DATA_3, top + 8));
}

#[test]
fn push_of_a_segment_register_writes_its_16_bits() {
    let mut machine = Machine::protected(3);
    let top = machine.gprs[4];
    machine.poke(top - 4, &[0xff; 4]);
    assert_eq!(machine.step(|a| a.push(cs)), Ok(Outcome::Done));
    assert_eq!(
        (machine.gprs[4], machine.peek(top - 4, 4)),
        (top - 4, 0xffff_0000 | u64::from(CODE_3))
    );
    machine.segments[2].limit = top as u32 - 8;
    refuses(&machine, stack_fault(0), |m| m.step(|a| a.push(cs)));
    let mut machine = Machine::long(3);
    let top = machine.gprs[4];
    machine.poke(top - 8, &[0xff; 8]);
    assert_eq!(machine.step(|a| a.push(fs)), Ok(Outcome::Done));
    assert_eq!((machine.gprs[4], machine.peek(top - 8, 8)), (top - 8, DATA_3.into()));
}

#[test]
fn far_pointers_load_the_segment_before_the_register() {
    let mut machine = Machine::protected(3);
    machine.poke(DATA, &0x1234_5678u32.to_le_bytes());
    machine.poke(DATA + 4, &DATA_0.to_le_bytes());
    refuses(&machine, gp(DATA_0), |m| m.step(|a| a.les(ebx, fword_ptr(DATA))));
    machine.poke(DATA + 4, &DATA_3.to_le_bytes());
    assert_eq!(machine.step(|a| a.lss(ebx, fword_ptr(DATA))), Ok(Outcome::Done));
    assert_eq!((machine.gprs[3], machine.selector(Segment::Ss)), (0x1234_5678, DATA_3));
}

#[test]
fn lldt() {
    let lldt = |machine: &mut Machine, selector: u16| {
        machine.poke(DATA, &selector.to_le_bytes());
        machine.step(|a| a.lldt(word_ptr(DATA)))
    };
    for mut machine in [Machine::protected(0), Machine::long(0)] {
        for (entry, error) in [
            (data(0), gp(FREE)),
            (available_tss(0), gp(FREE)),
            (system(2, LDT, 0x17).absent(), np(FREE)),
        ] {
            machine.gdt(FREE, entry);
            machine.poke(DATA, &FREE.to_le_bytes());
            refuses(&machine, error, |m| lldt(m, FREE));
        }
        for selector in [FREE | 4, BEYOND] {
            machine.poke(DATA, &selector.to_le_bytes());
            refuses(&machine, gp(selector), |m| lldt(m, selector));
        }
        machine.gdt(FREE, system(2, 0x12345, 0x17));
        assert_eq!(lldt(&mut machine, FREE), Ok(Outcome::Done));
        let ldtr = machine.system_segment(SystemSegment::Ldtr);
        assert_eq!(
            (ldtr.base, ldtr.limit, ldtr.selector, ldtr.rights.0),
            (0x12345, 0x17, FREE, 0x82)
        );
        assert_eq!(lldt(&mut machine, 0), Ok(Outcome::Done));
        assert!(machine.ldtr.rights.is_unusable());
    }
    refuses(&Machine::protected(3), gp(0), |m| m.step(|a| a.lldt(word_ptr(DATA))));
    let undefined = Error::Exception(Exception::INVALID_OPCODE);
    refuses(&Machine::virtual_8086(), undefined, |m| m.step(|a| a.lldt(word_ptr(0x20))));
}

#[test]
fn the_upper_half_of_a_system_descriptor() {
    let mut machine = Machine::long(0);
    machine.poke(DATA, &FREE.to_le_bytes());
    machine.gdt(FREE, system(2, 0xffff_8000_0000_1000, 0x17));
    assert_eq!(machine.step(|a| a.lldt(word_ptr(DATA))), Ok(Outcome::Done));
    assert_eq!(machine.ldtr.base, 0xffff_8000_0000_1000);
    machine.gdt(FREE, system(2, 0x8000_0000_0000, 0x17));
    refuses(&machine, gp(FREE), |m| m.step(|a| a.lldt(word_ptr(DATA))));
    machine.gdt(FREE, system(2, 0, 0x17));
    machine.poke(GDT + u64::from(FREE) + 13, &[1]);
    refuses(&machine, gp(FREE), |m| m.step(|a| a.lldt(word_ptr(DATA))));
    machine.gdt(FREE, system(2, 0, 0x17));
    machine.gdtr.limit = FREE + 14;
    refuses(&machine, gp(FREE), |m| m.step(|a| a.lldt(word_ptr(DATA))));
}

#[test]
fn ltr() {
    let ltr = |machine: &mut Machine| machine.step(|a| a.ltr(word_ptr(DATA)));
    for mut machine in [Machine::protected(0), Machine::long(0)] {
        machine.poke(DATA, &0u16.to_le_bytes());
        refuses(&machine, gp(0), ltr);
        machine.poke(DATA, &TSS_SELECTOR.to_le_bytes());
        refuses(&machine, gp(TSS_SELECTOR), ltr);
        machine.poke(DATA, &OTHER.to_le_bytes());
        machine.gdt(OTHER, available_tss(OTHER_TSS).absent());
        refuses(&machine, np(OTHER), ltr);
        machine.gdt(OTHER, available_tss(OTHER_TSS));
        assert_eq!(ltr(&mut machine), Ok(Outcome::Done));
        assert_eq!(
            (machine.tr.base, machine.tr.rights.0, machine.tr.selector),
            (OTHER_TSS, 0x8b, OTHER)
        );
        assert_eq!(machine.rights_in_gdt(OTHER), 0x8b, "busy");
    }
    let mut machine = Machine::long(0);
    machine.poke(DATA, &OTHER.to_le_bytes());
    machine.gdt(OTHER, system(1, OTHER_TSS, 0x67));
    refuses(&machine, gp(OTHER), ltr);
}

#[test]
fn descriptor_tables() {
    let value = TableRegister { base: 0x1234_5678, limit: 0xabcd };
    let mut machine = Machine::protected(0);
    machine.poke(DATA, &value.limit.to_le_bytes());
    machine.poke(DATA + 2, &value.base.to_le_bytes());
    let mut short = machine.clone();
    assert_eq!(machine.step(|a| a.lgdt(fword_ptr(DATA))), Ok(Outcome::Done));
    assert_eq!(machine.descriptor_table(DescriptorTable::Gdt), value);
    assert_eq!(
        short.execute(&[0x66, 0x0f, 0x01, 0x1d, 0, 0, 3, 0]),
        Ok(Outcome::Done),
        "LIDT, 16 bits"
    );
    assert_eq!(short.idtr, TableRegister { base: 0x34_5678, ..value });
    assert_eq!(machine.step(|a| a.sgdt(fword_ptr(DATA + 16))), Ok(Outcome::Done));
    assert_eq!(machine.peek(DATA + 16, 6), 0x1234_5678_abcd);
    refuses(&Machine::protected(3), gp(0), |m| m.step(|a| a.lidt(fword_ptr(DATA))));
    let mut machine = Machine::long(3);
    assert_eq!(machine.step(|a| a.sidt(fword_ptr(DATA + 16))), Ok(Outcome::Done));
    assert_eq!((machine.peek(DATA + 16, 2), machine.peek(DATA + 18, 8)), (0xfff, IDT));
    let mut machine = Machine::long(0);
    machine.poke(DATA + 2, &0x8000_0000_0000u64.to_le_bytes());
    refuses(&machine, gp(0), |m| m.step(|a| a.lgdt(fword_ptr(DATA))));
}

#[test]
fn stores_of_selectors_and_the_machine_status_word() {
    let mut machine = Machine::long(3);
    machine.poke(DATA, &[0xff; 64]);
    assert_eq!(machine.step(|a| a.sldt(word_ptr(DATA))), Ok(Outcome::Done));
    assert_eq!(machine.step(|a| a.str(word_ptr(DATA + 8))), Ok(Outcome::Done));
    assert_eq!(machine.step(|a| a.smsw(word_ptr(DATA + 16))), Ok(Outcome::Done));
    assert_eq!(machine.step(|a| a.mov(word_ptr(DATA + 24), cs)), Ok(Outcome::Done));
    let stored: Vec<u64> = (0..4).map(|number| machine.peek(DATA + 8 * number, 4)).collect();
    let expected =
        [LDT_SELECTOR, TSS_SELECTOR, 1, CODE_3].map(|value| 0xffff_0000 | u64::from(value));
    assert_eq!(stored, expected, "16 bits each");
    let undefined = Error::Exception(Exception::INVALID_OPCODE);
    refuses(&Machine::virtual_8086(), undefined, |m| m.step(|a| a.str(word_ptr(0x20))));
}

#[test]
fn control_instructions_of_ring_0() {
    let mut machine = Machine::long(0);
    machine.cr0 |= 8;
    assert_eq!(machine.step(|a| a.clts()), Ok(Outcome::Done));
    assert_eq!(machine.cr0 & 8, 0);
    machine.poke(DATA, &9u16.to_le_bytes());
    assert_eq!(machine.step(|a| a.lmsw(word_ptr(DATA))), Ok(Outcome::Done));
    assert_eq!(machine.cr0 & 0xf, 9);
    assert_eq!(machine.step(|a| a.invlpg(byte_ptr(0x7777_0000u64))), Ok(Outcome::Done));
    assert_eq!(machine.invalidated, Some(0x7777_0000));
    let machine = Machine::long(3);
    refuses(&machine, gp(0), |m| m.step(|a| a.clts()));
    refuses(&machine, gp(0), |m| m.step(|a| a.lmsw(word_ptr(DATA))));
    refuses(&machine, gp(0), |m| m.step(|a| a.invlpg(byte_ptr(0x7777_0000u64))));
}
