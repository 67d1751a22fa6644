//! Where the hypervisor image lies (link.ld).

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    static image_start: u8;
    static image_data: u8;
    static image_stack_guard: u8;
    static image_end: u8;
}

/// `IMAGE_OFFSET` of link.ld: how far the image is linked above the address that GRUB loads it at.
const OFFSET: u64 = 0xffff_ffff_8000_0000;

/// Where the image lies now, once it is no longer where GRUB loaded it; 0 before.
static MOVED_TO: AtomicU64 = AtomicU64::new(0);

/// The linked addresses, whole pages.
pub fn virtual_range() -> Range<u64> {
    (&raw const image_start) as u64..(&raw const image_end) as u64
}

/// The page below the stack, which stays unmapped.
pub fn stack_guard() -> u64 {
    (&raw const image_stack_guard) as u64
}

/// Whether a page is written to: data and stack.
pub fn is_writable(va: u64) -> bool {
    va >= (&raw const image_data) as u64
}

/// The physical address of the image.
pub fn physical_start() -> u64 {
    match MOVED_TO.load(Ordering::Relaxed) {
        0 => virtual_range().start - OFFSET,
        moved => moved,
    }
}

/// Notes that the image has moved.
pub fn set_physical_start(hpa: u64) {
    MOVED_TO.store(hpa, Ordering::Relaxed);
}
