//! What the guest kernels and the reference machine test with alike: the combinations of entry bits
//! of the exhaustive set, entries, and pseudo-random numbers.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod cases;
pub mod entries;
pub mod random;

/// Makes the example in the read-me a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;
