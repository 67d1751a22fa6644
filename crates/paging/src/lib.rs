//! x86 paging as a guest programs it: address types, page-table entries, error codes and the walk.
//!
//! Everything here is pure: a walk reads entries through [`Tables`] and says what it found; it
//! changes nothing. 32-bit, PAE and 4-level paging differ by [`Format`] only. The sections of the
//! Intel SDM cited are those of volume 3, chapter "Paging".
//!
//! ```
//! use umbra_paging::{Access, Features, Gpa, Gva, Paging, Tables, walk};
//!
//! /// One page table that maps itself at every level: all 512 entries name frame 1.
//! struct Loop;
//! impl Tables for Loop {
//!     fn read_entry(&self, _: Gpa) -> u64 { 0x1000 | 0b10_0111 } // present, writable, user, accessed
//! }
//!
//! let paging = Paging::from_registers(0x8001_0001, 0x1000, 0x20, 0x500).unwrap();
//! let walk = walk(&Loop, &paging, &Features::new(40, false), Gva::new(0x1234), Access::user_read()).unwrap();
//! assert_eq!(walk.gpa(), Gpa::new(0x1234));
//! ```
#![no_std]
#![forbid(unsafe_code)]

mod addr;
mod control;
mod cr3;
mod entry;
mod fault;
mod format;
mod pdpte;
mod walk;

pub use addr::{Gfn, Gpa, Gva, Hfn, Hpa, PAGE_SIZE};
pub use control::{Features, Mode, Paging, Unsupported, cr0, cr4, efer};
pub use cr3::Cr3Value;
pub use entry::{ENTRIES, GuestEntry, Level, bits};
pub use fault::{Access, AccessKind, GuestFault, Pfec};
pub use format::Format;
pub use pdpte::{Pdptes, ReservedPdpte, loads_pdptes};
pub use walk::{Rights, Step, Tables, Walk, walk};

/// Makes the example in the read-me a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;
