//! Far RET.

use umbra_emulator::{Cpu, Error, Mode, Outcome, Privilege, Segment};

use crate::machine::{
    BEYOND, CODE, CODE_0, CODE_3, DATA_0, DATA_3, FREE, FREE_2, Machine, PageFault, STACK_0,
    STACK_3, TARGET, Verdict, code, code_64, data, gp, np, refuses, stack_fault, v86,
};

fn retf(machine: &mut Machine) -> Verdict {
    machine.execute(&[0xcb])
}

/// A machine with this on its stack, in elements of 32 bits.
fn returning(cpl: u8, values: &[u64]) -> Machine {
    let mut machine = Machine::protected(cpl);
    machine.poke_all(machine.gprs[4], 4, values);
    machine
}

#[test]
fn code_segments_at_every_privilege_level() {
    for cpl in [0, 3] {
        for dpl in 0..4 {
            for rpl in 0..4 {
                for conforming in [false, true] {
                    let entry = if conforming { code(dpl).conforming() } else { code(dpl) };
                    let selector = FREE | u16::from(rpl);
                    let outer = [0xb00, u64::from(FREE_2) | u64::from(rpl)];
                    let mut machine =
                        returning(cpl, &[TARGET, selector.into(), outer[0], outer[1]]);
                    machine.gdt(FREE, entry);
                    machine.gdt(FREE_2, data(rpl));
                    let fits = if conforming { dpl <= rpl } else { dpl == rpl };
                    if rpl < cpl || !fits {
                        refuses(&machine, gp(FREE), retf);
                        continue;
                    }
                    let mut absent = machine.clone();
                    absent.gdt(FREE, entry.absent());
                    refuses(&absent, np(FREE), retf);
                    let top = machine.gprs[4];
                    assert_eq!(retf(&mut machine), Ok(Outcome::Done));
                    assert_eq!((machine.rip, machine.selector(Segment::Cs)), (TARGET, selector));
                    assert_eq!(machine.cpl(), rpl);
                    assert_eq!(machine.gprs[4], if rpl > cpl { outer[0] } else { top + 8 });
                }
            }
        }
    }
}

#[test]
fn refusals_in_their_order() {
    refuses(&returning(0, &[TARGET, 3]), gp(0), retf);
    refuses(&returning(0, &[TARGET, BEYOND.into()]), gp(BEYOND), retf);
    refuses(&returning(0, &[TARGET, DATA_0.into()]), gp(DATA_0), retf);
    let mut machine = returning(0, &[TARGET, FREE.into()]);
    machine.gdt(FREE, code(0).limit(TARGET - 1));
    refuses(&machine, gp(0), retf);
    machine.segments[2].limit = STACK_0 as u32 + 6;
    refuses(&machine, stack_fault(0), retf);

    let outer = |stack: u16| returning(0, &[TARGET, (FREE | 3).into(), 0xb00, stack.into()]);
    let mut machine = outer(FREE_2 | 3);
    machine.gdt(FREE, code(3).limit(TARGET - 1));
    machine.segments[2].limit = STACK_0 as u32 + 14;
    refuses(&machine, stack_fault(0), retf);
    for (stack, entry, error) in [
        (0, data(3), gp(0)),
        (3, data(3), gp(0)),
        (BEYOND | 3, data(3), gp(BEYOND)),
        (FREE_2, data(3), gp(FREE_2)),
        (FREE_2 | 3, data(0), gp(FREE_2)),
        (FREE_2 | 3, data(3).closed(), gp(FREE_2)),
        (FREE_2 | 3, code(3), gp(FREE_2)),
        (FREE_2 | 3, data(3).absent(), stack_fault(FREE_2)),
        (FREE_2 | 3, data(3), gp(0)),
    ] {
        let mut machine = outer(stack);
        machine.gdt(FREE, code(3).limit(TARGET - 1));
        machine.gdt(FREE_2, entry);
        refuses(&machine, error, retf);
    }
}

#[test]
fn parameters_are_released_on_both_stacks() {
    let mut machine = returning(0, &[TARGET, CODE_3.into(), 1, 2, 0xb00, DATA_3.into()]);
    assert_eq!(machine.step(|a| a.retf_1(8)), Ok(Outcome::Done));
    assert_eq!((machine.gprs[4], machine.selector(Segment::Ss)), (0xb08, DATA_3));
    let mut machine = returning(0, &[TARGET, CODE_0.into()]);
    assert_eq!(machine.step(|a| a.retf_1(8)), Ok(Outcome::Done));
    assert_eq!(machine.gprs[4], STACK_0 + 16);
}

