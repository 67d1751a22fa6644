//! What comes of one call of [`emulate`](crate::emulate).

use crate::Exception;

/// The instruction, or a part of it, was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The instruction retired: RIP points behind it, RF is clear. Sequential RIP may be an address
    /// that is not canonical: the next fetch faults then, not this instruction.
    ///
    /// Two things that hang on a retired instruction are the hypervisor's: a blocking of interrupts
    /// by STI or MOV SS ends, and if RFLAGS.TF was set before it a single-step trap (#DB with
    /// DR6.BS) is due.
    Done,
    /// Iterations of a repeated string instruction are done and more are left: RIP still points at
    /// the instruction; RCX, RSI and RDI say where it stands. RF is set, so that an instruction
    /// breakpoint on it does not hit again (SDM volume 3, "Instruction-Breakpoint Exception
    /// Condition").
    ///
    /// Re-enter the guest or call again; pending interrupts may be taken in between. If RFLAGS.TF
    /// is set, exactly one iteration was done and a single-step trap is due.
    Continue,
    /// An event was delivered, IRET returned, or a task was switched: RIP, RF and TF are as that
    /// left them, and no single-step trap is due.
    Transferred,
}

/// Why the instruction was not carried out. No register was changed.
///
/// One exception: a fault in a later iteration of a repeated string instruction leaves the finished
/// iterations finished, with RIP at the instruction, as on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<F> {
    /// An access by way of [`Cpu`](crate::Cpu) faulted: deliver this.
    Fault(F),
    /// This is due.
    Exception(Exception),
    /// An instruction that this crate does not emulate.
    Unsupported,
    /// The instruction goes on behind the bytes given: fetch more, or deliver the fault of that
    /// fetch.
    Truncated,
}

impl<F> From<Exception> for Error<F> {
    fn from(exception: Exception) -> Error<F> {
        Error::Exception(exception)
    }
}
