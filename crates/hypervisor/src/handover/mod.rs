//! What GRUB hands over: [`multiboot`] reads what it left, [`relocate`] moves the image from where
//! it put it to the top of physical memory.
#![allow(unsafe_code, reason = "GRUB's structures and the page-table switch")]

mod multiboot;
mod relocate;

pub use multiboot::{BootInformation, LoaderError};
pub use relocate::relocate;
