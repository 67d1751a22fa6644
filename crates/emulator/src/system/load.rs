//! Loads of segment registers, LDTR and TR.

use crate::flags::VM;
use crate::segmentation::is_canonical;
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::descriptor::{Descriptor, Kind, Selector};
use crate::system::table::{self, is_long};
use crate::{Exception, Mode, Rights, Segment, SegmentRegister, SystemSegment};

const GP: Exception = Exception::GENERAL_PROTECTION;

/// A segment register after the load of a null selector. That of SS still says the privilege level.
pub(crate) fn null(selector: Selector, dpl: u8) -> SegmentRegister {
    let rights = Rights(Rights::UNUSABLE.0 | u32::from(dpl) << 5);
    SegmentRegister { selector: selector.0, base: 0, limit: 0, rights }
}

/// A segment register of virtual-8086 mode (SDM volume 3, "Checks on Guest Segment Registers").
pub(crate) fn virtual_8086(selector: Selector) -> SegmentRegister {
    let base = u64::from(selector.0) << 4;
    SegmentRegister { selector: selector.0, base, limit: 0xffff, rights: Rights(0xf3) }
}

/// What MOV, POP and the like load into a segment register other than CS, in any mode. The
/// descriptor is marked as accessed; the register is the caller's to set.
pub(crate) fn segment<C: SystemCpu>(
    cpu: &mut C,
    segment: Segment,
    selector: Selector,
) -> Result<SegmentRegister, C> {
    if cpu.rflags() & VM != 0 {
        return Ok(virtual_8086(selector));
    }
    if segment == Segment::Ss {
        let cpl = cpu.cpl();
        let long = cpu.mode() == Mode::Bits64;
        return match stack(cpu, selector, cpl, long)? {
            Some(descriptor) => accessed(cpu, selector, &descriptor),
            None => Ok(null(selector, cpl)),
        };
    }
    if selector.is_null() {
        return Ok(null(selector, 0));
    }
    let descriptor = table::descriptor(cpu, selector, GP)?;
    check_data::<C>(selector, &descriptor, cpu.cpl(), GP)?;
    accessed(cpu, selector, &descriptor)
}

fn accessed<C: SystemCpu>(
    cpu: &mut C,
    selector: Selector,
    descriptor: &Descriptor,
) -> Result<SegmentRegister, C> {
    table::mark_accessed(cpu, descriptor)?;
    Ok(descriptor.register(selector))
}

/// Checks a segment for DS, ES, FS or GS; `fault` is raised for a wrong type or privilege level.
pub(crate) fn check_data<C: SystemCpu>(
    selector: Selector,
    descriptor: &Descriptor,
    cpl: u8,
    fault: Exception,
) -> Result<(), C> {
    let rights = descriptor.rights();
    let private = !rights.is_conforming() && (cpl > rights.dpl() || selector.rpl() > rights.dpl());
    if !rights.is_readable() || private {
        return Err(fault.with(selector.error_code()).into());
    }
    if !rights.is_present() {
        return Err(Exception::NOT_PRESENT.with(selector.error_code()).into());
    }
    Ok(())
}

/// Checks a stack segment for code at `cpl`. None is the null selector, which only 64-bit code
/// takes.
pub(crate) fn stack<C: SystemCpu>(
    cpu: &mut C,
    selector: Selector,
    cpl: u8,
    code_64: bool,
) -> Result<Option<Descriptor>, C> {
    let bad = GP.with(selector.error_code());
    if selector.is_null() {
        let good = code_64 && cpl < 3 && selector.rpl() == cpl;
        return if good { Ok(None) } else { Err(GP.into()) };
    }
    let descriptor = table::descriptor(cpu, selector, GP)?;
    let rights = descriptor.rights();
    if selector.rpl() != cpl || !rights.is_writable() || rights.dpl() != cpl {
        return Err(bad.into());
    }
    if !rights.is_present() {
        return Err(Exception::STACK_FAULT.with(selector.error_code()).into());
    }
    Ok(Some(descriptor))
}

/// LLDT.
pub(crate) fn local_table<C: SystemCpu>(cpu: &mut C, selector: Selector) -> Result<(), C> {
    if selector.is_null() {
        cpu.set_system_segment(SystemSegment::Ldtr, null(selector, 0));
        return Ok(());
    }
    let descriptor = system(cpu, selector, |kind| kind == Kind::Ldt)?;
    cpu.set_system_segment(SystemSegment::Ldtr, descriptor.register(selector));
    Ok(())
}

/// LTR.
pub(crate) fn task_register<C: SystemCpu>(cpu: &mut C, selector: Selector) -> Result<(), C> {
    if selector.is_null() {
        return Err(GP.into());
    }
    let descriptor = system(cpu, selector, |kind| matches!(kind, Kind::Tss { busy: false, .. }))?;
    table::mark_busy(cpu, descriptor.gva, true)?;
    cpu.set_system_segment(SystemSegment::Tr, busy(&descriptor, selector));
    Ok(())
}

/// TR with this TSS, which is marked as busy.
pub(crate) fn busy(descriptor: &Descriptor, selector: Selector) -> SegmentRegister {
    let mut register = descriptor.register(selector);
    register.rights.0 |= u32::from(Descriptor::BUSY);
    register
}

/// The descriptor of an LDT or a TSS, which must be in the GDT.
fn system<C: SystemCpu>(
    cpu: &mut C,
    selector: Selector,
    wanted: impl FnOnce(Kind) -> bool,
) -> Result<Descriptor, C> {
    let bad = GP.with(selector.error_code());
    if selector.is_local() {
        return Err(bad.into());
    }
    let long = is_long(cpu);
    let mut descriptor = table::descriptor(cpu, selector, GP)?;
    if !wanted(descriptor.kind(long)) {
        return Err(bad.into());
    }
    if long {
        table::read_upper_half(cpu, selector, &mut descriptor, GP)?;
    }
    if !descriptor.rights().is_present() {
        return Err(Exception::NOT_PRESENT.with(selector.error_code()).into());
    }
    if long && !is_canonical(descriptor.base()) {
        return Err(bad.into());
    }
    Ok(descriptor)
}

/// After a return to an outer ring: takes away segments that it may not use.
pub(crate) fn drop_privileged<C: SystemCpu>(cpu: &mut C, cpl: u8) {
    for segment in [Segment::Es, Segment::Ds, Segment::Fs, Segment::Gs] {
        let rights = cpu.segment(segment).rights;
        if !rights.is_unusable() && !rights.is_conforming() && rights.dpl() < cpl {
            cpu.set_segment(segment, null(Selector::NULL, 0));
        }
    }
}
