//! The end.

use core::arch::asm;
use core::panic::PanicInfo;

use super::{console, port};
use crate::say;

/// QEMU's isa-debug-exit: the status is twice the value plus one.
const DEBUG_EXIT: u16 = 0xf4;
/// Bochs' shutdown port.
const SHUTDOWN: u16 = 0x8900;

/// Ends the machine: zero is success.
pub fn exit(value: u8) -> ! {
    console::drain();
    port::write_u8(DEBUG_EXIT, value);
    // A machine without that port.
    for byte in *b"Shutdown" {
        port::write_u8(SHUTDOWN, byte);
    }
    loop {
        // SAFETY: nothing is left to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("PANIC {info}");
    exit(3)
}
