//! What handlers saw: a vector's order, an instruction's address, a stack.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const ROOM: usize = 64;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static VALUES: [AtomicU64; ROOM] = [const { AtomicU64::new(0) }; ROOM];

/// Forgets.
pub fn clear() {
    COUNT.store(0, Ordering::Relaxed);
}

/// Notes a value. Only so many are kept, but all are counted.
pub fn note(value: u64) {
    let index = COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(slot) = VALUES.get(index) {
        slot.store(value, Ordering::Relaxed);
    }
}

/// How many were noted.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// The first values; zeros behind.
pub fn values() -> [u64; ROOM] {
    core::array::from_fn(
        |index| if index < count() { VALUES[index].load(Ordering::Relaxed) } else { 0 },
    )
}
