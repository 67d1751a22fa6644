//! The 8254 timer.

use super::port;

/// Ticks a second.
pub const FREQUENCY: u64 = 1_193_182;

/// Channel 0 in mode 2 (rate generator): an edge on line 0 every `count` ticks.
pub fn start_periodic(count: u16) {
    port::write_u8(0x43, 0x34);
    port::write_u8(0x40, count as u8);
    port::write_u8(0x40, (count >> 8) as u8);
}

/// Channel 0 in mode 0 (interrupt on terminal count), and not counting.
pub fn stop() {
    port::write_u8(0x43, 0x30);
}

/// Channel 0 in mode 0: one edge after `count` ticks.
pub fn start_once(count: u16) {
    stop();
    port::write_u8(0x40, count as u8);
    port::write_u8(0x40, (count >> 8) as u8);
}

/// Channel 0's count now.
pub fn count() -> u16 {
    port::write_u8(0x43, 0);
    u16::from(port::read_u8(0x40)) | u16::from(port::read_u8(0x40)) << 8
}
