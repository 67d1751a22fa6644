//! Hardware task switches (SDM volume 3, "Task Switching").

use crate::flags::NT;
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::code::Code;
use crate::system::descriptor::{Descriptor, Kind, Selector};
use crate::system::load;
use crate::system::stack::{Frame, Stack};
use crate::system::table;
use crate::system::tss::{Task, Tss};
use crate::width::Width;
use crate::{Cpu, DescriptorTable, Error, Exception, Gpr, Segment, SystemSegment};

const TS: Exception = Exception::INVALID_TSS;
const PG: u64 = 1 << 31;

/// What asks for a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// JMP to a TSS or a task gate.
    Jmp,
    /// CALL of one.
    Call,
    /// IRET with RFLAGS.NT set.
    Iret,
    /// An event through a task gate in the IDT. For this one [`deliver`](crate::deliver) is the way
    /// in, which adds EXT to the error codes.
    Gate {
        /// What the event pushes on the new task's stack.
        error_code: Option<u32>,
    },
}

/// Switches to the task whose TSS `selector` names; the old one goes on at `next_rip`. That CPL may
/// reach the TSS, or the gate that leads to it, is checked already, and IA-32e mode is not active.
///
/// # Errors
/// What to deliver. If the new TSS itself was refused, nothing was changed. Otherwise the switch is
/// done, the exception belongs to the new task, and segment registers that were not loaded are
/// unusable.
pub fn task_switch<C: SystemCpu>(
    cpu: &mut C,
    selector: u16,
    source: Source,
    next_rip: u64,
) -> core::result::Result<(), Error<<C as Cpu>::Fault>> {
    switch(cpu, Selector(selector), source, next_rip)
}

pub(crate) fn switch<C: SystemCpu>(
    cpu: &mut C,
    selector: Selector,
    source: Source,
    next_rip: u64,
) -> Result<(), C> {
    let nests = matches!(source, Source::Call | Source::Gate { .. });
    let (descriptor, new) = incoming(cpu, selector, source)?;
    let (tr, old) = outgoing(cpu)?;
    // All of the memory that the switch touches, before it changes anything.
    let task = new.read(cpu)?;
    old.probe_save(cpu)?;
    if nests {
        new.probe_link(cpu)?;
    }
    let gdt = cpu.descriptor_table(DescriptorTable::Gdt).base;
    let old_descriptor = gdt.wrapping_add(Selector(tr).offset());
    let released = (!nests).then_some(old_descriptor);
    let taken = (source != Source::Iret).then_some(descriptor.gva);
    for gva in [released, taken].into_iter().flatten() {
        table::probe(cpu, gva.wrapping_add(Descriptor::TYPE_BYTE), 1, TS)?;
    }

    if let Some(gva) = released {
        table::mark_busy(cpu, gva, false)?;
    }
    let rflags = cpu.rflags();
    let saved = if source == Source::Iret { rflags & !NT } else { rflags };
    old.save(cpu, next_rip, saved)?;
    if nests {
        new.link(cpu, tr)?;
    }
    if let Some(gva) = taken {
        table::mark_busy(cpu, gva, true)?;
    }

    cpu.set_system_segment(SystemSegment::Tr, load::busy(&descriptor, selector));
    cpu.set_task_switched(true);
    cpu.clear_local_breakpoints();
    load_registers(cpu, &task, nests)?;
    load_segments(cpu, &task)?;
    start(cpu, new.width, source)?;
    if task.trap {
        cpu.trap_task_switch();
    }
    Ok(())
}

/// The new TSS, if it can be switched to.
fn incoming<C: SystemCpu>(
    cpu: &mut C,
    selector: Selector,
    source: Source,
) -> Result<(Descriptor, Tss), C> {
    let returns = source == Source::Iret;
    let fault = if returns { TS } else { Exception::GENERAL_PROTECTION };
    let error_code = selector.error_code();
    if selector.is_local() || selector.is_null() {
        return Err(fault.with(error_code).into());
    }
    let descriptor = table::descriptor(cpu, selector, fault)?;
    let width = match descriptor.kind(false) {
        Kind::Tss { width, busy } if busy == returns => width,
        _ => return Err(fault.with(error_code).into()),
    };
    if !descriptor.rights().is_present() {
        return Err(Exception::NOT_PRESENT.with(error_code).into());
    }
    let tss = Tss { width, base: descriptor.base(), bad: TS.with(error_code) };
    if descriptor.limit() < tss.least_limit() {
        return Err(tss.bad.into());
    }
    Ok((descriptor, tss))
}

/// The selector of the current TSS, and the TSS itself, which must have room for the state.
fn outgoing<C: SystemCpu>(cpu: &C) -> Result<(u16, Tss), C> {
    const BUSY_16: u8 = 3;
    let tr = cpu.system_segment(SystemSegment::Tr);
    let width = if tr.rights.kind() == BUSY_16 { Width::Word } else { Width::Dword };
    let tss = Tss { width, base: tr.base, bad: TS.with(Selector(tr.selector).error_code()) };
    if tr.limit < tss.least_limit() { Err(tss.bad.into()) } else { Ok((tr.selector, tss)) }
}

