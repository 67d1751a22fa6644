//! The stack that the TSS holds for an inner ring (SDM volume 3, "Stack Switching").

use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::descriptor::{Descriptor, Kind, Selector};
use crate::system::load;
use crate::system::stack::{Stack, pointer_width};
use crate::system::table::{self, is_long};
use crate::width::Width;
use crate::{Exception, Segment, SystemSegment};

/// The new stack, with the descriptor to mark as accessed outside IA-32e mode.
pub(crate) struct Inner {
    pub(crate) stack: Stack,
    pub(crate) descriptor: Option<Descriptor>,
}

impl Inner {
    /// Loads SS; RSP follows when the frame is written.
    pub(crate) fn load<C: SystemCpu>(&self, cpu: &mut C) {
        cpu.set_segment(Segment::Ss, self.stack.segment);
    }
}

/// The stack that the current TSS has for privilege level `dpl`.
pub(crate) fn stack<C: SystemCpu>(cpu: &mut C, dpl: u8) -> Result<Inner, C> {
    if is_long(cpu) {
        return Ok(null_stack(dpl, stack_pointer(cpu, u64::from(dpl) * 8 + 4)?));
    }
    let (selector, pointer) = legacy_pointer(cpu, dpl)?;
    let invalid = Exception::INVALID_TSS.with(selector.error_code());
    if selector.is_null() {
        return Err(Exception::INVALID_TSS.into());
    }
    let descriptor = table::descriptor(cpu, selector, Exception::INVALID_TSS)?;
    let rights = descriptor.rights();
    let fits = selector.rpl() == dpl && rights.dpl() == dpl && rights.is_writable();
    if descriptor.kind(false) != Kind::Data || !fits {
        return Err(invalid.into());
    }
    let absent = Exception::STACK_FAULT.with(selector.error_code());
    if !rights.is_present() {
        return Err(absent.into());
    }
    let segment = descriptor.register(selector);
    let width = pointer_width(&segment);
    let stack = Stack { segment, pointer: width.truncate(pointer), width, cpl: dpl, bad: absent };
    Ok(Inner { stack, descriptor: Some(descriptor) })
}

/// The stack of an entry in the interrupt stack table, aligned (SDM volume 3, "Interrupt Stack
/// Table").
pub(crate) fn interrupt_stack<C: SystemCpu>(cpu: &mut C, number: u8, dpl: u8) -> Result<Inner, C> {
    Ok(null_stack(dpl, stack_pointer(cpu, u64::from(number) * 8 + 28)?))
}

fn null_stack(dpl: u8, pointer: u64) -> Inner {
    let stack = Stack {
        segment: load::null(Selector::NULL.with_rpl(dpl), dpl),
        pointer,
        width: Width::Qword,
        cpl: dpl,
        bad: Exception::STACK_FAULT,
    };
    Inner { stack, descriptor: None }
}

/// A pointer out of a 64-bit TSS.
fn stack_pointer<C: SystemCpu>(cpu: &mut C, offset: u64) -> Result<u64, C> {
    let tr = cpu.system_segment(SystemSegment::Tr);
    let invalid = Exception::INVALID_TSS.with(Selector(tr.selector).error_code());
    if offset + 7 > u64::from(tr.limit) {
        return Err(invalid.into());
    }
    table::read_u64(cpu, tr.base.wrapping_add(offset), invalid)
}

fn legacy_pointer<C: SystemCpu>(cpu: &mut C, dpl: u8) -> Result<(Selector, u64), C> {
    const BUSY_16: u8 = 3;
    let tr = cpu.system_segment(SystemSegment::Tr);
    let invalid = Exception::INVALID_TSS.with(Selector(tr.selector).error_code());
    let small = tr.rights.kind() == BUSY_16;
    let (offset, size) =
        if small { (u64::from(dpl) * 4 + 2, 2) } else { (u64::from(dpl) * 8 + 4, 4) };
    // The pointer, then the selector.
    if offset + size + 1 > u64::from(tr.limit) {
        return Err(invalid.into());
    }
    let at = tr.base.wrapping_add(offset);
    let pointer = if small {
        table::read_u16(cpu, at, invalid)?.into()
    } else {
        table::read_u32(cpu, at, invalid)?.into()
    };
    let selector = table::read_u16(cpu, at.wrapping_add(size), invalid)?;
    Ok((Selector(selector), pointer))
}
