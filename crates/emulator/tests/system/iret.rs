//! IRET.

use umbra_emulator::{Cpu, Error, Mode, Outcome, Privilege, Segment};

use crate::machine::{
    BEYOND, CODE_0, CODE_3, DATA_0, DATA_3, FREE, FREE_2, IF, IOPL_3, Machine, NT, PageFault, RF,
    STACK_0, STACK_3, TARGET, TF, VM, Verdict, code, code_64, data, gp, np, refuses, stack_fault,
    v86,
};

/// IRETD, in 64-bit mode IRETQ.
fn iret(machine: &mut Machine) -> Verdict {
    match machine.mode() {
        Mode::Bits16 => machine.execute(&[0x66, 0xcf]),
        Mode::Bits32 => machine.execute(&[0xcf]),
        Mode::Bits64 => machine.execute(&[0x48, 0xcf]),
    }
}

fn returning(mut machine: Machine, values: &[u64]) -> Machine {
    let width = if machine.mode() == Mode::Bits64 { 8 } else { 4 };
    machine.poke_all(machine.gprs[4], width, values);
    machine
}

fn protected(cpl: u8, values: &[u64]) -> Machine {
    returning(Machine::protected(cpl), values)
}

#[test]
fn refusals_in_their_order() {
    let full = |selector: u16| protected(0, &[TARGET, selector.into(), 2]);
    refuses(&full(3), gp(0), iret);
    refuses(&full(BEYOND), gp(BEYOND), iret);
    refuses(&full(DATA_0), gp(DATA_0), iret);
    let mut machine = full(FREE);
    for (entry, error) in [
        (code(1), gp(FREE)),
        (code(1).conforming(), gp(FREE)),
        (code(0).absent(), np(FREE)),
        (code(0).limit(TARGET - 1), gp(0)),
    ] {
        machine.gdt(FREE, entry);
        refuses(&machine, error, iret);
    }
    machine.segments[2].limit = STACK_0 as u32 + 10;
    refuses(&machine, stack_fault(0), iret);
    refuses(&protected(3, &[TARGET, CODE_0.into(), 2]), gp(CODE_0), iret);

    let outer = |stack: u16| protected(0, &[TARGET, (FREE | 3).into(), 2, 0xb00, stack.into()]);
    for (stack, entry, error) in [
        (3, data(3), gp(0)),
        (FREE_2, data(3), gp(FREE_2)),
        (FREE_2 | 3, data(0), gp(FREE_2)),
        (FREE_2 | 3, data(3).closed(), gp(FREE_2)),
        (FREE_2 | 3, data(3).absent(), stack_fault(FREE_2)),
        (FREE_2 | 3, data(3), gp(0)),
    ] {
        let mut machine = outer(stack);
        machine.gdt(FREE, code(3).limit(TARGET - 1));
        machine.gdt(FREE_2, entry);
        refuses(&machine, error, iret);
    }
}

#[test]
fn which_flags_each_level_loads() {
    const ID: u64 = 1 << 21;
    const AC: u64 = 1 << 18;
    const VIF: u64 = 1 << 19;
    const VIP: u64 = 1 << 20;
    const ALL: u64 = 0x4dd5 | IF | IOPL_3 | RF | AC | ID | VIF | VIP;
    let always = 0x4dd5 | RF | AC | ID;
    for (cpl, iopl, loaded) in [(0, 0, ALL), (3, 0, always), (3, IOPL_3, always | IF)] {
        let cs = if cpl == 0 { CODE_0 } else { CODE_3 };
        // All set, from none.
        let mut machine = protected(cpl, &[TARGET, cs.into(), ALL | 2]);
        machine.rflags = 2 | iopl;
        assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
        assert_eq!(machine.rflags, 2 | iopl | loaded & ALL, "CPL {cpl}");
        assert!(!machine.nmis_blocked);
        // None set, from all but NT.
        let mut machine = protected(cpl, &[TARGET, cs.into(), 0]);
        machine.rflags = 2 | (ALL & !NT & !IOPL_3) | iopl;
        assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
        assert_eq!(machine.rflags, 2 | ((ALL & !NT & !IOPL_3) | iopl) & !loaded);
    }
    // 16-bit operands leave the upper half, but for RF, which has done its duty.
    let mut machine = Machine::protected(0);
    machine.poke_all(STACK_0, 2, &[0x1234, CODE_0.into(), IF | TF]);
    machine.rflags = 2 | AC | RF | VIP;
    assert_eq!(machine.execute(&[0x66, 0xcf]), Ok(Outcome::Transferred));
    assert_eq!((machine.rip, machine.rflags), (0x1234, 2 | AC | VIP | IF | TF));
}

#[test]
fn to_the_same_and_to_an_outer_ring() {
    let mut machine = protected(0, &[TARGET, CODE_0.into(), 2]);
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!((machine.rip, machine.gprs[4], machine.cpl()), (TARGET, STACK_0 + 12, 0));
    let mut machine = protected(0, &[TARGET, CODE_3.into(), 2 | IF, STACK_3, DATA_3.into()]);
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!((machine.rip, machine.gprs[4], machine.cpl()), (TARGET, STACK_3, 3));
    assert!(machine.segment(Segment::Ds).rights.is_unusable(), "ring 0's");
}

