//! What any kernel takes for granted: exceptions, stacks, interrupts, timers, control bits, the
//! platform's least.
//!
//! Options: `only=name,name` picks tests, `except=name,name` leaves some out; `fw_cfg` makes it a
//! failure if the machine has no fw_cfg, `modules=N` if the loader does not pass so many modules.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod breakpoints;
#[cfg(target_os = "none")]
mod compatibility;
#[cfg(target_os = "none")]
mod control;
#[cfg(target_os = "none")]
mod delivery;
#[cfg(target_os = "none")]
mod exceptions;
#[cfg(target_os = "none")]
mod fpu;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod invalidation;
#[cfg(target_os = "none")]
mod log;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod operands;
#[cfg(target_os = "none")]
mod platform;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod setting;
#[cfg(target_os = "none")]
mod stepping;
#[cfg(target_os = "none")]
mod tasks;
#[cfg(target_os = "none")]
mod tests;
#[cfg(target_os = "none")]
mod timers;

#[cfg(target_os = "none")]
guest_kernels::kernel!(tests::main);

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a kernel for the bare machine: start it with `umbra run --kernel`.");
}
