//! Every memory form of x86 instructions, and the cases that a guest kernel makes of each.
//!
//! A [`Form`] is an encoding in one mode of code, with what it needs to run. A [`Case`] is a form
//! with its operand on one [`Kind`] of memory, in one [`Ring`]. The host makes the table (feature
//! `generate`) and chooses the cases; the kernel `forms` gets both as modules and runs them. A
//! [`program`] is for the kernel `machine`: several instructions of any kind, and the state that
//! they start in.
#![cfg_attr(not(feature = "generate"), no_std)]
#![forbid(unsafe_code)]

mod case;
mod form;
#[cfg(feature = "generate")]
pub mod generate;
mod kind;
pub mod program;

pub use case::{Case, Ring, START};
pub use form::{
    Contents, DISPLACEMENT, Form, LANDING, Mode, ORIGIN, PORT, RECORD, Registers, Role,
};
pub use kind::{Kind, Page};
