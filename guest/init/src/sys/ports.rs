//! The I/O ports of the machine that this program talks to.

use std::arch::asm;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// A port that this program may write to.
#[derive(Clone, Copy)]
pub struct Port(u16);

impl Port {
    /// Starts and ends phases.
    pub const PHASE: Port = Port(0x5f0);
    /// The operations of the phase that ends next.
    pub const OPS: Port = Port(0x5f4);
    /// Ends the machine; zero is success.
    pub const EXIT: Port = Port(0xf4);
    /// The emulator's debug console: what is written there, byte by byte, goes to the tool.
    pub const DEBUG_CONSOLE: Port = Port(0xe9);
    /// Bochs's own end: it wants the text `Shutdown`, byte by byte.
    pub const SHUTDOWN: Port = Port(0x8900);

    /// Its number.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// The right to write to I/O ports. Children inherit it.
#[derive(Clone, Copy, Debug)]
pub struct Ports(());

impl Ports {
    /// Asks the kernel for it. `ioperm` would be narrower but ends at port 0x3ff on older kernels.
    ///
    /// # Errors
    /// The kernel's, if this process lacks CAP_SYS_RAWIO.
    pub fn acquire() -> Result<Ports> {
        // SAFETY: iopl changes nothing but this process's right to use ports.
        Errno::result(unsafe { libc::iopl(3) }).context("iopl(3)")?;
        Ok(Ports(()))
    }

    /// Writes a byte.
    pub fn write_byte(self, port: Port, value: u8) {
        // SAFETY: as in `write`.
        unsafe {
            asm!("out dx, al", in("dx") port.0, in("al") value, options(nostack, preserves_flags))
        }
    }

    /// Writes 32 bits.
    pub fn write(self, port: Port, value: u32) {
        // SAFETY: `self` proves that iopl was granted, so OUT does not fault, and none of the
        // `Port`s there are makes a device touch memory.
        unsafe {
            asm!("out dx, eax", in("dx") port.0, in("eax") value, options(nostack, preserves_flags))
        }
    }
}
