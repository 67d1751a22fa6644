//! Time.

/// The time-stamp counter. In Bochs it counts instructions.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is there on every 64-bit CPU, and Linux leaves CR4.TSD clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}
