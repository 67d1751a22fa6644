//! AMD SVM without nested paging.
//!
//! [`capabilities`] says what the CPU has, `backend` sets up the [`vmcb`] and runs the guest by way of
//! `enter`, [`exits`] decodes why it came back, [`failure`] puts a refused VMRUN into words. Modules
//! without `unsafe` are pure logic, tested on the host; each other file implements one trait of
//! [`umbra_vcpu::backend`], but for `tlb` and `instructions`.
//!
//! "APM" is volume 2 of the AMD64 Architecture Programmer's Manual.
#![allow(unsafe_code, reason = "the SVM instructions and the way into the guest")]

mod capabilities;
mod events;
mod exits;
mod failure;
mod permissions;
mod segments;
mod vmcb;

#[cfg(target_os = "none")]
mod address_space;
#[cfg(target_os = "none")]
mod backend;
#[cfg(target_os = "none")]
mod controls;
#[cfg(target_os = "none")]
mod delivery;
#[cfg(target_os = "none")]
mod enter;
#[cfg(target_os = "none")]
mod instructions;
#[cfg(target_os = "none")]
mod isolation;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod retirement;
#[cfg(target_os = "none")]
mod tlb;

#[cfg(target_os = "none")]
pub use backend::Svm;
