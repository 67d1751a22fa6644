//! Which vectors the host's interrupts have.

/// The first vector of the PICs' sixteen.
pub const PIC_BASE: u8 = 0x20;
/// Local APIC timer.
pub const TIMER: u8 = 0x30;
/// Local APIC spurious interrupt; needs no end of interrupt.
pub const SPURIOUS: u8 = 0xff;
