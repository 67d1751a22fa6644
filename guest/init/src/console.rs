//! The console: standard output of process 1.

use std::fs;
use std::io::{self, Write};

use anyhow::{Context, Result};
use nix::sys::termios::tcdrain;

/// Keeps the kernel's notes (all that is less than an error) off the console from now on: they come
/// whenever a timer wants, in the middle of a line too.
pub fn quieten_kernel() -> Result<()> {
    let path = "/proc/sys/kernel/printk";
    fs::write(path, "4").context(path)
}

/// Waits until everything that was printed has left the serial port, whose interrupts would
/// otherwise fall into the next phase. A console that is no terminal has nothing to wait for.
pub fn drain() {
    let mut stdout = io::stdout();
    let _ = stdout.flush();
    let _ = tcdrain(&stdout);
}
