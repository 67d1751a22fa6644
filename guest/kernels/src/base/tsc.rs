//! The time-stamp counter.

#[cfg(target_arch = "x86")]
use core::arch::x86::_rdtsc;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::_rdtsc;

/// Its value.
pub fn tsc() -> u64 {
    // SAFETY: CR4.TSD is clear, and reading changes nothing.
    unsafe { _rdtsc() }
}
