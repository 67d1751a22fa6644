//! Random programs of several instructions, in every mode of code: prints a hash of what each did.
//!
//! The kernel has no opinion of its own: the same programs on the bare machine say what is right.
//! The module is a list of programs as `umbra_forms::program` defines them. Each starts from the
//! same state: descriptor tables, page tables, memory, registers and devices are set anew.
//!
//! Options: `show` prints in words all that went into the hashes; `events` prints behind each hash
//! the vectors of the events, and the steps in which they came.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod arena;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod tables;

#[cfg(target_os = "none")]
guest_kernels::kernel!(run::main);

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a kernel for the bare machine: start it with `cargo xtask machine-fuzz`.");
}
