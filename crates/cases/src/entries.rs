//! Raw table entries, as tests compose them.

use umbra_paging::bits::{A, D, P, U, W};

/// References a table and takes no right away; the CPU has nothing to set in it.
pub const TABLE: u64 = P | W | U | A;
/// Maps a page for everybody; the CPU has nothing to set in it.
pub const PAGE: u64 = TABLE | D;
/// Maps a page for ring 0 only; the CPU has nothing to set in it.
pub const KERNEL_PAGE: u64 = PAGE & !U;
