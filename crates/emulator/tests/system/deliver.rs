//! Delivery of events through the IDT.

use umbra_emulator::{Cpu, Error, Event, EventKind, Mode, Outcome, Privilege, Segment, deliver};

use crate::machine::{
    BEYOND, CODE, CODE_0, CODE_3, DATA_0, DATA_3, Entry, FREE, FREE_2, GDT, IDT, IF, IOPL_3,
    Machine, NT, PageFault, RF, STACK_0, STACK_3, STACK_IST, TARGET, TF, TSS, TSS_SELECTOR,
    UNUSABLE, VM, code, code_64, data, gate, gp, np, refuses, stack_fault, system, ts,
};

const VECTOR: u8 = 0x21;
const IN_IDT: u16 = 0x21 << 3 | 2;

fn event(kind: EventKind, error_code: Option<u32>) -> Event {
    Event { kind, vector: VECTOR, error_code, return_rip: CODE + 2 }
}

fn interrupt() -> Event {
    event(EventKind::Interrupt, None)
}

fn with_gate(mut machine: Machine, gate: Entry) -> Machine {
    machine.idt(VECTOR, gate);
    machine
}

#[track_caller]
fn refused(machine: &Machine, error: Error<PageFault>) {
    refuses(machine, error, |m| deliver(m, interrupt()));
}

#[test]
fn within_the_same_ring() {
    for (kind, width, cleared) in [(14, 4, IF), (15, 4, 0), (6, 2, IF), (7, 2, 0)] {
        for error_code in [None, Some(0xabcd)] {
            let entry = if width == 4 { TARGET } else { 0x1234 };
            let mut machine = with_gate(Machine::protected(0), gate(kind, CODE_0, entry));
            machine.rflags |= TF | NT | RF;
            let old = machine.rflags;
            assert_eq!(deliver(&mut machine, event(EventKind::Exception, error_code)), Ok(()));
            let mask = if width == 4 { u64::MAX } else { 0xffff };
            let mut frame: Vec<u64> = error_code.into_iter().map(u64::from).collect();
            frame.extend([(CODE + 2) & mask, CODE_0.into(), old & mask]);
            assert_eq!(machine.stack(width, frame.len()), frame);
            assert_eq!(machine.gprs[4], STACK_0 - (width * frame.len()) as u64);
            assert_eq!((machine.rip, machine.rflags), (entry, old & !(TF | NT | RF | cleared)));
        }
    }
}

#[test]
fn to_an_inner_ring() {
    for (kind, width) in [(14, 4), (6, 2)] {
        let entry = if width == 4 { TARGET } else { 0x1234 };
        let mut machine = with_gate(Machine::protected(3), gate(kind, CODE_0, entry));
        assert_eq!(deliver(&mut machine, event(EventKind::Exception, Some(7))), Ok(()));
        let mask = if width == 4 { u64::MAX } else { 0xffff };
        let frame =
            [7, CODE + 2, CODE_3.into(), 2 | IF, STACK_3, DATA_3.into()].map(|value| value & mask);
        assert_eq!(machine.stack(width, 6), frame);
        assert_eq!(machine.gprs[4], STACK_0 - 6 * width as u64);
        assert_eq!((machine.cpl(), machine.rip, machine.rflags), (0, entry, 2));
        assert_eq!(
            (machine.selector(Segment::Cs), machine.selector(Segment::Ss)),
            (CODE_0, DATA_0)
        );
        assert!(machine.writes.iter().all(|(_, privilege)| *privilege == Privilege::Explicit(0)));
    }
}

#[test]
fn a_16_bit_tss_has_stacks_too() {
    let mut machine = with_gate(Machine::protected(3), gate(14, CODE_0, TARGET));
    machine.tr.rights.0 = 0x83;
    machine.tr.limit = 0x2b;
    machine.poke_all(TSS + 2, 2, &[STACK_0, DATA_0.into()]);
    assert_eq!(deliver(&mut machine, interrupt()), Ok(()));
    assert_eq!(machine.gprs[4], STACK_0 - 20);
    machine = with_gate(Machine::protected(3), gate(14, CODE_0, TARGET));
    machine.tr.rights.0 = 0x83;
    machine.tr.limit = 4;
    refused(&machine, ts(TSS_SELECTOR | 1));
}

