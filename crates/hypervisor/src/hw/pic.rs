//! The physical 8259A PICs: moved away from the exceptions' vectors, masked but for the console's
//! line.

use super::port;
use super::vectors::PIC_BASE;

const MASTER_COMMAND: u16 = 0x20;
const MASTER_DATA: u16 = 0x21;
const SLAVE_COMMAND: u16 = 0xa0;
const SLAVE_DATA: u16 = 0xa1;

/// The line at which the slave sits.
const CASCADE: u8 = 2;

/// OCW2: non-specific end of interrupt.
const END_OF_INTERRUPT: u8 = 0x20;

/// Initializes both PICs and unmasks one line of the master (8259A data sheet, "Initialization
/// Command Words").
pub fn init(unmasked: u8) {
    for (command, data, base, wiring) in [
        (MASTER_COMMAND, MASTER_DATA, PIC_BASE, 1 << CASCADE),
        (SLAVE_COMMAND, SLAVE_DATA, PIC_BASE + 8, CASCADE),
    ] {
        port::write_u8(command, 0x11);
        port::write_u8(data, base);
        port::write_u8(data, wiring);
        port::write_u8(data, 0x01);
    }
    port::write_u8(MASTER_DATA, !(1 << unmasked));
    port::write_u8(SLAVE_DATA, 0xff);
}

/// Ends an interrupt of the master.
pub fn end_of_interrupt() {
    port::write_u8(MASTER_COMMAND, END_OF_INTERRUPT);
}

/// An interrupt of a masked line: a PIC reports a request that went away as its line 7 (8259A data
/// sheet, "Interrupt Sequence"). The PIC that did so expects no end of interrupt; behind the
/// slave's, the master does.
pub fn spurious(line: u8) {
    if line >= 8 {
        port::write_u8(MASTER_COMMAND, END_OF_INTERRUPT);
    }
}
