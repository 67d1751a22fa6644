//! AMD SVM without nested paging.
//!
//! `backend` sets up the VMCB and runs the guest by way of `enter`; `tlb` flushes. Each other file
//! implements one trait of [`umbra_vcpu::backend`]. What is pure logic lies in [`umbra_vcpu::svm`].
#![allow(unsafe_code, reason = "the SVM instructions and the way into the guest")]

mod address_space;
mod backend;
mod controls;
mod delivery;
mod enter;
mod instructions;
mod isolation;
mod registers;
mod retirement;
mod tlb;

pub use backend::Svm;
