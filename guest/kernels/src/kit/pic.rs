//! The two 8259 interrupt controllers.

use super::port;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;

/// The vector of the first of the sixteen lines.
pub const VECTORS: u8 = 0x30;

/// Initializes both, with all lines masked (8259A data sheet, "Initialization Command Words").
pub fn init() {
    for (chip, vectors, wiring) in [(MASTER, VECTORS, 1 << 2), (SLAVE, VECTORS + 8, 2)] {
        port::write_u8(chip, 0x11);
        port::write_u8(chip + 1, vectors);
        port::write_u8(chip + 1, wiring);
        port::write_u8(chip + 1, 1);
        port::write_u8(chip + 1, 0xff);
    }
}

/// Sets the masks of the lines 0 to 7 and 8 to 15.
pub fn set_masks(master: u8, slave: u8) {
    port::write_u8(MASTER + 1, master);
    port::write_u8(SLAVE + 1, slave);
}

/// The masks.
pub fn masks() -> (u8, u8) {
    (port::read_u8(MASTER + 1), port::read_u8(SLAVE + 1))
}

/// Ends the interrupt in service of the first controller.
pub fn end_of_interrupt() {
    port::write_u8(MASTER, 0x20);
}

/// Ends the interrupts in service of both controllers.
pub fn end_of_slave_interrupt() {
    port::write_u8(SLAVE, 0x20);
    end_of_interrupt();
}

/// The lines that ask at the first controller.
pub fn requests() -> u8 {
    port::write_u8(MASTER, 0x0a);
    port::read_u8(MASTER)
}