#[test]
fn code_of_64_bits_always_pops_its_stack() {
    let mut machine = returning(Machine::long(0), &[TARGET, CODE_0.into(), 2, 0xa000, 0]);
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!((machine.gprs[4], machine.selector(Segment::Ss), machine.cpl()), (0xa000, 0, 0));
    let mut machine =
        returning(Machine::long(0), &[TARGET, CODE_3.into(), 2, STACK_3, DATA_3.into()]);
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!((machine.mode(), machine.cpl()), (Mode::Bits64, 3));
    let mut machine =
        returning(Machine::long(0), &[TARGET, (FREE | 3).into(), 2, STACK_3, DATA_3.into()]);
    machine.gdt(FREE, code(3));
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!(machine.mode(), Mode::Bits32);
    // Compatibility code does not, for its own ring.
    let mut machine = returning(Machine::compatible(3), &[TARGET, CODE_3.into(), 2]);
    machine.gdt(CODE_3, code(3));
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!(machine.gprs[4], STACK_3 + 12);

    let machine = returning(Machine::long(0), &[0x8000_0000_0000, CODE_0.into(), 2, 0xa000, 0]);
    refuses(&machine, gp(0), iret);
    let mut machine = returning(Machine::long(0), &[TARGET, FREE.into(), 2, 0xa000, 0]);
    machine.gdt(FREE, code_64(0).reserved());
    refuses(&machine, gp(FREE), iret);
    let mut machine = returning(Machine::long(0), &[TARGET, CODE_0.into(), 2, 0xa000, 0]);
    machine.rflags |= NT;
    refuses(&machine, gp(0), iret);
    let machine =
        returning(Machine::long(0), &[TARGET, CODE_3.into(), VM | 2, STACK_3, DATA_3.into()]);
    let mut after = machine;
    assert_eq!(iret(&mut after), Ok(Outcome::Transferred));
    assert_eq!(after.rflags & VM, 0, "IA-32e mode has no virtual-8086 mode");
}

#[test]
fn to_virtual_8086_mode() {
    let frame = [0x1234, 0x100, 2 | VM | IF | IOPL_3, 0xb00, 0x200, 0x300, 0x400, 0x500, 0x600];
    let mut machine = protected(0, &frame);
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!((machine.rip, machine.gprs[4], machine.cpl()), (0x1234, 0xb00, 3));
    assert_eq!(machine.rflags, frame[2]);
    let order = [Segment::Cs, Segment::Ss, Segment::Es, Segment::Ds, Segment::Fs, Segment::Gs];
    let expected = [0x100, 0x200, 0x300, 0x400, 0x500, 0x600].map(v86);
    assert_eq!(order.map(|segment| machine.segment(segment)), expected);

    let mut machine = protected(0, &frame);
    machine.segments[2].limit = STACK_0 as u32 + 34;
    refuses(&machine, stack_fault(0), iret);
    let mut far = frame;
    far[0] = 0x1_0000;
    refuses(&protected(0, &far), gp(0), iret);
    // Only ring 0 can set VM.
    let mut machine = protected(3, &[TARGET, CODE_3.into(), 2 | VM]);
    assert_eq!(iret(&mut machine), Ok(Outcome::Transferred));
    assert_eq!(machine.rflags & VM, 0);
}

#[test]
fn within_virtual_8086_mode() {
    let frame =
        |machine: &mut Machine, width, values: &[u64]| machine.poke_all(0x2800, width, values);
    let mut machine = Machine::virtual_8086();
    frame(&mut machine, 2, &[0x1234, 0x500, TF]);
    refuses(&machine, gp(0), |m| m.execute(&[0xcf]));
    machine.rflags |= IOPL_3;
    assert_eq!(machine.execute(&[0xcf]), Ok(Outcome::Transferred));
    assert_eq!(
        (machine.rip, machine.segment(Segment::Cs), machine.gprs[4]),
        (0x1234, v86(0x500), 0x806)
    );
    assert_eq!(machine.rflags, 2 | VM | IOPL_3 | TF, "IF is loaded, IOPL and VM stay");

    // With virtual-mode extensions IF goes to VIF.
    const VIF: u64 = 1 << 19;
    const VIP: u64 = 1 << 20;
    let mut machine = Machine::virtual_8086();
    machine.cr4 |= 1;
    frame(&mut machine, 2, &[0x1234, 0x500, IF]);
    assert_eq!(machine.clone().execute(&[0xcf]), Ok(Outcome::Transferred));
    let mut pending = machine.clone();
    pending.rflags |= VIP;
    refuses(&pending, gp(0), |m| m.execute(&[0xcf]));
    refuses(&machine, gp(0), |m| m.execute(&[0x66, 0xcf]));
    assert_eq!(machine.execute(&[0xcf]), Ok(Outcome::Transferred));
    assert_eq!(machine.rflags, 2 | IF | VM | VIF);
    frame(&mut machine, 2, &[]);
    machine.gprs[4] = 0x800;
    machine.poke_all(0x2800, 2, &[0x1234, 0x500, TF]);
    refuses(&machine, gp(0), |m| m.execute(&[0xcf]));
}

#[test]
fn page_faults_change_nothing() {
    let mut machine = protected(0, &[TARGET, CODE_3.into(), 2, STACK_3, DATA_3.into()]);
    machine.gprs[4] = 0x9fec + 8;
    machine.poke_all(0x9ff4, 4, &[TARGET, CODE_3.into(), 2, STACK_3, DATA_3.into()]);
    machine.absent.insert(0xa);
    let fault = PageFault { gva: 0xa000, write: false, privilege: Privilege::Explicit(0) };
    refuses(&machine, Error::Fault(fault), iret);
}