#[test]
fn conforming_handlers_run_in_the_interrupted_ring() {
    let mut machine = with_gate(Machine::protected(3), gate(14, FREE, TARGET));
    machine.gdt(FREE, code(0).conforming());
    assert_eq!(deliver(&mut machine, interrupt()), Ok(()));
    assert_eq!((machine.cpl(), machine.selector(Segment::Cs)), (3, FREE | 3));
    assert_eq!(machine.gprs[4], STACK_3 - 12);
}

#[test]
fn in_ia_32e_mode() {
    const HANDLER: u64 = 0xffff_8000_0000_1000;
    for (machine, ss, rsp) in [
        (Machine::long(3), DATA_3, STACK_0),
        (Machine::compatible(3), DATA_3, STACK_0),
        (Machine::long(0), DATA_0, STACK_0),
    ] {
        for (ist, error_code) in [(0, None), (0, Some(9)), (1, None), (1, Some(9))] {
            let mut machine = with_gate(machine.clone(), gate(14, CODE_0, HANDLER).with(ist));
            machine.gprs[4] -= 3;
            let (old, cs) = (machine.gprs[4], machine.selector(Segment::Cs));
            let inner = machine.cpl() != 0;
            assert_eq!(deliver(&mut machine, event(EventKind::Exception, error_code)), Ok(()));
            let mut frame: Vec<u64> = error_code.into_iter().map(u64::from).collect();
            frame.extend([CODE + 2, cs.into(), 2 | IF, old, ss.into()]);
            assert_eq!(machine.stack(8, frame.len()), frame);
            let top = match (ist, inner) {
                (1, _) => STACK_IST,
                (_, true) => rsp,
                (_, false) => old & !15,
            };
            assert_eq!(machine.gprs[4], top - 8 * frame.len() as u64);
            assert_eq!((machine.mode(), machine.cpl(), machine.rip), (Mode::Bits64, 0, HANDLER));
            assert_eq!(machine.selector(Segment::Ss), if inner { 0 } else { ss });
        }
    }
}

#[test]
fn refusals_in_ia_32e_mode() {
    let machine = with_gate(Machine::long(3), gate(14, CODE_0, TARGET));
    for kind in [5, 6, 7, 12] {
        refused(&with_gate(machine.clone(), gate(kind, CODE_0, TARGET)), gp(IN_IDT | 1));
    }
    let mut changed = machine.clone();
    changed.gdt(CODE_0, code(0));
    refused(&changed, gp(CODE_0 | 1));
    refused(&with_gate(machine.clone(), gate(14, CODE_0, 0x8000_0000_0000)), gp(1));
    let mut changed = machine.clone();
    changed.poke(TSS + 4, &0x8000_0000_0010u64.to_le_bytes());
    refused(&changed, stack_fault(1));
    let mut changed = machine.clone();
    changed.tr.limit = 10;
    refused(&changed, ts(TSS_SELECTOR | 1));
    let mut changed = with_gate(machine.clone(), gate(14, CODE_0, TARGET).with(7));
    changed.tr.limit = 0x5a;
    refused(&changed, ts(TSS_SELECTOR | 1));
    let mut changed = machine;
    changed.idtr.limit = u16::from(VECTOR) * 16 + 14;
    refused(&changed, gp(IN_IDT | 1));
}

