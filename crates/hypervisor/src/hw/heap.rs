//! The heap.

use talc::TalcLock;
use talc::source::Claim;

use super::phys::{DirectMap, Unused};

/// Serves until the layout of memory is known.
const EARLY: usize = 256 << 10;

static mut EARLY_HEAP: [u8; EARLY] = [0; EARLY];

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Claim> =
    // SAFETY: nothing else refers to EARLY_HEAP.
    TalcLock::new(unsafe { Claim::array(&raw mut EARLY_HEAP) });

/// Adds physical memory to the heap.
pub fn add(map: &DirectMap, memory: Unused) {
    let range = memory.into_range();
    // SAFETY: the memory is nobody's, and the heap has it from now on.
    let claimed =
        unsafe { HEAP.lock().claim(map.pointer(range.start), (range.end - range.start) as usize) };
    assert!(claimed.is_some(), "a range for the heap is large enough to be one");
}

/// Whether somebody is within the allocator: on one CPU, the one who was interrupted.
pub fn is_busy() -> bool {
    HEAP.try_lock().is_none()
}
