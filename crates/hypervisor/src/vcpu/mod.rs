//! The virtual CPU: runs the guest and answers its exits.
//!
//! `umbra_vcpu` has the pure logic, and the interface to a vendor's extension (`backend`).
//! `Vcpu::run` is the loop. One file per subject: `page_fault` decides on a #PF (and behind it
//! `umbra_mmu`), `control_exits` answers accesses to control registers, `decode` what the CPU tells
//! nothing of.

pub mod sandbox;

mod accounts;
mod address_space;
mod audit;
mod console;
mod control_exits;
mod cpuid_exits;
mod decode;
mod delivery;
mod emulation;
mod events;
mod guest_cpu;
mod instruction;
mod io;
mod msr;
mod page_fault;
mod platform;
mod policy;
mod progress;
mod run;
mod screen;
mod simple;
mod start;
mod system;
mod time;
mod trace;

pub use run::Vcpu;
pub use start::run;

use umbra_mmu::VcpuId;

/// The guest's only vCPU.
const VCPU: VcpuId = VcpuId::new(0);
