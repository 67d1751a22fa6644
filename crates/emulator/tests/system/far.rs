//! Far JMP and CALL.

use umbra_emulator::{Cpu, Error, Exception, Gpr, Mode, Outcome, Privilege, Segment};

use crate::machine::{
    BEYOND, CODE, CODE_0, CODE_3, DATA, DATA_0, DATA_3, Entry, FREE, FREE_2, GATE, GDT, IF,
    Machine, NT, OTHER, PageFault, STACK_0, STACK_3, TARGET, TSS, TSS_SELECTOR, Verdict,
    available_tss, code, code_64, data, gate, gp, np, refuses, stack_fault, system, ts, v86,
};

/// JMP or CALL by a far pointer of 32 bits in memory.
fn go(machine: &mut Machine, call: bool, selector: u16, offset: u64) -> Verdict {
    point(machine, selector, offset);
    let digit = if call { 3 } else { 5 };
    // ModRM with an absolute 32-bit address, which 64-bit code encodes by a SIB byte.
    if machine.mode() == Mode::Bits64 {
        machine.execute(&[0xff, digit << 3 | 4, 0x25, 0, 0, 3, 0])
    } else {
        machine.execute(&[0xff, digit << 3 | 5, 0, 0, 3, 0])
    }
}

fn point(machine: &mut Machine, selector: u16, offset: u64) {
    machine.poke(DATA, &(offset as u32).to_le_bytes());
    machine.poke(DATA + 4, &selector.to_le_bytes());
}

#[track_caller]
fn refused(machine: &Machine, error: Error<PageFault>, call: bool, selector: u16, offset: u64) {
    let mut machine = machine.clone();
    point(&mut machine, selector, offset);
    refuses(&machine, error, |m| go(m, call, selector, offset));
}

