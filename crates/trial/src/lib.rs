//! Other people's hypervisors on trial: programs that run as *guest code*, and the judge of what
//! the guest observes.
//!
//! `umbra_reference` judges shadow MMUs that stand behind its `Machine` trait. Here the hypervisor
//! is a whole program, such as Linux with KVM, and a guest of ours is all that can look at it:
//!
//! - [`program`] says what a guest and its host do, step by step; [`generate`] makes random ones.
//! - [`image`] lays out the guest: its tables, and a small [`stub`] that carries out one step after
//!   the other and writes down what it saw.
//! - [`target`] is what a hypervisor has to offer: implement [`target::Driver`] for yours.
//! - [`judge`] compares what the guest saw with the reference machine's oracle.
//! - [`console`] finds the host's death, or a warning, in what its kernel prints.
//!
//! A program is judged step by step: the value that an access read, or the page fault that it
//! raised (error code, CR2, instruction pointer); each word of the tables and the data, accessed
//! and dirty bits included, after each step; which pages the dirty log names; and all of the
//! guest's memory at the end.
//!
//! # What cannot be seen
//! The judge allows what a CPU may have cached since the guest's last flush, and nothing else. No
//! emulator keeps stale TLB entries across VM entries, so a flush that the *hypervisor* forgets
//! does not show on one. `umbra_reference`, with its hostile TLB, finds those.
#![forbid(unsafe_code)]

pub mod bare;
pub mod console;
pub mod generate;
pub mod image;
pub mod judge;
pub mod layout;
pub mod program;
pub mod record;
pub mod simulated;
pub mod stub;
pub mod target;
pub mod wire;
