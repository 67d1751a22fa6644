//! Far JMP and CALL (SDM volume 2, "CALL—Call Procedure" and "JMP—Jump").

use crate::flags::VM;
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::code::Code;
use crate::system::descriptor::{Descriptor, Kind, Selector};
use crate::system::inner;
use crate::system::load;
use crate::system::stack::{Frame, Stack};
use crate::system::table::{self, is_long};
use crate::system::task::{self, Source};
use crate::width::Width;
use crate::{Exception, Gpr, Outcome, Segment};

const GP: Exception = Exception::GENERAL_PROTECTION;

/// JMP or CALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    Jmp,
    Call,
}

/// Goes to `selector`:`offset`. CALL pushes `next_rip`; `width` is that of the operand.
pub(crate) fn transfer<C: SystemCpu>(
    cpu: &mut C,
    transfer: Transfer,
    (selector, offset): (Selector, u64),
    width: Width,
    next_rip: u64,
) -> Result<Outcome, C> {
    if cpu.rflags() & VM != 0 {
        return virtual_8086(cpu, transfer, (selector, offset), width, next_rip);
    }
    if selector.is_null() {
        return Err(GP.into());
    }
    let descriptor = table::descriptor(cpu, selector, GP)?;
    let refused = GP.with(selector.error_code());
    match descriptor.kind(is_long(cpu)) {
        Kind::Code => {
            let code = Code::direct(cpu, selector, descriptor)?;
            same_level(cpu, transfer, &code, offset, width, next_rip)
        }
        Kind::CallGate(width) => {
            check_gate::<C>(cpu, selector, &descriptor)?;
            call_gate(cpu, transfer, (selector, descriptor), width, next_rip)
        }
        Kind::TaskGate => {
            check_gate::<C>(cpu, selector, &descriptor)?;
            check_present::<C>(selector, &descriptor)?;
            task::switch(cpu, descriptor.gate_selector(), source(transfer), next_rip)?;
            Ok(Outcome::Transferred)
        }
        Kind::Tss { busy: false, .. } if !is_long(cpu) => {
            check_gate::<C>(cpu, selector, &descriptor)?;
            task::switch(cpu, selector, source(transfer), next_rip)?;
            Ok(Outcome::Transferred)
        }
        _ => Err(refused.into()),
    }
}

fn source(transfer: Transfer) -> Source {
    match transfer {
        Transfer::Jmp => Source::Jmp,
        Transfer::Call => Source::Call,
    }
}

/// Whether CPL and RPL reach a gate or a TSS.
fn check_gate<C: SystemCpu>(cpu: &C, selector: Selector, descriptor: &Descriptor) -> Result<(), C> {
    let dpl = descriptor.rights().dpl();
    if dpl < cpu.cpl() || dpl < selector.rpl() {
        return Err(GP.with(selector.error_code()).into());
    }
    Ok(())
}

fn check_present<C: SystemCpu>(selector: Selector, descriptor: &Descriptor) -> Result<(), C> {
    if descriptor.rights().is_present() {
        Ok(())
    } else {
        Err(Exception::NOT_PRESENT.with(selector.error_code()).into())
    }
}

fn virtual_8086<C: SystemCpu>(
    cpu: &mut C,
    transfer: Transfer,
    (selector, offset): (Selector, u64),
    width: Width,
    next_rip: u64,
) -> Result<Outcome, C> {
    let stack = Stack::current(cpu);
    let frame = return_address(cpu, width, next_rip);
    if transfer == Transfer::Call {
        frame.check_room::<C>(&stack)?;
    }
    let segment = load::virtual_8086(selector);
    if offset > u64::from(segment.limit) {
        return Err(GP.into());
    }
    if transfer == Transfer::Call {
        frame.probe(cpu, &stack)?;
        frame.write(cpu, &stack)?.load_pointer(cpu);
    }
    cpu.set_segment(Segment::Cs, segment);
    cpu.set_rip(offset);
    Ok(Outcome::Done)
}

fn return_address<C: SystemCpu>(cpu: &C, width: Width, next_rip: u64) -> Frame {
    let mut frame = Frame::new(width);
    frame.push_all(&[cpu.segment(Segment::Cs).selector.into(), next_rip]);
    frame
}

