//! Loads small kernels by the Multiboot specification, version 0.6.96.
//!
//! Pure planning: [`Kernel::parse`] looks at a kernel file, [`place()`] says what goes where in
//! guest memory, what the kernel is told ([`Placement::writes`]) and how the CPU starts
//! ([`Entry`]). The caller moves the bytes.
//!
//! Where the specification leaves a choice this loader does as QEMU's `-kernel` does, because that
//! is where small kernels are tested: the modules follow the kernel. A kernel is not refused for
//! requiring information that a virtual machine without a screen does not have (a video mode).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod error;
mod header;
mod information;
mod kernel;
mod place;

pub use error::LoadError;
pub use information::{CODE_SELECTOR, DATA_SELECTOR, GDT_LIMIT, MAGIC, Module, Region};
pub use kernel::{Image, Kernel, Segment};
pub use place::{Entry, Guest, MAX_MODULES, Placement, place};

#[cfg(test)]
mod tests;
