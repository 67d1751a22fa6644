//! All combinations of entry bits at two levels, under all settings of the control bits, for all
//! kinds of access, against the guest walk of `umbra-paging`: outcome, error code, CR2, where the
//! access went, A and D afterwards.
//!
//! Options: `full` takes every combination (otherwise of those with bits that cannot matter one in
//! `spare=64`, picked by `seed=`); `stride=N` and `offset=K` take every Nth case; `quick` is
//! `stride=61`; `levels=21,32,43` picks pairs of levels; `strict` forbids that a walk that faults
//! sets A, which the architecture allows.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_op_in_unsafe_fn)]

#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod run;

#[cfg(target_os = "none")]
guest_kernels::kernel!(run::main);

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a kernel for the bare machine: start it with `umbra run --kernel`.");
}
