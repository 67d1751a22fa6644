//! The machine around the virtual CPU of the Umbra hypervisor, as far as it is pure logic.
//!
//! Before the guest runs, [`memory`] says who owns which physical memory. [`linux`] plans how a
//! kernel is loaded there, and [`move_plan`] in which order its files move. While it runs,
//! [`upkeep`] and [`screen`] say when the user is to see what it prints. [`canary`] tells at the
//! end whether anybody wrote to memory that is nobody's.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod canary;
pub mod linux;
pub mod memory;
pub mod move_plan;
pub mod screen;
pub mod upkeep;
