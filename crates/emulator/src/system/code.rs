//! Code segments as targets of far transfers.

use crate::segmentation::is_canonical;
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::descriptor::{Descriptor, Kind, Selector};
use crate::system::table::{self, is_long};
use crate::{Exception, Segment, SegmentRegister};

/// A code segment that passed its checks, and the privilege level that it will run at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    pub(crate) selector: Selector,
    pub(crate) descriptor: Descriptor,
    pub(crate) cpl: u8,
}

impl Code {
    /// The descriptor of a code segment whose privilege level is yet to be checked.
    pub(crate) fn find<C: SystemCpu>(cpu: &mut C, selector: Selector) -> Result<Descriptor, C> {
        if selector.is_null() {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let descriptor = table::descriptor(cpu, selector, Exception::GENERAL_PROTECTION)?;
        Code::check_type(cpu, selector, &descriptor)?;
        Ok(descriptor)
    }

    /// Whether it is a code segment at all. CS.L and CS.D both set are reserved in IA-32e mode.
    fn check_type<C: SystemCpu>(
        cpu: &C,
        selector: Selector,
        descriptor: &Descriptor,
    ) -> Result<(), C> {
        let long = is_long(cpu);
        let rights = descriptor.rights();
        let reserved = long && rights.is_long() && rights.is_32();
        if descriptor.kind(long) != Kind::Code || reserved {
            return Err(refused(selector).into());
        }
        Ok(())
    }

    /// A code segment that JMP and CALL may go to without a gate (SDM volume 3, "Direct Calls or
    /// Jumps to Code Segments").
    pub(crate) fn direct<C: SystemCpu>(
        cpu: &C,
        selector: Selector,
        descriptor: Descriptor,
    ) -> Result<Code, C> {
        Code::check_type(cpu, selector, &descriptor)?;
        let (rights, cpl) = (descriptor.rights(), cpu.cpl());
        let allowed = if rights.is_conforming() {
            rights.dpl() <= cpl
        } else {
            selector.rpl() <= cpl && rights.dpl() == cpl
        };
        if !allowed {
            return Err(refused(selector).into());
        }
        Code { selector, descriptor, cpl }.present::<C>()
    }

    /// A code segment that RETF or IRET may go back to, at the privilege level of its selector.
    pub(crate) fn returned_to<C: SystemCpu>(cpu: &mut C, selector: Selector) -> Result<Code, C> {
        let descriptor = Code::find(cpu, selector)?;
        let (rights, rpl) = (descriptor.rights(), selector.rpl());
        let fits = if rights.is_conforming() { rights.dpl() <= rpl } else { rights.dpl() == rpl };
        if rpl < cpu.cpl() || !fits {
            return Err(refused(selector).into());
        }
        Code { selector, descriptor, cpl: rpl }.present::<C>()
    }

    /// #NP unless the segment is present.
    pub(crate) fn present<C: SystemCpu>(self) -> Result<Code, C> {
        if self.descriptor.rights().is_present() {
            Ok(self)
        } else {
            Err(Exception::NOT_PRESENT.with(self.selector.error_code()).into())
        }
    }

    /// The code runs in 64-bit mode.
    pub(crate) fn is_64<C: SystemCpu>(&self, cpu: &C) -> bool {
        is_long(cpu) && self.descriptor.rights().is_long()
    }

    /// Whether execution can start there.
    pub(crate) fn check_target<C: SystemCpu>(&self, cpu: &C, rip: u64) -> Result<(), C> {
        let good = if self.is_64(cpu) {
            is_canonical(rip)
        } else {
            rip <= u64::from(self.descriptor.limit())
        };
        if good { Ok(()) } else { Err(Exception::GENERAL_PROTECTION.into()) }
    }

    fn register(&self) -> SegmentRegister {
        self.descriptor.register(self.selector.with_rpl(self.cpl))
    }

    /// Loads CS, whose descriptor is marked as accessed already.
    pub(crate) fn load<C: SystemCpu>(&self, cpu: &mut C) {
        cpu.set_segment(Segment::Cs, self.register());
    }
}

fn refused(selector: Selector) -> Exception {
    Exception::GENERAL_PROTECTION.with(selector.error_code())
}
