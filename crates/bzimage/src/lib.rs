//! The setup header of a Linux bzImage, for its 64-bit and 32-bit boot protocols (Linux,
//! Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
//!
//! The host tool reads it to refuse what cannot boot before it starts a machine, the hypervisor to
//! load the kernel: both by [`SetupHeader::parse`], so what one takes the other takes.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod error;
mod header;
mod version;

pub use error::HeaderError;
pub use header::{HEADER_SPAN, HEADER_START, SetupHeader, is_bzimage};
pub use version::{is_linux, version};

#[cfg(test)]
mod tests;
