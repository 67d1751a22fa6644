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

#[cfg(target_arch = "x86_64")]
pub mod access;
#[cfg(target_arch = "x86_64")]
pub mod apic;
#[cfg(target_arch = "x86_64")]
pub mod boot;
pub mod console;
#[cfg(target_arch = "x86_64")]
pub mod context;
#[cfg(target_arch = "x86_64")]
pub mod cpu;
#[cfg(target_arch = "x86_64")]
pub mod descriptors;
#[cfg(target_arch = "x86_64")]
pub mod frames;
#[cfg(target_arch = "x86_64")]
pub mod ioapic;
#[cfg(target_arch = "x86_64")]
mod long_mode;
#[cfg(target_arch = "x86_64")]
pub mod observe;
#[cfg(target_arch = "x86_64")]
pub mod oracle;
#[cfg(target_arch = "x86_64")]
pub mod pic;
#[cfg(target_arch = "x86_64")]
pub mod pit;
pub mod port;
pub mod power;
pub mod report;
#[cfg(target_arch = "x86_64")]
pub mod snippets;
#[cfg(target_arch = "x86_64")]
pub mod space;
#[cfg(target_arch = "x86_64")]
pub mod stage;
#[cfg(target_arch = "x86_64")]
pub mod stores;
#[cfg(target_arch = "x86_64")]
pub mod tasks;
#[cfg(target_arch = "x86_64")]
pub mod traps;
pub mod tsc;
#[cfg(target_arch = "x86_64")]
pub mod unpaged;
#[cfg(target_arch = "x86_64")]
pub mod vectors;
#[cfg(target_arch = "x86_64")]
pub mod worlds;
