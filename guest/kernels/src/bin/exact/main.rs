//! What a machine does, in lines that can be compared: the same on the bare machine and under
//! Umbra.
//!
//! The kernel has no opinion. Each line is `row: name = value`; `cargo xtask exact` runs it on both
//! and compares line by line. What differs for a reason stands in the table of MSRs (`umbra-msrs`)
//! and in xtask's list.
//!
//! The option `only=row,row` picks rows.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod events;
#[cfg(target_os = "none")]
mod msrs;
#[cfg(target_os = "none")]
mod run;

#[cfg(target_os = "none")]
guest_kernels::kernel!(run::main);

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a kernel for the bare machine: start it with `cargo xtask exact`.");
}
