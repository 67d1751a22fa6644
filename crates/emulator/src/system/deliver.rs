//! Delivery of interrupts and exceptions through the IDT (SDM volume 3, "Exception and Interrupt
//! Handling in Protected Mode" and "in 64-Bit Mode"; volume 2, "INT n/INTO/INT3/INT1").

use crate::flags::{IF, IOPL, NT, RF, TF, VIF, VM};
use crate::segmentation::is_canonical;
use crate::step::Result;
use crate::system::code::Code;
use crate::system::descriptor::{Descriptor, Kind, Selector};
use crate::system::inner;
use crate::system::load;
use crate::system::stack::{Frame, Stack};
use crate::system::table::{self, is_long};
use crate::system::task::{self, Source};
use crate::system::{Privilege, SystemCpu};
use crate::width::Width;
use crate::{DescriptorTable, Error, Exception, Gpr, Segment, SystemSegment};

const GP: Exception = Exception::GENERAL_PROTECTION;

/// What kind of event is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An external interrupt.
    Interrupt,
    /// NMI. To block further ones is the embedder's.
    Nmi,
    /// An exception that the processor raised. CR2, DR6, DR7 and RFLAGS.RF are set already.
    Exception,
    /// INT n, INT3 or INTO.
    Software,
    /// INT1.
    PrivilegedSoftware,
}

/// An event to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What kind.
    pub kind: EventKind,
    /// The vector.
    pub vector: u8,
    /// The error code that is pushed, if one is.
    pub error_code: Option<u32>,
    /// The RIP that is pushed: any value, also one that is not canonical.
    pub return_rip: u64,
}

impl Event {
    /// EXT of error codes: the event was not caused by INT n, INT3 or INTO.
    fn ext(&self) -> u16 {
        u16::from(self.kind != EventKind::Software)
    }
}

/// Delivers an event: RIP is at the first instruction of its handler then.
///
/// # Errors
/// What to deliver instead, after it was combined with `event` (SDM volume 3, "Interrupt 8—Double
/// Fault Exception"). Nothing was changed, unless a task gate switched tasks: then the exception
/// belongs to the new task, and the processor's state may be one that only another delivery leads
/// out of.
pub fn deliver<C: SystemCpu>(
    cpu: &mut C,
    event: Event,
) -> core::result::Result<(), Error<<C as crate::Cpu>::Fault>> {
    through_gate(cpu, &event).map_err(|error| external(error, event.ext()))
}

/// Adds EXT to the error code of an exception.
fn external<F>(error: Error<F>, ext: u16) -> Error<F> {
    match error {
        Error::Exception(exception) if exception.vector != Exception::ALIGNMENT_CHECK.vector => {
            let error_code = exception.error_code.map(|code| code | ext);
            Error::Exception(Exception { error_code, ..exception })
        }
        other => other,
    }
}

fn through_gate<C: SystemCpu>(cpu: &mut C, event: &Event) -> Result<(), C> {
    let gate = gate(cpu, event)?;
    match gate.kind(is_long(cpu)) {
        Kind::TaskGate => {
            let source = Source::Gate { error_code: event.error_code };
            task::switch(cpu, gate.gate_selector(), source, event.return_rip)
        }
        Kind::InterruptGate(width) => enter(cpu, event, &gate, width, IF),
        Kind::TrapGate(width) => enter(cpu, event, &gate, width, 0),
        _ => Err(GP.with(gate_error(event)).into()),
    }
}

fn gate_error(event: &Event) -> u16 {
    const IDT: u16 = 2;
    u16::from(event.vector) << 3 | IDT
}

/// The gate of the event's vector, with privilege and presence checked.
fn gate<C: SystemCpu>(cpu: &mut C, event: &Event) -> Result<Descriptor, C> {
    let bad = GP.with(gate_error(event));
    let long = is_long(cpu);
    let size = if long { 16 } else { 8 };
    let idtr = cpu.descriptor_table(DescriptorTable::Idt);
    let offset = u64::from(event.vector) * size;
    if offset + size - 1 > u64::from(idtr.limit) {
        return Err(bad.into());
    }
    let gva = idtr.base.wrapping_add(offset);
    let mut gate = Descriptor { low: table::read_u64(cpu, gva, bad)?, high: 0, gva };
    if long {
        gate.high = u64::from(table::read_u32(cpu, gva.wrapping_add(8), bad)?);
    }
    let is_gate =
        matches!(gate.kind(long), Kind::TaskGate | Kind::InterruptGate(_) | Kind::TrapGate(_));
    let barred = event.kind == EventKind::Software && gate.rights().dpl() < cpu.cpl();
    if !is_gate || barred {
        return Err(bad.into());
    }
    if !gate.rights().is_present() {
        return Err(Exception::NOT_PRESENT.with(gate_error(event)).into());
    }
    Ok(gate)
}

