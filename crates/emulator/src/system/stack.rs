//! Stacks that far transfers and events use before, and without, their being the processor's.

use crate::segmentation::is_canonical;
use crate::step::Result;
use crate::system::{Privilege, SystemCpu};
use crate::width::Width;
use crate::{Error, Exception, Gpr, Mode, Segment, SegmentRegister};

const AM: u64 = 1 << 18;
const AC: u64 = 1 << 18;

/// A stack, the processor's or one to come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) segment: SegmentRegister,
    pub(crate) pointer: u64,
    /// The width of the stack pointer.
    pub(crate) width: Width,
    /// The privilege level of the accesses.
    pub(crate) cpl: u8,
    /// Raised for what lies outside.
    pub(crate) bad: Exception,
}

impl Stack {
    /// The stack as the processor has it.
    pub(crate) fn current<C: SystemCpu>(cpu: &C) -> Stack {
        let segment = cpu.segment(Segment::Ss);
        let width = if cpu.mode() == Mode::Bits64 { Width::Qword } else { pointer_width(&segment) };
        Stack {
            segment,
            pointer: width.truncate(cpu.gpr(Gpr::Rsp)),
            width,
            cpl: cpu.cpl(),
            bad: Exception::STACK_FAULT,
        }
    }

    /// The same stack with its pointer moved.
    pub(crate) fn moved(self, by: u64) -> Stack {
        Stack { pointer: self.width.truncate(self.pointer.wrapping_add(by)), ..self }
    }

    /// Makes the pointer RSP; what is beyond its width stays.
    pub(crate) fn load_pointer<C: SystemCpu>(&self, cpu: &mut C) {
        let whole = match self.width {
            Width::Word | Width::Byte => {
                cpu.gpr(Gpr::Rsp) & !0xffff | Width::Word.truncate(self.pointer)
            }
            Width::Dword | Width::Qword => self.width.truncate(self.pointer),
        };
        cpu.set_gpr(Gpr::Rsp, whole);
    }

    /// The linear address of what lies `offset` above the pointer.
    fn address<C: SystemCpu>(&self, offset: u64, length: usize) -> Result<u64, C> {
        let from = self.width.truncate(self.pointer.wrapping_add(offset));
        let last = from.wrapping_add(length as u64 - 1);
        if self.width == Width::Qword {
            let good = is_canonical(from) && is_canonical(last) && from <= last;
            return if good { Ok(from) } else { Err(self.bad.into()) };
        }
        let rights = self.segment.rights;
        let limit = u64::from(self.segment.limit);
        let inside = if rights.is_expand_down() {
            from > limit && last <= if rights.is_32() { 0xffff_ffff } else { 0xffff }
        } else {
            last <= limit
        };
        let gva = Width::Dword.truncate(self.segment.base.wrapping_add(from));
        let wraps = gva + length as u64 - 1 > u64::from(u32::MAX);
        if !inside || wraps || rights.is_unusable() { Err(self.bad.into()) } else { Ok(gva) }
    }

    fn check_alignment<C: SystemCpu>(&self, cpu: &C, gva: u64, width: Width) -> Result<(), C> {
        let checked = self.cpl == 3 && cpu.cr0() & AM != 0 && cpu.rflags() & AC != 0;
        if checked && gva % (width.bytes() as u64) != 0 {
            return Err(Exception::ALIGNMENT_CHECK.into());
        }
        Ok(())
    }

    /// Reads what lies `offset` above the pointer.
    pub(crate) fn read<C: SystemCpu>(
        &self,
        cpu: &mut C,
        offset: u64,
        width: Width,
    ) -> Result<u64, C> {
        let gva = self.address::<C>(offset, width.bytes())?;
        self.check_alignment(cpu, gva, width)?;
        let mut bytes = [0; 8];
        cpu.read_as(Privilege::Explicit(self.cpl), gva, &mut bytes[..width.bytes()])
            .map_err(Error::Fault)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes at the pointer.
    pub(crate) fn write<C: SystemCpu>(
        &self,
        cpu: &mut C,
        value: u64,
        width: Width,
    ) -> Result<(), C> {
        let gva = self.address::<C>(0, width.bytes())?;
        self.check_alignment(cpu, gva, width)?;
        let bytes = value.to_le_bytes();
        cpu.write_as(Privilege::Explicit(self.cpl), gva, &bytes[..width.bytes()])
            .map_err(Error::Fault)
    }

    /// Whether `length` bytes above the pointer are inside.
    pub(crate) fn check_inside<C: SystemCpu>(&self, length: u64, width: Width) -> Result<(), C> {
        let step = width.bytes() as u64;
        (0..length / step)
            .try_for_each(|number| self.address::<C>(number * step, width.bytes()).map(drop))
    }
}

/// The width of a stack pointer outside 64-bit mode.
pub(crate) fn pointer_width(segment: &SegmentRegister) -> Width {
    if segment.rights.is_32() { Width::Dword } else { Width::Word }
}

/// SS, SP, 31 parameters, CS and IP of a call gate are the most.
const MAX_PUSHES: usize = 36;

/// What is going to be pushed, first value first.
pub(crate) struct Frame {
    width: Width,
    values: [u64; MAX_PUSHES],
    count: usize,
}

impl Frame {
    pub(crate) fn new(width: Width) -> Frame {
        Frame { width, values: [0; MAX_PUSHES], count: 0 }
    }

    pub(crate) fn push(&mut self, value: u64) {
        self.values[self.count] = value;
        self.count += 1;
    }

    pub(crate) fn push_all(&mut self, values: &[u64]) {
        values.iter().for_each(|value| self.push(*value));
    }

    /// Offsets from the pointer, in the order of the pushes, each with its value.
    fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        let width = self.width.bytes() as u64;
        (1..)
            .zip(&self.values[..self.count])
            .map(move |(number, value)| ((number * width).wrapping_neg(), *value))
    }

    /// Whether the frame fits the segment.
    pub(crate) fn check_room<C: SystemCpu>(&self, stack: &Stack) -> Result<(), C> {
        self.places()
            .try_for_each(|(offset, _)| stack.address::<C>(offset, self.width.bytes()).map(drop))
    }

    /// Whether the frame can be written.
    pub(crate) fn probe<C: SystemCpu>(&self, cpu: &mut C, stack: &Stack) -> Result<(), C> {
        for (offset, _) in self.places() {
            let gva = stack.address::<C>(offset, self.width.bytes())?;
            stack.check_alignment(cpu, gva, self.width)?;
            cpu.probe_write(Privilege::Explicit(stack.cpl), gva, self.width.bytes())
                .map_err(Error::Fault)?;
        }
        Ok(())
    }

    /// Writes the frame and returns the stack below it.
    pub(crate) fn write<C: SystemCpu>(&self, cpu: &mut C, stack: &Stack) -> Result<Stack, C> {
        let width = self.width.bytes();
        for (offset, value) in self.places() {
            let gva = stack.address::<C>(offset, width)?;
            let bytes = value.to_le_bytes();
            cpu.write_as(Privilege::Explicit(stack.cpl), gva, &bytes[..width])
                .map_err(Error::Fault)?;
        }
        Ok(stack.moved(((self.count * width) as u64).wrapping_neg()))
    }
}
