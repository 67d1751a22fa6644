//! What comes of one call of [`emulate`](crate::emulate).

/// The instruction, or a part of it, was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The instruction retired: RIP points behind it, RF is clear.
    ///
    /// Two things that hang on a retired instruction are the hypervisor's: a blocking of interrupts by STI or MOV SS
    /// ends, and if RFLAGS.TF is set a single-step trap (#DB with DR6.BS) is due.
    Done,
    /// Iterations of a repeated string instruction are done and more are left: RIP still points at the instruction,
    /// RCX, RSI and RDI say where it stands, and RF is set, so that an instruction breakpoint on it does not hit again
    /// (SDM volume 3, "Instruction-Breakpoint Exception Condition").
    ///
    /// Re-enter the guest or call again; pending interrupts may be taken in between. If RFLAGS.TF is set, exactly one
    /// iteration was done and a single-step trap is due.
    Continue,
}

/// Why the instruction was not carried out. No register was changed.
///
/// One exception: a fault in a later iteration of a repeated string instruction leaves the finished iterations
/// finished, with RIP at the instruction, as on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<F> {
    /// An access by way of [`Cpu`](crate::Cpu) faulted: deliver this.
    Fault(F),
    /// #GP(0) is due: an address outside the segment or not canonical, a misaligned CMPXCHG16B, or an instruction
    /// longer than 15 bytes.
    GeneralProtection,
    /// #SS(0) is due: as [`GeneralProtection`](Error::GeneralProtection), in the stack segment.
    StackFault,
    /// #UD is due: not an instruction, or LOCK where it is not allowed.
    Invalid,
    /// An instruction that this crate does not emulate.
    Unsupported,
    /// The instruction goes on behind the bytes given: fetch more, or deliver the fault of that fetch.
    Truncated,
}
