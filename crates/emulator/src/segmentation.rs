//! The checks that come before paging: limit, type, and canonical form (SDM volume 3, "Limit
//! Checking", "Type Checking"; volume 1, "Canonical Addressing").
//!
//! The manual leaves the processor a choice for accesses that wrap at the end of a segment of 4
//! GiB. Flat segments, which start at 0, take them, as does the end of the address space in 64-bit
//! mode. All other segments refuse them.

use crate::flags::AC;
use crate::step::{Result, Step};
use crate::width::Width;
use crate::{Cpu, Error, Exception, Mode, Segment, SegmentRegister};

/// CR0.AM: alignment is checked at privilege level 3 while RFLAGS.AC is set.
const ALIGNMENT_MASK: u64 = 1 << 18;

/// A place in memory, before any check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The segment that counts. In 64-bit mode SS stands for all uses of the stack, and DS for all
    /// else but FS and GS.
    pub(crate) segment: Segment,
    /// The offset in it.
    pub(crate) offset: u64,
}

impl Memory {
    /// The exception for an access that the segment refuses.
    fn refused<F>(self) -> Error<F> {
        Error::Exception(match self.segment {
            Segment::Ss => Exception::STACK_FAULT,
            _ => Exception::GENERAL_PROTECTION,
        })
    }
}

/// What an access needs of the segment and of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// A write, or a read before one.
    Write,
    /// CLFLUSH and its relatives: as a read, and of code segments that cannot be read, too.
    Flush,
}

impl<C: Cpu> Step<'_, C> {
    /// The linear address of a place. Outside 64-bit mode it has 32 bits.
    pub(crate) fn linear(&self, memory: Memory) -> u64 {
        match (self.mode, memory.segment) {
            (Mode::Bits64, Segment::Fs | Segment::Gs) => {
                self.cpu.segment(memory.segment).base.wrapping_add(memory.offset)
            }
            (Mode::Bits64, _) => memory.offset,
            (Mode::Bits16 | Mode::Bits32, _) => Width::Dword
                .truncate(self.cpu.segment(memory.segment).base.wrapping_add(memory.offset)),
        }
    }

    /// The linear address of an access that the segment allows.
    fn segmented(&self, memory: Memory, length: usize, access: Access) -> Result<u64, C> {
        let gva = self.linear(memory);
        let allowed = match self.mode {
            Mode::Bits64 => is_canonical(gva) && is_canonical(gva.wrapping_add(length as u64 - 1)),
            Mode::Bits32 | Mode::Bits16 => {
                allows(&self.cpu.segment(memory.segment), memory.offset as u32, length, access)
            }
        };
        if allowed { Ok(gva) } else { Err(memory.refused()) }
    }

    /// The linear address of an access about to be made. All exceptions that come before a page
    /// fault are behind us then.
    ///
    /// #AC comes after a page fault (SDM volume 3, "Priority Among Concurrent Events"), but a
    /// misaligned access must not reach memory: there may be a device.
    pub(crate) fn approach(
        &mut self,
        memory: Memory,
        length: usize,
        access: Access,
    ) -> Result<u64, C> {
        let gva = self.segmented(memory, length, access)?;
        // SDM volume 3, "Alignment Check Exception (#AC)": operands of up to 8 bytes, each at a
        // multiple of its own length. Larger ones have rules of their own.
        let natural = length.min(8) as u64;
        if gva % natural != 0 && self.checks_alignment() {
            self.cpu.check(gva, length, access == Access::Write).map_err(Error::Fault)?;
            return Err(Exception::ALIGNMENT_CHECK.into());
        }
        Ok(gva)
    }

    /// Everything that an access can raise, without the access.
    pub(crate) fn check(&mut self, memory: Memory, length: usize, access: Access) -> Result<(), C> {
        let gva = self.approach(memory, length, access)?;
        self.cpu.check(gva, length, access == Access::Write).map_err(Error::Fault)
    }

    fn checks_alignment(&self) -> bool {
        self.cpu.rflags() & AC != 0 && self.cpu.cr0() & ALIGNMENT_MASK != 0 && self.cpu.cpl() == 3
    }

    /// Refuses the target of a near branch outside the code segment (SDM volume 2, "CALL", "JMP",
    /// "RET").
    pub(crate) fn check_target(&self, target: u64) -> Result<(), C> {
        let inside = match self.mode {
            Mode::Bits64 => is_canonical(target),
            Mode::Bits32 | Mode::Bits16 => target <= u64::from(self.cpu.segment(Segment::Cs).limit),
        };
        if inside { Ok(()) } else { Err(Exception::GENERAL_PROTECTION.into()) }
    }
}

/// Whether a segment lets an access through: by its type, then by the offset of each byte.
fn allows(segment: &SegmentRegister, offset: u32, length: usize, access: Access) -> bool {
    let rights = segment.rights;
    let by_type = match access {
        Access::Read => rights.is_readable(),
        Access::Write => rights.is_writable(),
        Access::Flush => rights.is_code_or_data(),
    };
    if rights.is_unusable() || !by_type {
        return false;
    }
    // None: the last byte lies beyond 4 GiB.
    let last = offset.checked_add(length as u32 - 1);
    if rights.is_expand_down() {
        let top = if rights.is_32() { u32::MAX } else { 0xffff };
        return offset > segment.limit && last.is_some_and(|last| last <= top);
    }
    let flat = segment.base == 0 && segment.limit == u32::MAX;
    flat || last.is_some_and(|last| last <= segment.limit)
}

/// Canonical for 48-bit linear addresses.
pub(crate) fn is_canonical(gva: u64) -> bool {
    (gva as i64) << 16 >> 16 == gva as i64
}
