//! From GRUB to a hypervisor at the top of physical memory.
//!
//! `entry.s` switches to long mode and calls [`boot_main`]; [`multiboot`] reads what GRUB left;
//! [`relocate`] moves the image.
#![allow(
    unsafe_code,
    reason = "the entry from assembly, GRUB's structures and the page-table switch are unsafe"
)]

use core::arch::global_asm;

mod multiboot;
mod relocate;

pub use multiboot::{BootInformation, LoaderError};
pub use relocate::relocate;

use crate::hw::phys::DirectMap;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// The first Rust function.
///
/// # Safety
/// Only the boot stub calls it, once: on the boot stack, with the first 4 GiB of physical memory at the direct
/// map and the image at its linked address.
#[unsafe(no_mangle)]
unsafe extern "C" fn boot_main(information: u32, magic: u32) -> ! {
    // SAFETY: the boot stub's tables provide the direct map; this is the only call.
    let direct_map = unsafe { DirectMap::assume() };
    crate::machine::start(direct_map, information, magic)
}
