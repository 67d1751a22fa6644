//! The options of the examples. `cargo xtask` checks them before it builds an example.
#![allow(dead_code, reason = "each program here uses a part of it")]

pub mod campaign;
pub mod exhaustive;
pub mod schedule;

mod number;