/// Goes through an interrupt or a trap gate; `cleared` are the flags that only the former clears.
fn enter<C: SystemCpu>(
    cpu: &mut C,
    event: &Event,
    gate: &Descriptor,
    width: Width,
    cleared: u64,
) -> Result<(), C> {
    let selector = gate.gate_selector();
    let refused = GP.with(selector.error_code());
    let descriptor = Code::find(cpu, selector)?;
    let (rights, cpl) = (descriptor.rights(), cpu.cpl());
    if rights.dpl() > cpl || is_long(cpu) && !rights.is_long() {
        return Err(refused.into());
    }
    let inward = !rights.is_conforming() && rights.dpl() < cpl;
    let new_cpl = if inward { rights.dpl() } else { cpl };
    let code = Code { selector, descriptor, cpl: new_cpl }.present::<C>()?;
    let from_virtual_8086 = cpu.rflags() & VM != 0;
    if from_virtual_8086 && new_cpl != 0 {
        return Err(refused.into());
    }
    let ist = if width == Width::Qword { gate.gate_stack() } else { 0 };
    let new = if ist != 0 {
        Some(inner::interrupt_stack(cpu, ist, new_cpl)?)
    } else if inward {
        Some(inner::stack(cpu, new_cpl)?)
    } else {
        None
    };
    let stack = match &new {
        Some(new) => new.stack,
        None => own_stack(cpu, width),
    };
    let stack = align(stack)?;
    let mut frame = Frame::new(width);
    if from_virtual_8086 {
        let segments = [Segment::Gs, Segment::Fs, Segment::Ds, Segment::Es];
        segments.iter().for_each(|segment| frame.push(cpu.segment(*segment).selector.into()));
    }
    if inward || width == Width::Qword {
        frame.push_all(&[cpu.segment(Segment::Ss).selector.into(), cpu.gpr(Gpr::Rsp)]);
    }
    let rflags = cpu.rflags();
    // RF belongs to an instruction that is not finished, and INT n and its like are.
    let finished = matches!(event.kind, EventKind::Software | EventKind::PrivilegedSoftware);
    let image = if finished { rflags & !RF } else { rflags };
    frame.push_all(&[image, cpu.segment(Segment::Cs).selector.into(), event.return_rip]);
    if let Some(error_code) = event.error_code {
        frame.push(error_code.into());
    }
    frame.check_room::<C>(&stack)?;
    let entry = gate.gate_offset(width);
    code.check_target(cpu, entry)?;
    frame.probe(cpu, &stack)?;
    let stack_descriptor = new.as_ref().and_then(|new| new.descriptor);
    if let Some(descriptor) = &stack_descriptor {
        table::probe_accessed(cpu, &code.descriptor)?;
        table::mark_accessed(cpu, descriptor)?;
    }
    table::mark_accessed(cpu, &code.descriptor)?;
    let below = frame.write(cpu, &stack)?;
    code.load(cpu);
    if let Some(new) = new.as_ref().filter(|_| inward) {
        new.load(cpu);
    }
    if from_virtual_8086 {
        for segment in [Segment::Gs, Segment::Fs, Segment::Ds, Segment::Es] {
            cpu.set_segment(segment, load::null(Selector::NULL, 0));
        }
    }
    below.load_pointer(cpu);
    cpu.set_rflags(rflags & !(TF | NT | RF | VM | cleared));
    cpu.set_rip(entry);
    Ok(())
}

/// The stack as it is. Delivery in IA-32e mode takes it with all 64 bits of RSP, in compatibility
/// mode, too.
fn own_stack<C: SystemCpu>(cpu: &C, width: Width) -> Stack {
    let stack = Stack::current(cpu);
    if width == Width::Qword { Stack { width, pointer: cpu.gpr(Gpr::Rsp), ..stack } } else { stack }
}

/// IA-32e mode aligns the stack to 16 bytes before it pushes (SDM volume 3, "64-Bit Mode Stack
/// Frame").
fn align<F>(stack: Stack) -> core::result::Result<Stack, Error<F>> {
    if stack.width != Width::Qword {
        return Ok(stack);
    }
    if !is_canonical(stack.pointer) {
        return Err(stack.bad.into());
    }
    Ok(Stack { pointer: stack.pointer & !15, ..stack })
}

/// INT n in virtual-8086 mode (SDM volume 3, "Software Interrupt Handling Methods While Operating
/// in Virtual-8086 Mode"): true if the program's own handler was called, false if the event goes
/// through the IDT.
pub(crate) fn redirect<C: SystemCpu>(cpu: &mut C, vector: u8, next_rip: u64) -> Result<bool, C> {
    const VME: u64 = 1;
    let rflags = cpu.rflags();
    let privileged = rflags & IOPL == IOPL;
    let own = cpu.cr4() & VME != 0 && {
        let tr = cpu.system_segment(SystemSegment::Tr);
        // The redirection bitmap has its 32 bytes below the I/O permission bitmap.
        if tr.limit < 0x67 {
            return Err(GP.into());
        }
        let map = table::read_u16(cpu, tr.base.wrapping_add(0x66), GP)?;
        let at = u64::from(map).wrapping_sub(32).wrapping_add(u64::from(vector / 8));
        if at > u64::from(tr.limit) {
            return Err(GP.into());
        }
        let mut byte = [0];
        table::read(cpu, tr.base.wrapping_add(at), &mut byte, GP)?;
        byte[0] >> (vector % 8) & 1 == 0
    };
    if !own {
        return if privileged { Ok(false) } else { Err(GP.into()) };
    }
    let mut entry = [0; 4];
    let at = u64::from(vector) * 4;
    cpu.read_as(Privilege::Explicit(3), at, &mut entry).map_err(Error::Fault)?;
    let [offset, selector] = [[entry[0], entry[1]], [entry[2], entry[3]]].map(u16::from_le_bytes);
    // VIF stands for IF, and the program sees IOPL 3.
    let image = if privileged {
        rflags
    } else {
        rflags & !IF | IOPL | if rflags & VIF != 0 { IF } else { 0 }
    };
    let mut frame = Frame::new(Width::Word);
    frame.push_all(&[image, cpu.segment(Segment::Cs).selector.into(), next_rip]);
    let stack = Stack::current(cpu);
    frame.check_room::<C>(&stack)?;
    frame.probe(cpu, &stack)?;
    frame.write(cpu, &stack)?.load_pointer(cpu);
    cpu.set_segment(Segment::Cs, load::virtual_8086(Selector(selector)));
    cpu.set_rip(offset.into());
    let cleared = if privileged { IF } else { VIF };
    cpu.set_rflags(rflags & !(TF | NT | RF | cleared));
    Ok(true)
}
