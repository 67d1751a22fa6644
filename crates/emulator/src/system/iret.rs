//! IRET (SDM volume 2, "IRET/IRETD/IRETQ—Interrupt Return").

use crate::flags::{IF, IOPL, NT, RF, TF, VIF, VIP, VM};
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::code::Code;
use crate::system::descriptor::Selector;
use crate::system::load;
use crate::system::ret;
use crate::system::stack::Stack;
use crate::system::table::{self, is_long};
use crate::system::task::{self, Source};
use crate::width::Width;
use crate::{Exception, Gpr, Mode, Segment, SystemSegment};

const GP: Exception = Exception::GENERAL_PROTECTION;
/// CF, PF, AF, ZF, SF, TF, DF, OF and NT: what IRET loads at every privilege level.
const ALWAYS: u64 = 0x4dd5;
/// AC and ID: with operands wider than 16 bits, as RF.
const WIDE: u64 = 1 << 18 | 1 << 21;
const VME: u64 = 1;

/// Returns from an event's handler. `next_rip` is what a task that this leaves would go on at.
pub(crate) fn iret<C: SystemCpu>(cpu: &mut C, width: Width, next_rip: u64) -> Result<(), C> {
    let rflags = cpu.rflags();
    if rflags & VM != 0 {
        return from_virtual_8086(cpu, width);
    }
    if rflags & NT != 0 {
        return nested(cpu, next_rip);
    }
    let step = width.bytes() as u64;
    let stack = Stack::current(cpu);
    stack.check_inside::<C>(3 * step, width)?;
    let rip = stack.read(cpu, 0, width)?;
    let selector = Selector(stack.read(cpu, step, width)? as u16);
    let image = stack.read(cpu, 2 * step, width)?;
    let cpl = cpu.cpl();
    if width == Width::Dword && image & VM != 0 && cpl == 0 && !is_long(cpu) {
        return to_virtual_8086(cpu, &stack, rip, selector, image);
    }
    let code = Code::returned_to(cpu, selector)?;
    let rflags = merged(rflags, image, width, cpl);
    // 64-bit code always pops SS:RSP, also for a return to the same ring.
    if code.cpl > cpl || cpu.mode() == Mode::Bits64 {
        let outer = stack.moved(3 * step);
        outer.check_inside::<C>(2 * step, width)?;
        let pointer = outer.read(cpu, 0, width)?;
        let stack_selector = Selector(outer.read(cpu, step, width)? as u16);
        ret::to_outer(cpu, &code, rip, (stack_selector, pointer), 0)?;
    } else {
        code.check_target(cpu, rip)?;
        table::mark_accessed(cpu, &code.descriptor)?;
        stack.moved(3 * step).load_pointer(cpu);
        code.load(cpu);
        cpu.set_rip(rip);
    }
    cpu.set_rflags(rflags);
    cpu.unblock_nmis();
    Ok(())
}

/// RFLAGS after a return from `cpl` with this image.
fn merged(rflags: u64, image: u64, width: Width, cpl: u8) -> u64 {
    let mut loaded = ALWAYS;
    if width != Width::Word {
        loaded |= WIDE | RF;
    }
    if u64::from(cpl) <= (rflags & IOPL) >> IOPL.trailing_zeros() {
        loaded |= IF;
    }
    if cpl == 0 {
        loaded |= IOPL;
        if width != Width::Word {
            loaded |= VIF | VIP;
        }
    }
    let rflags = rflags & !RF;
    rflags & !loaded | image & loaded
}

/// The return to the task that the TSS links to.
fn nested<C: SystemCpu>(cpu: &mut C, next_rip: u64) -> Result<(), C> {
    if is_long(cpu) {
        return Err(GP.into());
    }
    let tr = cpu.system_segment(SystemSegment::Tr);
    let invalid = Exception::INVALID_TSS.with(Selector(tr.selector).error_code());
    let link = table::read_u16(cpu, tr.base, invalid)?;
    task::switch(cpu, Selector(link), Source::Iret, next_rip)?;
    cpu.unblock_nmis();
    Ok(())
}

fn to_virtual_8086<C: SystemCpu>(
    cpu: &mut C,
    stack: &Stack,
    rip: u64,
    selector: Selector,
    image: u64,
) -> Result<(), C> {
    const FLAGS: u64 = ALWAYS | WIDE | RF | IF | IOPL | VM | VIF | VIP;
    // ESP, SS, ES, DS, FS and GS follow EIP, CS and EFLAGS.
    let outer = stack.moved(12);
    outer.check_inside::<C>(24, Width::Dword)?;
    let mut popped = [0; 6];
    for (offset, value) in (0..).step_by(4).zip(&mut popped) {
        *value = outer.read(cpu, offset, Width::Dword)?;
    }
    if rip > 0xffff {
        return Err(GP.into());
    }
    let [pointer, others @ ..] = popped;
    let segments = [Segment::Ss, Segment::Es, Segment::Ds, Segment::Fs, Segment::Gs];
    for (segment, value) in segments.into_iter().zip(others) {
        cpu.set_segment(segment, load::virtual_8086(Selector(value as u16)));
    }
    cpu.set_segment(Segment::Cs, load::virtual_8086(selector));
    cpu.set_gpr(Gpr::Rsp, pointer);
    cpu.set_rip(rip);
    cpu.set_rflags(image & FLAGS | 2);
    cpu.unblock_nmis();
    Ok(())
}

fn from_virtual_8086<C: SystemCpu>(cpu: &mut C, width: Width) -> Result<(), C> {
    let rflags = cpu.rflags();
    let privileged = rflags & IOPL == IOPL;
    // With virtual-mode extensions VIF stands for IF (SDM volume 3, "Protected-Mode Virtual
    // Interrupts").
    if !privileged && (cpu.cr4() & VME == 0 || width != Width::Word) {
        return Err(GP.into());
    }
    let step = width.bytes() as u64;
    let stack = Stack::current(cpu);
    stack.check_inside::<C>(3 * step, width)?;
    let rip = stack.read(cpu, 0, width)?;
    let selector = Selector(stack.read(cpu, step, width)? as u16);
    let image = stack.read(cpu, 2 * step, width)?;
    if !privileged && (image & TF != 0 || (image & IF != 0 && rflags & VIP != 0)) {
        return Err(GP.into());
    }
    if rip > 0xffff {
        return Err(GP.into());
    }
    let mut loaded = ALWAYS;
    let mut image = image;
    if width != Width::Word {
        loaded |= WIDE | RF;
    }
    if privileged {
        loaded |= IF;
    } else {
        loaded |= VIF;
        image = if image & IF != 0 { image | VIF } else { image & !VIF };
    }
    cpu.set_segment(Segment::Cs, load::virtual_8086(selector));
    stack.moved(3 * step).load_pointer(cpu);
    cpu.set_rip(rip);
    cpu.set_rflags(rflags & !(loaded | RF) | image & loaded);
    cpu.unblock_nmis();
    Ok(())
}
