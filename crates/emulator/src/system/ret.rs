//! Far RET (SDM volume 2, "RET—Return From Procedure").

use crate::flags::VM;
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::code::Code;
use crate::system::descriptor::Selector;
use crate::system::load;
use crate::system::stack::{Stack, pointer_width};
use crate::system::table;
use crate::width::Width;
use crate::{Exception, Gpr, Segment};

/// Returns, and releases `parameters` bytes of the caller's on each stack.
pub(crate) fn far<C: SystemCpu>(cpu: &mut C, width: Width, parameters: u64) -> Result<(), C> {
    let step = width.bytes() as u64;
    let stack = Stack::current(cpu);
    stack.check_inside::<C>(2 * step, width)?;
    let selector = Selector(stack.read(cpu, step, width)? as u16);
    let rip = stack.read(cpu, 0, width)?;
    if cpu.rflags() & VM != 0 {
        let segment = load::virtual_8086(selector);
        if rip > u64::from(segment.limit) {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        cpu.set_segment(Segment::Cs, segment);
        stack.moved(2 * step + parameters).load_pointer(cpu);
        cpu.set_rip(rip);
        return Ok(());
    }
    let code = Code::returned_to(cpu, selector)?;
    if code.cpl == cpu.cpl() {
        code.check_target(cpu, rip)?;
        table::mark_accessed(cpu, &code.descriptor)?;
        stack.moved(2 * step + parameters).load_pointer(cpu);
        code.load(cpu);
        cpu.set_rip(rip);
        return Ok(());
    }
    let outer = stack.moved(2 * step + parameters);
    outer.check_inside::<C>(2 * step, width)?;
    let pointer = outer.read(cpu, 0, width)?;
    let stack_selector = Selector(outer.read(cpu, step, width)? as u16);
    to_outer(cpu, &code, rip, (stack_selector, pointer), parameters)
}

/// Goes on with a stack that was popped: of an outer ring, or by IRET in 64-bit mode.
pub(crate) fn to_outer<C: SystemCpu>(
    cpu: &mut C,
    code: &Code,
    rip: u64,
    (selector, pointer): (Selector, u64),
    parameters: u64,
) -> Result<(), C> {
    let code_64 = code.is_64(cpu);
    let descriptor = load::stack(cpu, selector, code.cpl, code_64)?;
    code.check_target(cpu, rip)?;
    if let Some(descriptor) = &descriptor {
        table::probe_accessed(cpu, descriptor)?;
    }
    table::mark_accessed(cpu, &code.descriptor)?;
    let segment = match &descriptor {
        Some(descriptor) => {
            table::mark_accessed(cpu, descriptor)?;
            descriptor.register(selector)
        }
        None => load::null(selector, code.cpl),
    };
    let outward = code.cpl > cpu.cpl();
    let width = if code_64 { Width::Qword } else { pointer_width(&segment) };
    code.load(cpu);
    cpu.set_segment(Segment::Ss, segment);
    let pointer = pointer.wrapping_add(parameters);
    let whole = if width == Width::Word {
        cpu.gpr(Gpr::Rsp) & !0xffff | Width::Word.truncate(pointer)
    } else {
        width.truncate(pointer)
    };
    cpu.set_gpr(Gpr::Rsp, whole);
    cpu.set_rip(rip);
    if outward {
        load::drop_privileged(cpu, code.cpl);
    }
    Ok(())
}