/// Loads everything but the descriptors of the segments, which are unusable until they are checked.
fn load_registers<C: SystemCpu>(cpu: &mut C, task: &Task, nests: bool) -> Result<(), C> {
    for (gpr, value) in Gpr::ALL.into_iter().zip(task.gprs) {
        cpu.set_gpr(gpr, value);
    }
    cpu.set_rip(task.rip);
    cpu.set_rflags(if nests { task.rflags | NT } else { task.rflags });
    let cpl = if task.is_virtual_8086() { 3 } else { task.segment(Segment::Cs).rpl() };
    for segment in Segment::ALL {
        let dpl = if segment == Segment::Ss { cpl } else { 0 };
        cpu.set_segment(segment, load::null(task.segment(segment), dpl));
    }
    cpu.set_system_segment(SystemSegment::Ldtr, load::null(task.ldt, 0));
    match task.cr3 {
        Some(cr3) if cpu.cr0() & PG != 0 => cpu.load_task_cr3(cr3).map_err(Error::Exception),
        _ => Ok(()),
    }
}

/// Loads the segments, in the order of SDM volume 3, "Exception Conditions Checked During a Task
/// Switch".
fn load_segments<C: SystemCpu>(cpu: &mut C, task: &Task) -> Result<(), C> {
    load_local_table(cpu, task.ldt)?;
    if task.is_virtual_8086() {
        for segment in Segment::ALL {
            cpu.set_segment(segment, load::virtual_8086(task.segment(segment)));
        }
        return Ok(());
    }
    let cpl = cpu.cpl();
    let selector = task.segment(Segment::Cs);
    let (descriptor, bad) = find(cpu, selector)?;
    let rights = descriptor.rights();
    let fits = if rights.is_conforming() { rights.dpl() <= cpl } else { rights.dpl() == cpl };
    if !rights.is_code() || !fits {
        return Err(bad.into());
    }
    let code = Code { selector, descriptor, cpl }.present::<C>()?;
    table::mark_accessed(cpu, &descriptor)?;
    code.load(cpu);

    let selector = task.segment(Segment::Ss);
    let (descriptor, bad) = find(cpu, selector)?;
    let rights = descriptor.rights();
    if !rights.is_writable() {
        return Err(bad.into());
    }
    if !rights.is_present() {
        return Err(Exception::STACK_FAULT.with(selector.error_code()).into());
    }
    if rights.dpl() != cpl || selector.rpl() != cpl {
        return Err(bad.into());
    }
    table::mark_accessed(cpu, &descriptor)?;
    cpu.set_segment(Segment::Ss, descriptor.register(selector));

    for segment in [Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs] {
        let selector = task.segment(segment);
        if !selector.is_null() {
            let (descriptor, _) = find(cpu, selector)?;
            load::check_data::<C>(selector, &descriptor, cpl, TS)?;
            table::mark_accessed(cpu, &descriptor)?;
            cpu.set_segment(segment, descriptor.register(selector));
        }
    }
    Ok(())
}

fn find<C: SystemCpu>(cpu: &mut C, selector: Selector) -> Result<(Descriptor, Exception), C> {
    let bad = TS.with(selector.error_code());
    if selector.is_null() {
        return Err(bad.into());
    }
    Ok((table::descriptor(cpu, selector, TS)?, bad))
}

fn load_local_table<C: SystemCpu>(cpu: &mut C, selector: Selector) -> Result<(), C> {
    if selector.is_null() {
        return Ok(());
    }
    let bad = TS.with(selector.error_code());
    if selector.is_local() {
        return Err(bad.into());
    }
    let descriptor = table::descriptor(cpu, selector, TS)?;
    if descriptor.kind(false) != Kind::Ldt || !descriptor.rights().is_present() {
        return Err(bad.into());
    }
    cpu.set_system_segment(SystemSegment::Ldtr, descriptor.register(selector));
    Ok(())
}

/// What the instruction or the delivery does after the switch: the error code is pushed, EIP is
/// checked.
fn start<C: SystemCpu>(cpu: &mut C, width: Width, source: Source) -> Result<(), C> {
    if let Source::Gate { error_code: Some(error_code) } = source {
        let stack = Stack::current(cpu);
        let mut frame = Frame::new(width);
        frame.push(error_code.into());
        frame.check_room::<C>(&stack)?;
        frame.probe(cpu, &stack)?;
        frame.write(cpu, &stack)?.load_pointer(cpu);
    }
    if cpu.rip() > u64::from(cpu.segment(Segment::Cs).limit) {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    Ok(())
}
