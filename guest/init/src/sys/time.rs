//! Time.

#[cfg(target_arch = "x86")]
use core::arch::x86::_rdtsc;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::_rdtsc;

/// The time-stamp counter. In Bochs it counts instructions.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is there on every CPU that Rust's targets ask for, and Linux leaves CR4.TSD
    // clear.
    unsafe { _rdtsc() }
}