#[test]
fn refusals_in_their_order() {
    let machine = with_gate(Machine::protected(3), gate(14, FREE, TARGET));
    let set = |entry: Entry| {
        let mut machine = machine.clone();
        machine.gdt(FREE, entry);
        machine
    };
    let mut beyond = set(code(0));
    beyond.idtr.limit = u16::from(VECTOR) * 8 + 6;
    refused(&beyond, gp(IN_IDT | 1));
    for kind in [0, 4, 12, 9] {
        refused(&with_gate(set(code(0)), gate(kind, FREE, TARGET)), gp(IN_IDT | 1));
    }
    refused(&with_gate(set(code(0)), gate(14, FREE, TARGET).absent()), np(IN_IDT | 1));
    refused(&with_gate(set(code(0)), gate(14, 3, TARGET)), gp(1));
    refused(&with_gate(set(code(0)), gate(14, BEYOND, TARGET)), gp(BEYOND | 1));
    refused(&set(data(0)), gp(FREE | 1));
    refused(&set(code(0).absent()), np(FREE | 1));
    let mut kernel = with_gate(Machine::protected(0), gate(14, FREE, TARGET));
    kernel.gdt(FREE, code(3));
    refused(&kernel, gp(FREE | 1));

    let stack = |selector: u16, entry: Entry| {
        let mut machine = set(code(0).limit(TARGET - 1));
        machine.poke(TSS + 8, &selector.to_le_bytes());
        machine.gdt(FREE_2, entry);
        machine
    };
    for (machine, error) in [
        (stack(3, data(0)), ts(1)),
        (stack(BEYOND, data(0)), ts(BEYOND | 1)),
        (stack(FREE_2 | 3, data(0)), ts(FREE_2 | 1)),
        (stack(FREE_2, data(3)), ts(FREE_2 | 1)),
        (stack(FREE_2, data(0).closed()), ts(FREE_2 | 1)),
        (stack(FREE_2, code(0)), ts(FREE_2 | 1)),
        (stack(FREE_2, system(2, 0, 0xff)), ts(FREE_2 | 1)),
        (stack(FREE_2, data(0).absent()), stack_fault(FREE_2 | 1)),
        (stack(FREE_2, data(0).limit(STACK_0 - 2)), stack_fault(FREE_2 | 1)),
        (stack(FREE_2, data(0)), gp(1)),
    ] {
        refused(&machine, error);
    }
    let mut short = set(code(0));
    short.tr.limit = 8;
    refused(&short, ts(TSS_SELECTOR | 1));
    let mut own = with_gate(Machine::protected(0), gate(14, CODE_0, TARGET));
    own.segments[2].limit = STACK_0 as u32 - 2;
    refused(&own, stack_fault(1));
}

#[test]
fn who_caused_the_event_shows_in_the_error_code() {
    let machine = with_gate(Machine::protected(0), gate(14, FREE, TARGET));
    for (kind, ext) in [
        (EventKind::Interrupt, 1),
        (EventKind::Nmi, 1),
        (EventKind::Exception, 1),
        (EventKind::PrivilegedSoftware, 1),
        (EventKind::Software, 0),
    ] {
        refuses(&machine, gp(FREE | ext), |m| deliver(m, event(kind, None)));
    }
}

#[test]
fn only_software_interrupts_look_at_the_privilege_of_the_gate() {
    for (kind, dpl, good) in [
        (EventKind::Software, 2, false),
        (EventKind::Software, 3, true),
        (EventKind::Interrupt, 0, true),
        (EventKind::Nmi, 0, true),
        (EventKind::Exception, 0, true),
        (EventKind::PrivilegedSoftware, 0, true),
    ] {
        let mut machine = with_gate(Machine::protected(3), gate(14, CODE_0, TARGET).dpl(dpl));
        if good {
            assert_eq!(deliver(&mut machine, event(kind, None)), Ok(()));
        } else {
            refuses(&machine, gp(IN_IDT), |m| deliver(m, event(kind, None)));
            machine.idt(VECTOR, gate(14, CODE_0, TARGET).dpl(dpl).absent());
            refuses(&machine, gp(IN_IDT), |m| deliver(m, event(kind, None)));
        }
    }
}

#[test]
fn software_interrupts_as_instructions() {
    let mut machine = Machine::protected(0);
    for vector in [1, 3, 4, VECTOR] {
        machine.idt(vector, gate(15, CODE_0, TARGET + u64::from(vector)));
    }
    machine.rflags |= 1 << 11 | RF;
    for (bytes, vector) in
        [(&[0xf1][..], 1), (&[0xcc], 3), (&[0xce], 4), (&[0xcd, VECTOR], u64::from(VECTOR))]
    {
        let mut machine = machine.clone();
        assert_eq!(machine.execute(bytes), Ok(Outcome::Transferred));
        assert_eq!(machine.rip, TARGET + vector);
        let flags = 2 | IF | 1 << 11;
        assert_eq!(
            machine.stack(4, 3),
            [CODE + bytes.len() as u64, CODE_0.into(), flags],
            "RF is clear"
        );
    }
    machine.rflags = 2;
    assert_eq!(machine.execute(&[0xce]), Ok(Outcome::Done), "INTO without overflow");
    assert_eq!(machine.rip, CODE + 1);
}

