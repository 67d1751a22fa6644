//! Instructions that look at descriptors and set ZF: VERR, VERW, LAR, LSL, and ARPL, which only
//! looks at selectors.

use crate::Error;
use crate::Exception;
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::descriptor::{Descriptor, Kind, Selector};
use crate::system::table::{self, is_long};

/// What is asked about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// VERR: can it be read?
    Readable,
    /// VERW: can it be written?
    Writable,
    /// LAR: its type and rights.
    Rights,
    /// LSL: its limit.
    Limit,
}

/// The answer if there is one: ZF is set then. Nothing but page faults is raised.
pub(crate) fn ask<C: SystemCpu>(
    cpu: &mut C,
    question: Question,
    selector: Selector,
) -> Result<Option<u64>, C> {
    if selector.is_null() {
        return Ok(None);
    }
    let descriptor = match table::descriptor(cpu, selector, Exception::GENERAL_PROTECTION) {
        Ok(descriptor) => descriptor,
        Err(Error::Exception(_)) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let rights = descriptor.rights();
    let outermost = cpu.cpl().max(selector.rpl());
    if !rights.is_conforming() && rights.dpl() < outermost {
        return Ok(None);
    }
    Ok(answer(question, &descriptor, is_long(cpu)))
}

fn answer(question: Question, descriptor: &Descriptor, long: bool) -> Option<u64> {
    const RIGHTS: u64 = 0x00f0_ff00;
    let rights = descriptor.rights();
    let kind = descriptor.kind(long);
    let has_limit = matches!(kind, Kind::Code | Kind::Data | Kind::Ldt | Kind::Tss { .. });
    match question {
        Question::Readable => rights.is_readable().then_some(0),
        Question::Writable => rights.is_writable().then_some(0),
        Question::Rights if has_limit || matches!(kind, Kind::CallGate(_) | Kind::TaskGate) => {
            Some(descriptor.low >> 32 & RIGHTS)
        }
        Question::Limit if has_limit => Some(descriptor.limit().into()),
        Question::Rights | Question::Limit => None,
    }
}