/// To code at the same privilege level, on the same stack.
fn same_level<C: SystemCpu>(
    cpu: &mut C,
    transfer: Transfer,
    code: &Code,
    offset: u64,
    width: Width,
    next_rip: u64,
) -> Result<Outcome, C> {
    let mut stack = Stack::current(cpu);
    if code.is_64(cpu) {
        stack.width = Width::Qword;
        stack.pointer = cpu.gpr(Gpr::Rsp);
    }
    let frame = return_address(cpu, width, next_rip);
    if transfer == Transfer::Call {
        frame.check_room::<C>(&stack)?;
    }
    code.check_target(cpu, offset)?;
    if transfer == Transfer::Call {
        frame.probe(cpu, &stack)?;
    }
    table::mark_accessed(cpu, &code.descriptor)?;
    if transfer == Transfer::Call {
        frame.write(cpu, &stack)?.load_pointer(cpu);
    }
    code.load(cpu);
    cpu.set_rip(offset);
    Ok(Outcome::Done)
}

fn call_gate<C: SystemCpu>(
    cpu: &mut C,
    transfer: Transfer,
    (gate_selector, mut gate): (Selector, Descriptor),
    width: Width,
    next_rip: u64,
) -> Result<Outcome, C> {
    if is_long(cpu) {
        table::read_upper_half(cpu, gate_selector, &mut gate, GP)?;
    }
    check_present::<C>(gate_selector, &gate)?;
    let selector = gate.gate_selector();
    let refused = GP.with(selector.error_code());
    let descriptor = Code::find(cpu, selector)?;
    let (rights, cpl) = (descriptor.rights(), cpu.cpl());
    // A 64-bit call gate leads to 64-bit code alone.
    if is_long(cpu) && !rights.is_long() {
        return Err(refused.into());
    }
    let reached = match transfer {
        Transfer::Call => rights.dpl() <= cpl,
        Transfer::Jmp if rights.is_conforming() => rights.dpl() <= cpl,
        Transfer::Jmp => rights.dpl() == cpl,
    };
    if !reached {
        return Err(refused.into());
    }
    let inner = !rights.is_conforming() && rights.dpl() < cpl;
    let new_cpl = if inner { rights.dpl() } else { cpl };
    let code = Code { selector, descriptor, cpl: new_cpl }.present::<C>()?;
    let offset = gate.gate_offset(width);
    if inner {
        more_privilege(cpu, &gate, &code, offset, width, next_rip)
    } else {
        same_level(cpu, transfer, &code, offset, width, next_rip)
    }
}

/// CALL to an inner ring: SS:SP, parameters and CS:IP go to the stack that the TSS has for it.
fn more_privilege<C: SystemCpu>(
    cpu: &mut C,
    gate: &Descriptor,
    code: &Code,
    offset: u64,
    width: Width,
    next_rip: u64,
) -> Result<Outcome, C> {
    let new = inner::stack(cpu, code.cpl)?;
    let old = Stack::current(cpu);
    let mut frame = Frame::new(width);
    frame.push_all(&[old.segment.selector.into(), cpu.gpr(Gpr::Rsp)]);
    // Room is checked before the parameters are read.
    let parameters = if width == Width::Qword { 0 } else { gate.gate_parameters() };
    let mut room = Frame::new(width);
    (0..parameters + 4).for_each(|_| room.push(0));
    room.check_room::<C>(&new.stack)?;
    code.check_target(cpu, offset)?;
    for number in (0..parameters).rev() {
        frame.push(old.read(cpu, number * width.bytes() as u64, width)?);
    }
    frame.push_all(&[cpu.segment(Segment::Cs).selector.into(), next_rip]);
    frame.probe(cpu, &new.stack)?;
    if let Some(descriptor) = &new.descriptor {
        table::probe_accessed(cpu, &code.descriptor)?;
        table::mark_accessed(cpu, descriptor)?;
    }
    table::mark_accessed(cpu, &code.descriptor)?;
    let below = frame.write(cpu, &new.stack)?;
    code.load(cpu);
    new.load(cpu);
    below.load_pointer(cpu);
    cpu.set_rip(offset);
    Ok(Outcome::Done)
}
