//! The Umbra type-1 hypervisor: one multiboot2 ELF that moves itself to the top of physical memory and runs
//! one guest below it.
//!
//! `boot` leads from GRUB to Rust, `hw` is the CPU and physical memory, `memory` says what lies where,
//! `linux` plans how a Linux guest is loaded and `umbra_multiboot` how a small kernel is, `guest` does it, `vcpu`
//! runs it.
//!
//! The host build of this crate only tests the modules that are pure logic.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    not(target_os = "none"),
    allow(dead_code, unused_imports, reason = "on the host, only tests use the pure modules")
)]

extern crate alloc;

mod canary;
mod entry;
mod events;
mod input;
mod linux;
mod memory;
mod moves;
mod screen;
mod svm;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod env;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod hw;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod telemetry;
mod vcpu;
#[cfg(target_os = "none")]
mod vmx;

#[cfg(not(target_os = "none"))]
fn main() {
    println!(
        "This is a hypervisor for the bare machine: build it for x86_64-unknown-none, start it with `umbra run`."
    );
}
