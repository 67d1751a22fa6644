//! Small kernels that check the machine they run on, and the kit that they are made of.
//!
//! They are multiboot-1 programs (32-bit entry, paging off) and know nothing of a hypervisor: what
//! they expect is what bare hardware does. The programs are in `src/bin`: `exhaustive`, `hostile`,
//! `basics`, `forms`, `exact` and `machine`.
//!
//! `base` is what any kernel needs, that of `guest/legacy` too, whose code is 32-bit; `kit` is the
//! CPU and its devices as 64-bit code uses them. All unsafe code is there, and exists only for bare
//! metal; the other modules are pure and tested on the host.
#![cfg_attr(any(target_os = "none", target_arch = "x86"), no_std)]

pub mod options;

pub use umbra_cases::{cases, entries, random};

#[cfg(any(target_os = "none", target_arch = "x86"))]
pub mod base;
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub mod kit;
