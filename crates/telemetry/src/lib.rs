//! What the hypervisor and the host tool say to each other.
//!
//! Host to hypervisor: a [`BootConfig`] in the boot image, and [`command`] bytes in the console
//! input. Hypervisor to host: [`Message`]s, each in one [`frame`], through the machine's port 0xe9.
//!
//! Both sides are built from the same checkout, so there is no version negotiation:
//! [`Message::Hello`] carries [`PROTOCOL`], and the tool refuses another one.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod cause;
pub mod command;
mod config;
pub mod frame;
pub mod memory;
mod message;
pub mod trace;

pub use cause::{ExitCause, ExitCounts};
pub use config::{Audit, BootConfig, GuestFaults, Mechanism, module_name};
pub use message::{
    GuestExit, LogLevel, Message, MmuCounters, PHASE_NAMES, PhaseStats, SCREEN_COLUMNS,
    SCREEN_ROWS, Stats, phase_name,
};

/// The version of everything in this crate that travels between hypervisor and tool.
pub const PROTOCOL: u32 = 7;