#[test]
fn from_virtual_8086_mode() {
    let mut machine = with_gate(Machine::virtual_8086(), gate(14, CODE_0, TARGET));
    assert_eq!(deliver(&mut machine, event(EventKind::Exception, Some(5))), Ok(()));
    let frame = [5, CODE + 2, 0x1000, 2 | IF | VM, 0x800, 0x200, 0x100, 0x300, 0x400, 0x500];
    assert_eq!(machine.stack(4, 10), frame);
    assert_eq!((machine.cpl(), machine.rflags), (0, 2));
    for segment in [Segment::Es, Segment::Ds, Segment::Fs, Segment::Gs] {
        assert_eq!(machine.segment(segment), UNUSABLE);
    }
    let mut machine = with_gate(Machine::virtual_8086(), gate(14, FREE, TARGET));
    for entry in [code(0).conforming(), code(3), code(1)] {
        machine.gdt(FREE, entry);
        refused(&machine, gp(FREE | 1));
    }
}

#[test]
fn int_n_in_virtual_8086_mode() {
    let int = |machine: &mut Machine| machine.execute(&[0xcd, VECTOR]);
    let mut machine = with_gate(Machine::virtual_8086(), gate(14, CODE_0, TARGET).dpl(3));
    refuses(&machine, gp(0), int);
    machine.rflags |= IOPL_3;
    assert_eq!(int(&mut machine.clone()), Ok(Outcome::Transferred));
    // With virtual-mode extensions a bitmap in the TSS says who handles it.
    machine.rflags &= !IOPL_3;
    machine.cr4 |= 1;
    machine.tr.limit = 0x200;
    machine.poke(TSS + 0x66, &0x88u16.to_le_bytes());
    machine.poke(u64::from(VECTOR) * 4, &[0x34, 0x12, 0x00, 0x07]);
    let mut own = machine.clone();
    assert_eq!(int(&mut own), Ok(Outcome::Transferred));
    assert_eq!((own.rip, own.selector(Segment::Cs), own.cpl()), (0x1234, 0x700, 3));
    assert_eq!(own.stack(2, 3), [0x12, 0x1000, 2 | IOPL_3], "IF as VIF is");
    machine.poke(TSS + 0x68 + u64::from(VECTOR) / 8, &[0xff]);
    refuses(&machine, gp(0), int);
    machine.rflags |= IOPL_3;
    assert_eq!(int(&mut machine), Ok(Outcome::Transferred));
    assert_eq!((machine.cpl(), machine.rip), (0, TARGET));
}

#[test]
fn page_faults_change_nothing() {
    let mut machine = with_gate(Machine::protected(3), gate(14, FREE, TARGET));
    machine.gdt(FREE, code(0));
    machine.gdt(DATA_0, data(0));
    for (gva, write, privilege) in [
        (IDT + u64::from(VECTOR) * 8, false, Privilege::Implicit),
        (GDT + u64::from(FREE), false, Privilege::Implicit),
        (GDT + u64::from(FREE) + 5, true, Privilege::Implicit),
        (TSS + 4, false, Privilege::Implicit),
        (STACK_0 - 4, true, Privilege::Explicit(0)),
    ] {
        let mut machine = machine.clone();
        if write && gva < TSS {
            machine.read_only.insert(gva >> 12);
        } else {
            machine.absent.insert(gva >> 12);
        }
        refused(&machine, Error::Fault(PageFault { gva, write, privilege }));
    }
    // A frame across two pages is written whole or not at all.
    let mut machine = with_gate(Machine::protected(0), gate(14, CODE_0, TARGET));
    machine.gprs[4] = 0x9008;
    machine.absent.insert(8);
    refused(
        &machine,
        Error::Fault(PageFault { gva: 0x8ffc, write: true, privilege: Privilege::Explicit(0) }),
    );
}

#[test]
fn any_rip_can_be_pushed() {
    let mut machine = with_gate(Machine::long(3), gate(14, CODE_0, TARGET));
    let rip = 0x8000_0000_0000;
    let event = Event { return_rip: rip, ..event(EventKind::Exception, Some(0)) };
    assert_eq!(deliver(&mut machine, event), Ok(()));
    assert_eq!(machine.stack(8, 2), [0, rip]);
}

#[test]
fn handlers_in_64_bit_code_of_ring_3() {
    let mut machine = with_gate(Machine::long(3), gate(14, FREE, TARGET));
    machine.gdt(FREE, code_64(3));
    assert_eq!(deliver(&mut machine, interrupt()), Ok(()));
    assert_eq!((machine.cpl(), machine.selector(Segment::Ss)), (3, DATA_3));
    // Its pushes are aligned always, so RFLAGS.AC does not matter.
    assert_eq!(machine.stack(8, 5), [CODE + 2, CODE_3.into(), 2 | IF, STACK_3, DATA_3.into()]);
}
