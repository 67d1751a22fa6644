//! The processor state and the memory that an instruction works on, as the embedder provides them.

use crate::{Segment, SegmentRegister};

/// Operating mode of the code: default operand and address size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CS.L = 0, CS.D = 0.
    Bits16,
    /// CS.L = 0, CS.D = 1.
    Bits32,
    /// CS.L = 1 in long mode.
    Bits64,
}

/// A general-purpose register by its number in instruction encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All registers, each at its number.
    pub const ALL: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];
}

/// Instructions whose encodings are others on processors that do not have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// TZCNT; else BSF.
    Tzcnt,
    /// LZCNT; else BSR.
    Lzcnt,
}

/// One virtual processor between two instructions.
///
/// Registers are plain state. The memory accesses carry the guest's rights: each does the guest's
/// page walk with the current privilege level and comes back with the fault to deliver; MMIO and
/// writes to tracked page tables are dispatched behind them. An access may span two pages; it must
/// check both before it changes anything. The segment has let it through: all its bytes have
/// canonical addresses (of 32 bits outside 64-bit mode). It may wrap: behind the last address (of
/// 32 bits outside 64-bit mode) comes 0. Data breakpoints are the implementer's.
pub trait Cpu {
    /// What a failed access comes back with, typically an exception to inject. This crate only
    /// passes it on.
    type Fault;

    /// The mode that CS gives.
    fn mode(&self) -> Mode;

    /// The width of the stack pointer: 64 bits in 64-bit mode, else what SS.B says. By default as
    /// the code.
    fn stack_mode(&self) -> Mode {
        self.mode()
    }

    /// The whole 64-bit register.
    fn gpr(&self, gpr: Gpr) -> u64;

    /// Writes the whole 64-bit register.
    fn set_gpr(&mut self, gpr: Gpr, value: u64);

    /// The instruction pointer (an offset in CS).
    fn rip(&self) -> u64;

    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);

    /// The flags.
    fn rflags(&self) -> u64;

    /// Sets the flags.
    fn set_rflags(&mut self, rflags: u64);

    /// A segment register with its hidden part, as it was loaded: in 64-bit mode, too.
    fn segment(&self, segment: Segment) -> SegmentRegister;

    /// The current privilege level.
    fn cpl(&self) -> u8;

    /// CR0 as the guest sees it.
    fn cr0(&self) -> u64;

    /// CR4 as the guest sees it.
    fn cr4(&self) -> u64;

    /// Whether the processor that runs the guest has this, whatever its CPUID shows the guest.
    fn has(&self, feature: Feature) -> bool;

    /// Reads `buf.len()` bytes (1 to 16) at a linear address.
    fn read(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), Self::Fault>;

    /// Reads as the first half of a read-modify-write: the rights asked for are those of a write,
    /// so that the [`write`](Cpu::write) to the same bytes which follows finds them granted.
    fn read_modify(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), Self::Fault>;

    /// Writes `buf.len()` bytes (1 to 16) at a linear address: all of them, or none and a fault.
    fn write(&mut self, gva: u64, buf: &[u8]) -> Result<(), Self::Fault>;

    /// Checks an access to `length` bytes (1 to 16) as [`read`](Cpu::read) or [`write`](Cpu::write)
    /// would, without making it: no device sees it, it meets no breakpoint, and no page is dirty.
    fn check(&mut self, gva: u64, length: usize, write: bool) -> Result<(), Self::Fault>;

    /// Reads `size` bytes (1, 2 or 4) from a port. That the guest may is checked: instructions that
    /// it may not execute do not get here.
    fn port_read(&mut self, port: u16, size: u8) -> u32;

    /// Writes the low `size` bytes (1, 2 or 4) of `value` to a port, likewise.
    fn port_write(&mut self, port: u16, size: u8, value: u32);

    /// Whether an access so far met a breakpoint on data or a port, so that a debug trap is due: a
    /// repeated string instruction is then left after the iteration, as for single steps. An
    /// embedder that wants it left for another reason says so here, too.
    fn trap_due(&self) -> bool {
        false
    }
}
