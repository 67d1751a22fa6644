//! The reference machine: what an x86 paging unit may do, and a conformance kit that judges shadow
//! MMUs by it.
//!
//! Start with [`conformance`]: it puts your embedding of `umbra_mmu`, or a shadow MMU of your own,
//! to the test. You implement one trait, [`machine::Machine`].
//!
//! - [`hardware`] is the paging unit, with a TLB and paging-structure caches that keep, drop or refill by a seeded
//!   random source whatever the SDM allows. It is written independently of `umbra_paging::walk`.
//! - [`oracle`] computes which outcomes bare hardware allows for an access, from the guest's tables and from
//!   everything that may have been cached since the last flush.
//! - [`program`] makes random guest programs in a small [`universe`]; [`machine`]s run them: bare, on
//!   `umbra_mmu::Mmu`, or on yours.
//! - [`run_on`] judges every step; [`minimize`](minimize::minimize) makes a failing program short; [`coverage`]
//!   says what was met.
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
//! What is modelled: 32-bit, PAE and 4-level paging and paging off, with switches between them,
//! 4 KiB, 2 MiB, 4 MiB and 1 GiB pages, PSE-36, PDPTE registers, U/S, R/W, XD, SMEP, SMAP, CR0.WP,
//! PCIDs, global pages, reserved bits of every MAXPHYADDR, accessed bits that the CPU sets
//! speculatively, several CPUs. Left out: 5-level paging, and protection keys.
#![forbid(unsafe_code)]

pub mod conformance;
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
pub mod schedule;
pub mod universe;

/// Makes the example in the read-me a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;

pub use run::{Config, Divergence, Session, run_on, run_program};
