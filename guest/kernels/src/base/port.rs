//! Port I/O.

use core::arch::asm;

/// Reads a byte.
pub fn read_u8(port: u16) -> u8 {
    let value;
    // SAFETY: nothing here asks a device for DMA, so a port access changes device state only.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads two bytes.
pub fn read_u16(port: u16) -> u16 {
    let value;
    // SAFETY: as in `read_u8`.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads four bytes.
pub fn read_u32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `read_u8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Writes a byte.
pub fn write_u8(port: u16, value: u8) {
    // SAFETY: as in `read_u8`.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes bytes, one after the other. A hypervisor gets one exit for all of them.
#[cfg(target_arch = "x86_64")]
pub fn write_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: as in `read_u8`; of memory it reads the slice alone.
    unsafe {
        asm!(
            "rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _, options(readonly, nostack, preserves_flags)
        );
    }
}

/// Writes bytes, one after the other: the compiler keeps ESI for itself.
#[cfg(target_arch = "x86")]
pub fn write_bytes(port: u16, bytes: &[u8]) {
    bytes.iter().for_each(|&byte| write_u8(port, byte));
}

/// Writes two bytes.
pub fn write_u16(port: u16, value: u16) {
    // SAFETY: as in `read_u8`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes four bytes.
pub fn write_u32(port: u16, value: u32) {
    // SAFETY: as in `read_u8`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
    };
}
