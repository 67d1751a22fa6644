//! The CPU and its devices, as a small kernel uses them.
//!
//! What makes the safe functions here sound: the compiler's own memory is the image (`link.ld`) and
//! nothing else. [`frames::Frame`] is memory beyond it and of the multiboot modules, touched only
//! by volatile accesses; test tables ([`space`]) map such frames, devices, or nothing. The first
//! PML4 entry of every root is the kit's own.
#![allow(
    unsafe_code,
    reason = "instructions, tables and devices that the compiler knows nothing of"
)]

pub mod access;
pub mod apic;
pub mod boot;
pub mod context;
pub mod cpu;
pub mod descriptors;
pub mod frames;
pub mod ioapic;
mod long_mode;
pub mod observe;
pub mod oracle;
pub mod pic;
pub mod pit;
pub mod snippets;
pub mod space;
pub mod stage;
pub mod stores;
pub mod tasks;
pub mod traps;
pub mod unpaged;
pub mod vectors;
pub mod worlds;

pub use crate::base::{console, port, power, report, tsc};
