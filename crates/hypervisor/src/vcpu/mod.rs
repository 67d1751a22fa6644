//! The virtual CPU: runs the guest and answers its exits.
//!
//! `umbra_vcpu` has the pure logic, and the interface to a vendor's extension (`backend`). `Vcpu::run`
//! is the loop. One file per subject: `page_fault` decides on a #PF (and behind it `umbra_mmu`),
//! `control_exits` answers accesses to control registers, `decode` what the CPU tells nothing of.

pub mod sandbox;

mod audit;
mod clock;
mod control_exits;
mod decode;
mod delivery;
mod emulation;
mod instructions;
mod interrupts;
mod io;
mod msr;
mod page_fault;
mod policy;
mod roots;
mod run;
mod screen;
mod simple;
mod start;
mod system;
mod trace;

pub use run::{MACHINE_CHECK, Vcpu};
pub use start::run;
