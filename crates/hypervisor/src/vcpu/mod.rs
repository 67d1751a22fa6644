//! The virtual CPU: runs the guest and answers its exits.
//!
//! `umbra_vcpu` has the pure logic, and the interface to a vendor's extension (`backend`). `Vcpu::run`
//! is the loop. One file per subject: `page_fault` decides on a #PF (and behind it `umbra_mmu`),
//! `control_exits` answers accesses to control registers, `decode` what the CPU tells nothing of.

mod phases;
pub mod sandbox;
mod upkeep;

#[cfg(target_os = "none")]
mod audit;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod control_exits;
#[cfg(target_os = "none")]
mod decode;
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
pub use run::Vcpu;
#[cfg(target_os = "none")]
pub use start::run;
