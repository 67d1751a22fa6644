//! AMD SVM as far as it is pure logic: the control block and what its fields mean.
//!
//! [`capabilities`] says what the CPU has, [`exits`] decodes why the guest left, [`failure`] puts a
//! refused VMRUN into words. "APM" is volume 2 of the AMD64 Architecture Programmer's Manual.

pub mod capabilities;
pub mod events;
pub mod exits;
pub mod failure;
pub mod permissions;
pub mod segments;
#[allow(missing_docs, reason = "fields and bits are named as in the manual")]
pub mod vmcb;
