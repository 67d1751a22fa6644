//! The registers that instructions name.

use umbra_emulator::{DescriptorTable, Segment, SegmentRegister, SystemSegment, TableRegister};

/// The code segment's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeMode {
    /// 16-bit.
    Bits16,
    /// 32-bit.
    Bits32,
    /// 64-bit.
    Bits64,
}

impl CodeMode {
    /// What the bits of a segment's attributes make of it: L, which counts in long mode only, and
    /// D/B.
    pub const fn of(long: bool, default_32: bool) -> CodeMode {
        match (long, default_32) {
            (true, _) => CodeMode::Bits64,
            (false, true) => CodeMode::Bits32,
            (false, false) => CodeMode::Bits16,
        }
    }
}

/// RFLAGS bits (SDM, "EFLAGS Register").
pub mod rflags {
    /// Trap flag.
    pub const TF: u64 = 1 << 8;
    /// Interrupts on.
    pub const IF: u64 = 1 << 9;
    /// Resume: no instruction breakpoints at the next instruction.
    pub const RF: u64 = 1 << 16;
    /// Alignment check; also: explicit supervisor accesses may touch user pages under SMAP.
    pub const AC: u64 = 1 << 18;
}

/// General-purpose and segment registers, flags and descriptor tables.
pub trait Registers {
    /// A general-purpose register by its number in instruction encodings.
    fn gpr(&self, number: u8) -> u64;
    /// Writes a general-purpose register.
    fn set_gpr(&mut self, number: u8, value: u64);
    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// The flags.
    fn rflags(&self) -> u64;
    /// Sets the flags.
    fn set_rflags(&mut self, rflags: u64);
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// The code segment's mode.
    fn code_mode(&self) -> CodeMode;
    /// Bits of the stack pointer.
    fn stack_mode(&self) -> CodeMode;
    /// A segment register with its hidden part.
    fn segment(&self, segment: Segment) -> SegmentRegister;
    /// Loads a segment register.
    fn set_segment(&mut self, segment: Segment, value: SegmentRegister);
    /// Where a segment starts: zero for those that 64-bit mode takes to start there.
    fn segment_base(&self, segment: Segment) -> u64;
    /// LDTR or TR with its hidden part.
    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister;
    /// Loads LDTR or TR.
    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister);
    /// GDTR or IDTR.
    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister;
    /// Loads GDTR or IDTR.
    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister);
    /// Whether TR holds a 16-bit TSS, which long mode does not know.
    fn has_16_bit_tss(&self) -> bool;
}
