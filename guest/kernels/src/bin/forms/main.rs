//! Every memory form of instructions on every kind of memory: prints a hash of what each case did.
//!
//! The kernel has no opinion of its own: the same cases on the bare machine say what is right. The
//! first module is the table of forms, the second the cases, as `umbra_forms` defines them.
//!
//! Options: `show` prints each case in words: everything that went into the hash. `align` has
//! alignment checked in ring 3. `step` sets RFLAGS.TF: each case ends with the debug exception
//! behind its instruction. `chain` takes the list as programs of several cases, each of which
//! begins with `umbra_forms::START` and a seed.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod chain;
#[cfg(target_os = "none")]
mod place;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod run;

#[cfg(target_os = "none")]
guest_kernels::kernel!(run::main);

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a kernel for the bare machine: start it with `cargo xtask forms`.");
}
