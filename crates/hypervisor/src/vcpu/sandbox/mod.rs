//! Instructions that the emulator does not know, carried out by the CPU on copies of their
//! operands.
//!
//! The guest's instruction runs with the guest's registers in an address space of its own. That
//! maps copies of its code and of its operands, at their own linear addresses, and nothing else.
//! CPUID stands behind it, which exits. So the guest's exceptions come from the CPU itself, and the
//! x87 instruction pointer is right. Operands are mapped when the instruction touches them: what it
//! does not touch is neither read from a device nor marked as accessed.
//!
//! A single step in the guest's own address space was rejected: without a monitor trap flag it
//! takes RFLAGS.TF, which the guest's stack and flags show, and events would have to be held back.

mod run;

pub use run::Sandbox;
