//! The memory behind a guest's slot.

// Opt-in to what the workspace denies: a monitor maps memory, and shares it with its guest.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::ptr;

use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use umbra_trial::layout::{PAGE, REGION};

/// KVM_SET_NR_MMU_PAGES (Linux, Documentation/virt/kvm/api.rst), and the least that it takes:
/// KVM_MIN_ALLOC_MMU_PAGES.
const SET_NR_MMU_PAGES: u32 = 0xae44;
const FEWEST_PAGES: libc::c_ulong = 64;

/// Leaves KVM as few shadow pages as it takes.
///
/// # Errors
/// KVM refuses.
pub fn leave_few_shadow_pages(vm: &VmFd) -> Result<()> {
    // SAFETY: the call takes a number, and touches no memory of this process.
    let done = unsafe { libc::ioctl(vm.as_raw_fd(), SET_NR_MMU_PAGES as _, FEWEST_PAGES) };
    Errno::result(done).map(drop).context("KVM_SET_NR_MMU_PAGES")
}

/// Memory of one region, aligned to its size.
pub struct Backing {
    mapped: *mut libc::c_void,
    /// Within what is mapped.
    start: *mut u8,
}

// SAFETY: the mapping belongs to the process, and no thread's end takes it away.
unsafe impl Send for Backing {}

/// Twice the size, so that an aligned region lies within.
const MAPPED: usize = 2 * REGION as usize;

impl Backing {
    /// Zeroed memory, on huge pages if the kernel has some and `huge`.
    ///
    /// # Errors
    /// The kernel has none left.
    pub fn new(huge: bool) -> Result<Backing> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, where the kernel likes.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), MAPPED, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(Errno::last()).context("mmap");
        }
        let start = mapped.cast::<u8>();
        // Less than REGION further on, and another REGION bytes are mapped behind.
        let start = start.wrapping_add(start.align_offset(REGION as usize));
        let backing = Backing { mapped, start };
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // Kernels without huge pages refuse, which is as good.
        let _ = backing.advise(0, REGION as usize, advice);
        Ok(backing)
    }

    fn advise(&self, offset: usize, length: usize, advice: i32) -> Result<(), Errno> {
        assert!(offset + length <= REGION as usize);
        // SAFETY: the range lies within this mapping, which holds plain bytes; zero is one of them.
        Errno::result(unsafe { libc::madvise(self.start.add(offset).cast(), length, advice) })
            .map(drop)
    }

    /// The word at an offset, a multiple of 8.
    pub fn read(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(8) && offset < REGION);
        // SAFETY: within the mapping and aligned. No CPU of the guest writes there meanwhile, and
        // volatile holds back the compiler.
        unsafe { self.start.add(offset as usize).cast::<u64>().read_volatile() }
    }

    /// Writes the word at an offset, a multiple of 8.
    pub fn write(&self, offset: u64, value: u64) {
        assert!(offset.is_multiple_of(8) && offset < REGION);
        // SAFETY: as in `read`.
        unsafe { self.start.add(offset as usize).cast::<u64>().write_volatile(value) }
    }

    /// Writes bytes.
    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            let (word, shift) = (at & !7, 8 * (at & 7));
            self.write(word, self.read(word) & !(0xff << shift) | u64::from(byte) << shift);
        }
    }

    /// Copies everything of another one.
    pub fn copy(&self, other: &Backing) {
        // SAFETY: two mappings of REGION bytes each, and no CPU of a guest writes to either.
        unsafe { ptr::copy_nonoverlapping(other.start, self.start, REGION as usize) }
    }

    /// Gives the pages back to the kernel, and restores what stood there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let words = (offset..offset + length).step_by(8);
        let saved: Vec<(u64, u64)> =
            words.map(|at| (at, self.read(at))).filter(|&(_, value)| value != 0).collect();
        self.advise(offset as usize, length as usize, libc::MADV_DONTNEED)
            .context("MADV_DONTNEED")?;
        saved.into_iter().for_each(|(at, value)| self.write(at, value));
        Ok(())
    }

    /// Makes everything read-only for this process, and writable again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn protect(&self) -> Result<()> {
        for protection in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
            // SAFETY: the range is this mapping, and nobody writes it in between.
            Errno::result(unsafe {
                libc::mprotect(self.start.cast(), REGION as usize, protection)
            })
            .context("mprotect")?;
        }
        Ok(())
    }

    /// Makes, changes or (with a size of 0) deletes a slot of this memory.
    ///
    /// # Errors
    /// KVM's.
    pub fn set_slot(&self, vm: &VmFd, slot: u32, flags: u32, gpa: u64, size: u64) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: self.start as u64,
        };
        // SAFETY: the mapping is REGION bytes long, and the driver keeps it until the slot is
        // deleted or the VM is gone. This program reaches it by the methods above only.
        unsafe { vm.set_user_memory_region(region) }.with_context(|| {
            format!("KVM_SET_USER_MEMORY_REGION of {size:#x} bytes with flags {flags:#x}")
        })
    }

    /// The frames of this region, in pages.
    pub const PAGES: u64 = REGION / PAGE;
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and ends with it.
        unsafe { libc::munmap(self.mapped, MAPPED) };
    }
}
