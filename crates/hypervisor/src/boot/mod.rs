//! From GRUB to Rust: `entry.s` switches to long mode and calls [`boot_main`].
#![allow(unsafe_code, reason = "the entry from assembly")]

use core::arch::global_asm;

use crate::hw::phys::DirectMap;
use crate::startup;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// The first Rust function.
///
/// # Safety
/// Only the boot stub calls it, once: on the boot stack, with the first 4 GiB of physical memory at
/// the direct map and the image at its linked address.
#[unsafe(no_mangle)]
unsafe extern "C" fn boot_main(information: u32, magic: u32) -> ! {
    // SAFETY: the boot stub's tables provide the direct map; this is the only call.
    let direct_map = unsafe { DirectMap::assume() };
    startup::start(direct_map, information, magic)
}
