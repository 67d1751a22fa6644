//! The virtual CPU of the Umbra hypervisor, as far as it is pure logic.
//!
//! [`backend`] is what a vendor's virtualization extension does for one virtual CPU: the hypervisor
//! implements it once per vendor. The other modules decide what the guest's CPU does, without
//! touching one: what its CPUID shows, what a write to a control register does, which of its loads
//! of CR3 need no exit. [`svm`] is the part of a backend that touches no CPU. All of them are
//! tested on the host.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access;
pub mod arch_capabilities;
pub mod backend;
pub mod breakpoints;
pub mod control;
pub mod cpuid;
pub mod cr3_reads;
pub mod cr3_targets;
pub mod entry;
pub mod event;
pub mod isolation;
pub mod mmu_events;
pub mod phases;
pub mod svm;