#[test]
fn segments_of_the_inner_ring_are_taken_away() {
    let mut machine = returning(0, &[TARGET, CODE_3.into(), STACK_3, DATA_3.into()]);
    machine.segments[Segment::Ds as usize].rights.0 = 0xc0f3;
    machine.segments[Segment::Fs as usize].rights.0 = 0xc09f;
    machine.segments[Segment::Gs as usize].rights.0 = 0xc09b;
    assert_eq!(retf(&mut machine), Ok(Outcome::Done));
    let usable = [Segment::Es, Segment::Ds, Segment::Fs, Segment::Gs]
        .map(|segment| !machine.segment(segment).rights.is_unusable());
    assert_eq!(usable, [false, true, true, false], "DPL 3 and conforming code stay");
    assert_eq!(machine.selector(Segment::Es), 0);
}

#[test]
fn a_16_bit_stack_keeps_the_upper_half_of_esp() {
    let mut machine = returning(0, &[TARGET, CODE_3.into(), 0x1_b000, (FREE | 3).into()]);
    machine.gdt(FREE, data(3).bits_16());
    machine.gprs[4] |= 0xabcd_0000;
    machine.segments[2].base = 0x1_0000_0000 - 0xabcd_0000;
    assert_eq!(retf(&mut machine), Ok(Outcome::Done));
    assert_eq!(machine.gprs[4], 0xabcd_b000);
}

#[test]
fn in_ia_32e_mode() {
    let mut machine = Machine::long(0);
    machine.poke_all(STACK_0, 8, &[0xffff_8000_0000_0000, CODE_3.into(), STACK_3, DATA_3.into()]);
    assert_eq!(machine.execute(&[0x48, 0xcb]), Ok(Outcome::Done));
    assert_eq!((machine.rip, machine.gprs[4], machine.cpl()), (0xffff_8000_0000_0000, STACK_3, 3));

    // To compatibility mode, with 32-bit elements.
    let mut machine = Machine::long(0);
    machine.gdt(FREE, code(3));
    machine.poke_all(STACK_0, 4, &[TARGET, (FREE | 3).into(), STACK_3, DATA_3.into()]);
    let mut null_stack = machine.clone();
    assert_eq!(retf(&mut machine), Ok(Outcome::Done));
    assert_eq!((machine.mode(), machine.gprs[4]), (Mode::Bits32, STACK_3));
    null_stack.poke(STACK_0 + 12, &3u32.to_le_bytes());
    refuses(&null_stack, gp(0), retf);

    let mut machine = Machine::long(0);
    machine.poke_all(STACK_0, 8, &[0x8000_0000_0000, CODE_0.into()]);
    refuses(&machine, gp(0), |m| m.execute(&[0x48, 0xcb]));
    machine.gdt(FREE, code_64(0).reserved());
    machine.poke_all(STACK_0, 8, &[CODE, FREE.into()]);
    refuses(&machine, gp(FREE), |m| m.execute(&[0x48, 0xcb]));
    machine.gprs[4] = 0x8000_0000_0000 - 8;
    refuses(&machine, stack_fault(0), |m| m.execute(&[0x48, 0xcb]));
}

#[test]
fn a_null_stack_for_64_bit_code_of_an_inner_ring() {
    for (rpl, stack, good) in [(1, 1, true), (1, 0, false), (2, 2, true), (3, 3, false)] {
        let mut machine = Machine::long(0);
        machine.gdt(FREE, code_64(rpl));
        machine.poke_all(STACK_0, 8, &[TARGET, u64::from(FREE) | u64::from(rpl), 0xb00, stack]);
        if good {
            assert_eq!(machine.execute(&[0x48, 0xcb]), Ok(Outcome::Done));
            assert_eq!((machine.cpl(), u64::from(machine.selector(Segment::Ss))), (rpl, stack));
            assert!(machine.segment(Segment::Ss).rights.is_unusable());
        } else {
            refuses(&machine, gp(0), |m| m.execute(&[0x48, 0xcb]));
        }
    }
}

#[test]
fn virtual_8086_mode_and_page_faults() {
    let mut machine = Machine::virtual_8086();
    machine.poke_all(0x2800, 2, &[0x1234, 0x500]);
    assert_eq!(retf(&mut machine), Ok(Outcome::Done));
    assert_eq!(
        (machine.rip, machine.segment(Segment::Cs), machine.gprs[4]),
        (0x1234, v86(0x500), 0x804)
    );
    let mut machine = returning(3, &[TARGET, CODE_3.into()]);
    machine.absent.insert(STACK_3 >> 12);
    let fault = PageFault { gva: STACK_3 + 4, write: false, privilege: Privilege::Explicit(3) };
    refuses(&machine, Error::Fault(fault), retf);
}

#[test]
fn stacks_and_tables_do_not_wrap_at_the_end_of_the_address_space() {
    let mut machine = Machine::long(0);
    machine.gprs[4] = u64::MAX - 10;
    refuses(&machine, stack_fault(0), |m| m.execute(&[0x48, 0xcb]));
    machine = Machine::long(0);
    machine.poke_all(STACK_0, 8, &[TARGET, FREE.into()]);
    machine.gdtr.base = u64::MAX - u64::from(FREE) - 3;
    refuses(&machine, gp(FREE), |m| m.execute(&[0x48, 0xcb]));
}
