//! What Rust cannot check: I/O ports, the time-stamp counter, and two requests to KVM.

// Opt-in to what the workspace denies: a monitor without them is none; no crate wraps
// KVM_GET_STATS_FD.
#![allow(unsafe_code)]

use std::arch::asm;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::errno::Errno;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// `_IO(KVMIO, 0xce)` of linux/kvm.h.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// The right to write to the machine's I/O ports.
#[derive(Clone, Copy)]
pub struct Ports(());

impl Ports {
    /// Asks the kernel for it.
    ///
    /// # Errors
    /// The kernel's, if this process lacks CAP_SYS_RAWIO.
    pub fn acquire() -> Result<Ports> {
        // SAFETY: iopl changes nothing but this process's right to use ports.
        Errno::result(unsafe { libc::iopl(3) }).context("iopl(3)")?;
        Ok(Ports(()))
    }

    /// Writes a byte to the emulator's debug console.
    pub fn debug_console(self, byte: u8) {
        // SAFETY: `self` proves that iopl was granted, and port 0xe9 prints.
        unsafe { asm!("out 0xe9, al", in("al") byte, options(nomem, nostack, preserves_flags)) }
    }

    /// Writes a byte to the emulator's shutdown port.
    pub fn shutdown(self, byte: u8) {
        // SAFETY: `self` proves that iopl was granted, and port 0x8900 only ever ends the machine.
        unsafe {
            asm!("out dx, al", in("dx") 0x8900u16, in("al") byte, options(nomem, nostack, preserves_flags))
        }
    }
}

/// The time-stamp counter. In Bochs it counts instructions.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is there on every 64-bit CPU, and Linux leaves CR4.TSD clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Gives all of `memory` to a VM.
///
/// # Errors
/// KVM's.
pub fn give_memory(vm: &VmFd, memory: &'static GuestMemoryMmap) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for good (`memory` is static), its slots do not overlap, and
        // this program reaches it by `vm_memory`'s volatile accesses only.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(())
}

/// The file of counters of a VM or a virtual CPU (Linux: Documentation/virt/kvm/api.rst,
/// "KVM_GET_STATS_FD").
///
/// # Errors
/// KVM's.
pub fn counters_file(of: &impl AsRawFd) -> Result<File> {
    // SAFETY: the request takes no argument and returns a new file descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(of.as_raw_fd(), KVM_GET_STATS_FD as _, 0) })
        .context("KVM_GET_STATS_FD")?;
    // SAFETY: the descriptor is new, so nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
