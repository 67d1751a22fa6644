//! Every model-specific register (MSR), as a guest has it.
//!
//! [`TABLE`] is the data: one [`Row`] per register, or per group of registers that are alike. The
//! hypervisor answers RDMSR and WRMSR by it ([`Registers`]), and the book prints it ([`Markdown`]).
//! Where a guest finds something else than on the bare machine, `cargo xtask exact` gives its
//! reasons. A register without a row raises #GP.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod markdown;
mod registers;
mod row;
mod table;

pub use markdown::Markdown;
pub use registers::{Answer, Flips, Refused, Registers};
pub use row::{Bits, Check, Cpu, Models, Row, Source, Treatment, Value, Vendor};
pub use table::TABLE;

/// The row of a register on a CPU.
pub fn row(msr: u32, cpu: &Cpu) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.contains(msr) && row.is_on(cpu))
}
