//! Guests that do what no sane one does, and must hurt only themselves. Where bare hardware says
//! what comes of it, it is checked.
//!
//! Options: `hostile=name,name` picks tests, `except=name,name` leaves some out, `seed=N`,
//! `rounds=N`; `quick` does a quarter of what tests repeat.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod delivery;
#[cfg(target_os = "none")]
mod descriptor_tables;
#[cfg(target_os = "none")]
mod extensions;
#[cfg(target_os = "none")]
mod garbage;
#[cfg(target_os = "none")]
mod nowhere;
#[cfg(target_os = "none")]
mod partial;
#[cfg(target_os = "none")]
mod roots;
#[cfg(target_os = "none")]
mod selfmap;
#[cfg(target_os = "none")]
mod setting;
#[cfg(target_os = "none")]
mod stores;
#[cfg(target_os = "none")]
mod switches;
#[cfg(target_os = "none")]
mod tangle;
#[cfg(target_os = "none")]
mod tests;

#[cfg(target_os = "none")]
guest_kernels::kernel!(tests::main);

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a kernel for the bare machine: start it with `umbra run --kernel`.");
}
