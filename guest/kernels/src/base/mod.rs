//! What any kernel needs, of 32-bit code as of 64-bit code: ports, text, the end, and checks.
#![allow(unsafe_code, reason = "instructions, and what a loader leaves in memory")]

pub mod console;
pub mod loader;
pub mod port;
pub mod power;
pub mod report;
pub mod tsc;