#[test]
fn code_segments_at_every_privilege_level() {
    for cpl in [0, 3] {
        for dpl in 0..4 {
            for rpl in 0..4 {
                for conforming in [false, true] {
                    for call in [false, true] {
                        let entry = if conforming { code(dpl).conforming() } else { code(dpl) };
                        let allowed =
                            if conforming { dpl <= cpl } else { rpl <= cpl && dpl == cpl };
                        let selector = FREE | u16::from(rpl);
                        let mut machine = Machine::protected(cpl);
                        machine.gdt(FREE, entry);
                        if !allowed {
                            refused(&machine, gp(FREE), call, selector, TARGET);
                            continue;
                        }
                        let old = (machine.gprs[4], machine.selector(Segment::Cs));
                        assert_eq!(go(&mut machine, call, selector, TARGET), Ok(Outcome::Done));
                        assert_eq!((machine.rip, machine.cpl()), (TARGET, cpl));
                        assert_eq!(
                            machine.selector(Segment::Cs),
                            FREE | u16::from(cpl),
                            "RPL is CPL"
                        );
                        assert_eq!(machine.rights_in_gdt(FREE) & 1, 1);
                        if call {
                            assert_eq!(machine.stack(4, 2), [CODE + 6, old.1.into()]);
                            assert_eq!(machine.gprs[4], old.0 - 8);
                        } else {
                            assert_eq!(machine.gprs[4], old.0);
                        }
                        machine = Machine::protected(cpl);
                        machine.gdt(FREE, entry.absent());
                        refused(&machine, np(FREE), call, selector, TARGET);
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_target() {
    for call in [false, true] {
        let mut machine = Machine::protected(0);
        refused(&machine, gp(0), call, 3, TARGET);
        refused(&machine, gp(BEYOND), call, BEYOND, TARGET);
        for entry in [data(0), system(2, 0, 7), gate(14, CODE_0, TARGET), gate(15, CODE_0, TARGET)]
        {
            machine.gdt(FREE, entry);
            refused(&machine, gp(FREE), call, FREE, TARGET);
        }
        machine.gdt(FREE, code(0).limit(TARGET - 1));
        refused(&machine, gp(0), call, FREE, TARGET);
        machine.gdt(FREE, code(0).limit(TARGET));
        assert_eq!(go(&mut machine, call, FREE, TARGET), Ok(Outcome::Done));
        let mut machine = Machine::long(0);
        for entry in [code(0).reserved(), available_tss(0), gate(5, OTHER, 0), gate(4, CODE_0, 0)] {
            machine.gdt(FREE, entry);
            refused(&machine, gp(FREE), call, FREE, TARGET);
        }
    }
}

#[test]
fn call_needs_room_before_it_looks_at_the_offset() {
    let mut machine = Machine::protected(3);
    machine.gdt(FREE, code(3).limit(0x100));
    machine.segments[2].limit = STACK_3 as u32 - 5;
    refused(&machine, stack_fault(0), true, FREE | 3, TARGET);
    refused(&machine, gp(0), false, FREE | 3, TARGET);
    let mut machine = Machine::protected(3);
    machine.gdt(FREE, code(3));
    machine.absent.insert((STACK_3 - 8) >> 12);
    let fault = PageFault { gva: STACK_3 - 4, write: true, privilege: Privilege::Explicit(3) };
    refused(&machine, Error::Fault(fault), true, FREE | 3, TARGET);
}

#[test]
fn between_64_bit_and_compatibility_code() {
    let mut machine = Machine::long(3);
    machine.gdt(FREE, code(3));
    assert_eq!(go(&mut machine, false, FREE | 3, TARGET), Ok(Outcome::Done));
    assert_eq!(machine.mode(), Mode::Bits32);
    machine.gdt(FREE_2, code_64(3));
    assert_eq!(go(&mut machine, true, FREE_2 | 3, CODE), Ok(Outcome::Done));
    assert_eq!((machine.mode(), machine.rip), (Mode::Bits64, CODE));
    assert_eq!(machine.stack(4, 2), [TARGET + 6, (FREE | 3).into()]);
    // 64-bit operands: an offset that is not canonical.
    machine.poke(DATA, &0x8000_0000_0000u64.to_le_bytes());
    machine.poke(DATA + 8, &(FREE_2 | 3).to_le_bytes());
    let far = [0x48, 0xff, 0x2c, 0x25, 0, 0, 3, 0];
    refuses(&machine, gp(0), |m| m.execute(&far));
    machine.poke(DATA, &0xffff_8000_0000_0000u64.to_le_bytes());
    assert_eq!(machine.execute(&far), Ok(Outcome::Done));
    assert_eq!(machine.rip, 0xffff_8000_0000_0000);
}

#[test]
fn direct_pointers_of_both_widths() {
    let mut machine = Machine::protected(0);
    machine.gdt(FREE, code(0));
    let jmp = [0xea, 0x78, 0x56, 0x02, 0x00, FREE as u8, 0];
    assert_eq!(machine.execute(&jmp), Ok(Outcome::Done));
    assert_eq!(machine.rip, 0x2_5678);
    let call = [0x66, 0x9a, 0x34, 0x12, FREE as u8, 0];
    assert_eq!(machine.execute(&call), Ok(Outcome::Done));
    assert_eq!((machine.rip, machine.gprs[4]), (0x1234, STACK_0 - 4));
    assert_eq!(machine.stack(2, 2), [0x567e, FREE.into()]);
}

#[test]
fn virtual_8086_mode() {
    let mut machine = Machine::virtual_8086();
    assert_eq!(machine.execute(&[0x9a, 0x34, 0x12, 0x00, 0x05]), Ok(Outcome::Done));
    assert_eq!((machine.rip, machine.segment(Segment::Cs)), (0x1234, v86(0x500)));
    assert_eq!(machine.stack(2, 2), [0x15, 0x1000]);
    let machine = Machine::virtual_8086();
    refuses(&machine, gp(0), |m| m.execute(&[0x66, 0xea, 0, 0, 1, 0, 0, 5]));
}

#[test]
fn call_gates_at_every_privilege_level() {
    for cpl in [0, 3] {
        for gate_dpl in 0..4 {
            for rpl in 0..4 {
                for code_dpl in 0..4 {
                    for conforming in [false, true] {
                        for call in [false, true] {
                            let mut machine = Machine::protected(cpl);
                            machine.gdt(
                                FREE,
                                if conforming {
                                    code(code_dpl).conforming()
                                } else {
                                    code(code_dpl)
                                },
                            );
                            machine.gdt(GATE, gate(12, FREE, TARGET).dpl(gate_dpl));
                            let selector = GATE | u16::from(rpl);
                            let reached =
                                if call || conforming { code_dpl <= cpl } else { code_dpl == cpl };
                            if gate_dpl < cpl.max(rpl) {
                                refused(&machine, gp(GATE), call, selector, 0);
                            } else if !reached {
                                refused(&machine, gp(FREE), call, selector, 0);
                            } else if call && !conforming && code_dpl < cpl {
                                if code_dpl == 0 {
                                    assert_eq!(
                                        go(&mut machine, call, selector, 0),
                                        Ok(Outcome::Done)
                                    );
                                    assert_eq!((machine.cpl(), machine.rip), (0, TARGET));
                                } else {
                                    // The TSS has no stack for this ring.
                                    refused(&machine, ts(0), call, selector, 0);
                                }
                            } else {
                                assert_eq!(go(&mut machine, call, selector, 0), Ok(Outcome::Done));
                                assert_eq!((machine.cpl(), machine.rip), (cpl, TARGET));
                                assert_eq!(machine.selector(Segment::Cs), FREE | u16::from(cpl));
                            }
                        }
                    }
                }
            }
        }
    }
}

fn with_gate(cpl: u8, gate: Entry, code: Entry) -> Machine {
    let mut machine = Machine::protected(cpl);
    machine.gdt(GATE, gate.dpl(3));
    machine.gdt(FREE, code);
    machine
}

#[test]
fn a_call_gate_to_an_inner_ring_copies_parameters() {
    let mut machine = with_gate(3, gate(12, FREE | 3, TARGET).with(3), code(0));
    machine.poke_all(STACK_3, 4, &[0x11, 0x22, 0x33]);
    assert_eq!(go(&mut machine, true, GATE | 3, 0), Ok(Outcome::Done));
    let frame = [CODE + 6, CODE_3.into(), 0x11, 0x22, 0x33, STACK_3, DATA_3.into()];
    assert_eq!(machine.stack(4, 7), frame);
    assert_eq!(machine.gprs[4], STACK_0 - 28);
    assert_eq!((machine.selector(Segment::Cs), machine.selector(Segment::Ss)), (FREE, DATA_0));
    let pushes = machine.writes.iter().filter(|(gva, _)| *gva >= STACK_0 - 28);
    assert!(
        pushes.clone().count() == 7
            && pushes.into_iter().all(|(_, who)| *who == Privilege::Explicit(0))
    );

    let mut machine = with_gate(3, gate(4, FREE, 0x1234).with(2), code(0));
    machine.poke_all(STACK_3, 2, &[0x11, 0x22]);
    assert_eq!(go(&mut machine, true, GATE | 3, 0), Ok(Outcome::Done));
    assert_eq!(machine.stack(2, 6), [6, CODE_3.into(), 0x11, 0x22, STACK_3, DATA_3.into()]);
    assert_eq!(machine.rip, 0x1234);
}

#[test]
fn a_64_bit_call_gate() {
    let mut machine = Machine::long(3);
    machine.gdt(GATE, gate(12, FREE, 0xffff_8000_0000_1000).dpl(3));
    machine.gdt(FREE, code_64(0));
    let before = machine.clone();
    assert_eq!(go(&mut machine, true, GATE | 3, 0), Ok(Outcome::Done));
    assert_eq!(machine.stack(8, 4), [CODE + 7, CODE_3.into(), STACK_3, DATA_3.into()]);
    assert_eq!((machine.rip, machine.gprs[4]), (0xffff_8000_0000_1000, STACK_0 - 32));
    assert_eq!((machine.selector(Segment::Ss), machine.cpl()), (0, 0));
    assert!(machine.segment(Segment::Ss).rights.is_unusable());
    let mut compatible = before.clone();
    compatible.gdt(FREE, code(0));
    refused(&compatible, gp(FREE), true, GATE | 3, 0);
    let mut far_stack = before.clone();
    far_stack.poke(TSS + 4, &0x8000_0000_0010u64.to_le_bytes());
    refused(&far_stack, stack_fault(0), true, GATE | 3, 0);
    let mut short = before;
    short.tr.limit = 10;
    refused(&short, ts(TSS_SELECTOR), true, GATE | 3, 0);
}

#[test]
fn refusals_of_a_call_gate_in_their_order() {
    let gate = gate(12, FREE, TARGET);
    refused(&with_gate(3, gate.absent(), data(0)), np(GATE), true, GATE | 3, 0);
    let mut nowhere = with_gate(3, gate, code(0));
    nowhere.gdt(GATE, crate::machine::gate(12, 3, TARGET).dpl(3));
    refused(&nowhere, gp(0), true, GATE | 3, 0);
    refused(&with_gate(3, gate, data(0)), gp(FREE), true, GATE | 3, 0);
    refused(&with_gate(3, gate, code(0).absent()), np(FREE), true, GATE | 3, 0);
    let machine = with_gate(3, gate, code(0).limit(TARGET - 1));
    refused(&machine, gp(0), true, GATE | 3, 0);

    // The stack of the inner ring is looked at before the entry point.
    let stack = |selector: u16, entry: Option<Entry>| {
        let mut machine = machine.clone();
        machine.poke(TSS + 8, &selector.to_le_bytes());
        if let Some(entry) = entry {
            machine.gdt(FREE_2, entry);
        }
        machine
    };
    for (machine, error) in [
        (stack(0, None), ts(0)),
        (stack(BEYOND, None), ts(BEYOND)),
        (stack(FREE_2 | 1, Some(data(0))), ts(FREE_2)),
        (stack(FREE_2, Some(data(1))), ts(FREE_2)),
        (stack(FREE_2, Some(data(0).closed())), ts(FREE_2)),
        (stack(FREE_2, Some(code(0))), ts(FREE_2)),
        (stack(FREE_2, Some(data(0).absent())), stack_fault(FREE_2)),
        (stack(FREE_2, Some(data(0).limit(STACK_0 - 2))), stack_fault(FREE_2)),
        (stack(FREE_2, Some(data(0))), gp(0)),
    ] {
        refused(&machine, error, true, GATE | 3, 0);
    }
    let mut short = machine.clone();
    short.tr.limit = 8;
    refused(&short, ts(TSS_SELECTOR), true, GATE | 3, 0);
}

#[test]
fn page_faults_on_the_way_through_a_call_gate_change_nothing() {
    let mut machine = with_gate(3, gate(12, FREE, TARGET).with(1), code(0));
    machine.gdt(DATA_0, data(0));
    for (page, write, gva, privilege) in [
        (STACK_0 - 4, true, STACK_0 - 4, Privilege::Explicit(0)),
        (STACK_3, false, STACK_3, Privilege::Explicit(3)),
        (GDT, true, GDT + u64::from(FREE) + 5, Privilege::Implicit),
    ] {
        let mut machine = machine.clone();
        if page == GDT {
            machine.read_only.insert(page >> 12);
        } else {
            machine.absent.insert(page >> 12);
        }
        refused(&machine, Error::Fault(PageFault { gva, write, privilege }), true, GATE | 3, 0);
    }
}

#[test]
fn a_far_transfer_leaves_the_flags_but_rf() {
    let mut machine = Machine::protected(0);
    machine.rflags = 2 | IF | NT | crate::machine::RF;
    assert_eq!(go(&mut machine, true, CODE_0, TARGET), Ok(Outcome::Done));
    assert_eq!((machine.rflags, machine.gpr(Gpr::Rsp)), (2 | IF | NT, STACK_0 - 8));
}

#[test]
fn ring_3_checks_the_alignment_of_its_stack() {
    const AM: u64 = 1 << 18;
    const AC: u64 = 1 << 18;
    let mut machine = Machine::protected(3);
    machine.gprs[4] -= 2;
    machine.cr0 |= AM;
    machine.rflags |= AC;
    let unaligned = Error::Exception(Exception::ALIGNMENT_CHECK);
    refused(&machine, unaligned, true, CODE_3, TARGET);
    machine.rflags &= !AC;
    assert_eq!(go(&mut machine, true, CODE_3, TARGET), Ok(Outcome::Done));
    let mut machine = Machine::protected(0);
    machine.gprs[4] -= 2;
    machine.cr0 |= AM;
    machine.rflags |= AC;
    assert_eq!(go(&mut machine, true, CODE_0, TARGET), Ok(Outcome::Done), "ring 0 does not");
}
