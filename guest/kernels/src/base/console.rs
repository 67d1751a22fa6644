//! Text to the debug port 0xe9 where there is one (it is faster), else to COM1.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use super::port;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
/// It reads as its own number (Bochs, "port_e9_hack"; QEMU, isa-debugcon).
const DEBUG: u16 = 0xe9;

static HAS_DEBUG: AtomicBool = AtomicBool::new(false);

/// Transmitter holding register empty.
const THRE: u8 = 0x20;
/// Transmitter empty: the last byte is on the line.
const TEMT: u8 = 0x40;

/// How often a line status is read at most: a UART that was talked out of its mind must not hang
/// the kernel.
const PATIENCE: u32 = 1_000_000;

fn wait_for(bit: u8) {
    for _ in 0..PATIENCE {
        if port::read_u8(LINE_STATUS) & bit != 0 {
            return;
        }
    }
}

/// Chooses the port, and sets COM1 to 115200 baud, 8 bits, no parity, no interrupts, no loopback.
pub fn init() {
    HAS_DEBUG.store(port::read_u8(DEBUG) == DEBUG as u8, Ordering::Relaxed);
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        port::write_u8(COM1 + register, value);
    }
}

/// Waits until all text has left.
pub fn drain() {
    wait_for(TEMT);
}

/// The chosen port.
#[derive(Debug)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if HAS_DEBUG.load(Ordering::Relaxed) {
            port::write_bytes(DEBUG, text.as_bytes());
            return Ok(());
        }
        for byte in text.bytes() {
            if byte == b'\n' {
                wait_for(THRE);
                port::write_u8(COM1, b'\r');
            }
            wait_for(THRE);
            port::write_u8(COM1, byte);
        }
        Ok(())
    }
}

/// Prints one line.
#[macro_export]
macro_rules! say {
    ($($format:tt)*) => {
        $crate::base::console::print(format_args!("{}\n", format_args!($($format)*)))
    };
}

/// Prints.
pub fn print(arguments: fmt::Arguments<'_>) {
    // No port refuses a byte.
    let _ = Console.write_fmt(arguments);
}
