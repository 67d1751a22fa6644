//! The few things that Rust cannot check: I/O ports, touching pages that may fault, memory that
//! processes share, fork, the time-stamp counter, and a signal handler. Everything outside this
//! folder is safe code.

// Opt-in to what the workspace denies: an exerciser of page faults must map, touch and fork by
// itself; no crate wraps these for a program that *wants* the faults.
#![allow(unsafe_code)]

pub mod mapping;
pub mod ports;
pub mod process;
pub mod segv;
pub mod shared;
pub mod terminal;
pub mod time;
