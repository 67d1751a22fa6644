//! The end of the machine.

use super::{cpu, port};

/// Bochs ends when this text arrives at its "Shutdown" port.
const SHUTDOWN_PORT: u16 = 0x8900;

/// Ends the machine.
pub fn off() -> ! {
    port::write_bytes(SHUTDOWN_PORT, b"Shutdown");
    cpu::halt_forever()
}
