//! The tool's end of the machine, by its ports: no driver of the kernel on trial stands between.

// Opt-in to what the workspace denies: port instructions are no functions of any crate.
#![allow(unsafe_code)]

use std::arch::asm;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// Bochs's port that prints, and the one that ends the machine when [`SHUTDOWN`] comes.
const DEBUG_CONSOLE: u16 = 0xe9;
const END: u16 = 0x8900;
const SHUTDOWN: &[u8] = b"Shutdown";

const COM2: u16 = 0x2f8;
const FIFO_CONTROL: u16 = COM2 + 2;
const LINE_CONTROL: u16 = COM2 + 3;
const LINE_STATUS: u16 = COM2 + 5;
/// FIFOs on and empty, and eight bits to a byte.
const FIFOS: u8 = 0xc7;
const EIGHT_BITS: u8 = 3;
const HAS_DATA: u8 = 1;
const CAN_SEND: u8 = 1 << 5;

/// The right to use the machine's I/O ports, and COM2 set up.
pub struct Ports(());

impl Ports {
    /// Asks the kernel for it.
    ///
    /// # Errors
    /// The kernel's, if this process lacks CAP_SYS_RAWIO.
    pub fn acquire() -> Result<Ports> {
        // SAFETY: iopl changes nothing but this process's right to use ports.
        Errno::result(unsafe { libc::iopl(3) }).context("iopl(3)")?;
        let ports = Ports(());
        ports.write(LINE_CONTROL, EIGHT_BITS);
        ports.write(FIFO_CONTROL, FIFOS);
        Ok(ports)
    }

    fn write(&self, port: u16, byte: u8) {
        // SAFETY: `self` proves that iopl was granted. All ports of this module are COM2's, or
        // print, or end the machine.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags))
        }
    }

    fn read(&self, port: u16) -> u8 {
        let byte;
        // SAFETY: as in `write`.
        unsafe {
            asm!("in al, dx", in("dx") port, out("al") byte, options(nomem, nostack, preserves_flags))
        }
        byte
    }

    /// The next byte, if one has come.
    pub fn receive(&self) -> Option<u8> {
        (self.read(LINE_STATUS) & HAS_DATA != 0).then(|| self.read(COM2))
    }

    /// Prints a byte, in Bochs.
    pub fn print(&self, byte: u8) {
        self.write(DEBUG_CONSOLE, byte);
    }

    /// Ends the machine, in Bochs.
    pub fn end_machine(&self) {
        SHUTDOWN.iter().for_each(|&byte| self.write(END, byte));
    }

    /// Sends a byte.
    pub fn send(&self, byte: u8) {
        while self.read(LINE_STATUS) & CAN_SEND == 0 {}
        self.write(COM2, byte);
    }
}
