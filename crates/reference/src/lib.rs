//! The reference machine: what an x86 paging unit may do, and a differential test of the shadow MMU against it.
//!
//! - [`hardware`] is the paging unit, with a TLB and paging-structure caches that keep, drop or refill by a seeded
//!   random source whatever the SDM allows. It is written independently of `umbra_paging::walk`.
//! - [`oracle`] computes which outcomes bare hardware allows for an access, from the guest's tables and from
//!   everything that may have been cached since the last flush.
//! - [`program`] makes random guest programs; [`machine`] runs them, bare or through `umbra_mmu::Mmu`.
//! - [`run_program`] judges every step; [`minimize`](minimize::minimize) makes a failing program short.
//!
//! Any bytes are a program, so a fuzzer needs no more than this:
//!
//! ```
//! use umbra_reference::{Config, program::Program, run_program};
//!
//! let data: Vec<u8> = (0..=255).cycle().take(800).collect();
//! let program = Program::from_bytes(&data);
//! let coverage = run_program(&program, &Config::from_word(program.seed, true)).unwrap();
//! assert_eq!(coverage.get("steps"), 98);
//! ```
//!
//! A shadow MMU other than `umbra_mmu` is put to the test by an own [`machine::Machine`] and [`run_on`].
//!
//! Left out: speculation that sets accessed bits which no access of the program sets.
#![forbid(unsafe_code)]

pub mod coverage;
pub mod exhaustive;
pub mod hardware;
pub mod machine;
pub mod memory;
pub mod minimize;
pub mod oracle;
pub mod program;
pub mod recipe;
pub mod registers;
mod run;
pub mod universe;

pub use run::{Config, Divergence, Session, run_on, run_program};
