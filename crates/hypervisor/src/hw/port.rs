//! Port I/O.

use core::arch::asm;

/// Reads a byte.
pub fn read_u8(port: u16) -> u8 {
    // SAFETY: no device of the machine does DMA at the hypervisor's behest; a port access changes
    // device state only.
    unsafe { x86::io::inb(port) }
}

/// Writes a byte.
pub fn write_u8(port: u16, value: u8) {
    // SAFETY: as in `read_u8`.
    unsafe { x86::io::outb(port, value) }
}

/// Writes bytes to one port, in order.
pub fn write_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: reads `bytes`, and as in `read_u8`.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags, readonly),
        );
    }
}
