//! The CPU, its devices and physical memory: all `unsafe` of boot and hardware is here, in `boot`
//! and in `handover`, behind functions that are safe to call.
#![allow(
    unsafe_code,
    reason = "instructions and physical memory that the compiler knows nothing of"
)]

pub mod apic;
pub mod console;
pub mod cpu;
pub mod descriptors;
pub mod gprs;
pub mod heap;
pub mod heartbeat;
pub mod image;
pub mod interrupts;
pub mod phys;
pub mod pic;
pub mod port;
pub mod power;
pub mod probe;
pub mod rtc;
pub mod timer;
mod vectors;
