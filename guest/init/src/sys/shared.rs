//! Memory that a process and its later children have in common.

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// So many numbers, all zero, for good. Every page has been touched, so that using them does not
/// fault.
///
/// # Errors
/// The kernel's.
pub fn numbers(count: NonZeroUsize) -> Result<&'static [AtomicU64]> {
    let bytes = count.checked_mul(const { NonZeroUsize::new(size_of::<AtomicU64>()).unwrap() });
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
    // SAFETY: the kernel chooses an unused address, so no other memory is replaced.
    let start = unsafe {
        mmap_anonymous(
            None,
            bytes.context("too many numbers")?,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            flags,
        )
    }
    .context("mmap of shared memory")?;
    // SAFETY: the mapping is page-aligned, has at least so many bytes, is never unmapped, and
    // starts as zeros, which are valid; what other processes do to it they do by the same atomics.
    Ok(unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), count.get()) })
}
