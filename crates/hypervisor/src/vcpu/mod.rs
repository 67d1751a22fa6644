//! The virtual CPU: runs the guest and answers its exits.
//!
//! `backend` is what a vendor's extension provides; `Vcpu::run` is the loop. One file per subject: where a
//! #PF is decided is `page_fault` (and behind it `umbra_mmu`), what a write to a control register does is
//! `control`, what the guest's CPU looks like is `cpuid`.

mod access;
pub mod backend;
pub mod breakpoints;
pub mod control;
pub mod event;

mod cpuid;
mod immunity;
mod phases;
pub mod sandbox;
mod targets;
mod upkeep;

#[cfg(target_os = "none")]
mod audit;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod control_exits;
#[cfg(target_os = "none")]
mod delivery;
#[cfg(target_os = "none")]
mod emulation;
#[cfg(target_os = "none")]
mod instructions;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod io;
#[cfg(target_os = "none")]
mod msr;
#[cfg(target_os = "none")]
mod page_fault;
#[cfg(target_os = "none")]
mod policy;
#[cfg(target_os = "none")]
mod roots;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod screen;
#[cfg(target_os = "none")]
mod simple;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod system;
#[cfg(target_os = "none")]
mod trace;

#[cfg(target_os = "none")]
pub use run::{MACHINE_CHECK, Vcpu};
#[cfg(target_os = "none")]
pub use start::run;
