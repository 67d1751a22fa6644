//! The Umbra type-1 hypervisor: one multiboot2 ELF that moves itself to the top of physical memory
//! and runs one guest below it.
//!
//! `boot` leads from GRUB to Rust, `startup` is the order of what comes then: `handover` reads what
//! GRUB left and moves the image, `guest` loads the guest, `vcpu` runs it by way of `vmx` or `svm`.
//! `hw` is the CPU and physical memory. Whatever is pure logic, and is tested on the host, lies in
//! `umbra_machine` and `umbra_vcpu`.
//!
//! There is nothing to build for the host but a word to whoever starts it there.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod env;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod handover;
#[cfg(target_os = "none")]
mod hw;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod startup;
#[cfg(target_os = "none")]
mod svm;
#[cfg(target_os = "none")]
mod telemetry;
#[cfg(target_os = "none")]
mod vcpu;
#[cfg(target_os = "none")]
mod vmx;

#[cfg(not(target_os = "none"))]
fn main() {
    println!(
        "This is a hypervisor for the bare machine: build it for x86_64-unknown-none, start it with `umbra run`."
    );
}
