//! The I/O APIC: an 82093AA with 24 pins.
//!
//! Intel 82093AA data sheet, "Register Description". Pins are given as asserted or not, so that the
//! polarity bit has no effect. As in the chip, an edge on a masked pin is lost.

use crate::lapic::Delivery;

/// Where the I/O APIC's page is.
pub const IOAPIC_GPA: u64 = 0xfec0_0000;

pub(crate) const PINS: u8 = 24;
/// Version 0x11, the highest redirection entry in bits 23:16.
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;

const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// All but the delivery status (always idle), remote IRR and reserved bits.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

/// An interrupt message on its way from a pin to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The pin that sends it.
    pub(crate) pin: u8,
    /// Whether the destination is a logical one.
    pub(crate) logical: bool,
    pub(crate) destination: u8,
    pub(crate) delivery: Delivery,
    pub(crate) vector: u8,
    /// Level-triggered: the local APIC that takes it sends an EOI.
    pub(crate) level: bool,
}

pub(crate) struct IoApic {
    select: u8,
    id: u8,
    /// Which pins are asserted.
    lines: u32,
    entries: [u64; PINS as usize],
}

impl IoApic {
    pub(crate) fn new() -> IoApic {
        IoApic { select: 0, id: 0, lines: 0, entries: [ENTRY_MASKED; PINS as usize] }
    }

    /// Whether pin `pin` would be heard.
    pub(crate) fn unmasked(&self, pin: u8) -> bool {
        self.entries[usize::from(pin)] & ENTRY_MASKED == 0
    }

    /// Whether an edge on pin `pin` is sent as an NMI.
    pub(crate) fn sends_nmi(&self, pin: u8) -> bool {
        self.unmasked(pin) && Delivery::of(self.entries[usize::from(pin)] as u32) == Delivery::Nmi
    }

    /// Asserts or deasserts pin `pin`; the message that it sends then.
    pub(crate) fn set_line(&mut self, pin: u8, asserted: bool) -> Option<Message> {
        let rose = asserted && self.lines & 1 << pin == 0;
        self.lines = self.lines & !(1 << pin) | u32::from(asserted) << pin;
        let entry = self.entries[usize::from(pin)];
        if entry & ENTRY_LEVEL != 0 {
            self.level_message(pin)
        } else {
            (rose && entry & ENTRY_MASKED == 0).then(|| self.message(pin))
        }
    }

    /// A local APIC has ended the level-triggered interrupt `vector` of this pin, if it is one:
    /// asserted still, the pin asks again.
    pub(crate) fn end_of_interrupt(&mut self, pin: u8, vector: u8) -> Option<Message> {
        let entry = &mut self.entries[usize::from(pin)];
        if *entry & ENTRY_REMOTE_IRR == 0 || *entry as u8 != vector {
            return None;
        }
        *entry &= !ENTRY_REMOTE_IRR;
        self.level_message(pin)
    }

    /// A local APIC has taken the message of a level-triggered pin, and will send an EOI.
    pub(crate) fn accepted(&mut self, pin: u8) {
        self.entries[usize::from(pin)] |= ENTRY_REMOTE_IRR;
    }

    /// A load from the page.
    pub(crate) fn mmio_read(&self, offset: u16) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => self.register(),
            _ => 0,
        }
    }

    /// A store to the page; the message that a pin sends then. IOREGSEL takes any size, IOWIN 32
    /// bits.
    pub(crate) fn mmio_write(&mut self, offset: u16, size: u8, value: u32) -> Option<Message> {
        match (offset, size) {
            (0x00, _) => {
                self.select = value as u8;
                None
            }
            (0x10, 4) => self.set_register(value),
            _ => None,
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            select => match self.entry_of(select) {
                Some(pin) => (self.entries[usize::from(pin)] >> (32 * (select & 1))) as u32,
                None => u32::MAX,
            },
        }
    }

    fn set_register(&mut self, value: u32) -> Option<Message> {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
        }
        let pin = self.entry_of(self.select)?;
        let shift = 32 * (self.select & 1);
        let written = u64::from(u32::MAX) << shift;
        let entry = &mut self.entries[usize::from(pin)];
        *entry = *entry & !(ENTRY_WRITABLE & written) | u64::from(value) << shift & ENTRY_WRITABLE;
        if *entry & ENTRY_LEVEL == 0 {
            // Changing to edge and back is how a guest ends an interrupt at a chip of this version.
            *entry &= !ENTRY_REMOTE_IRR;
        }
        self.level_message(pin)
    }

    /// The pin whose redirection entry register `select` is half of.
    fn entry_of(&self, select: u8) -> Option<u8> {
        select.checked_sub(0x10).map(|i| i / 2).filter(|&pin| pin < PINS)
    }

    /// The message of a level-triggered pin that is asserted, unless the last one has not ended.
    fn level_message(&self, pin: u8) -> Option<Message> {
        let entry = self.entries[usize::from(pin)];
        let waits = entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR | ENTRY_LEVEL) == ENTRY_LEVEL;
        (waits && self.lines & 1 << pin != 0).then(|| self.message(pin))
    }

    fn message(&self, pin: u8) -> Message {
        let entry = self.entries[usize::from(pin)];
        Message {
            pin,
            logical: entry & ENTRY_LOGICAL != 0,
            destination: (entry >> 56) as u8,
            delivery: Delivery::of(entry as u32),
            vector: entry as u8,
            level: entry & ENTRY_LEVEL != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ioapic: &mut IoApic, register: u8, value: u32) -> Option<Message> {
        ioapic.mmio_write(0x00, 4, register.into());
        ioapic.mmio_write(0x10, 4, value)
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.mmio_write(0x00, 1, register.into());
        ioapic.mmio_read(0x10)
    }

    #[test]
    fn registers() {
        let mut ioapic = IoApic::new();
        assert_eq!(read(&mut ioapic, 1), 0x0017_0011);
        write(&mut ioapic, 0, 0xffff_ffff);
        assert_eq!(read(&mut ioapic, 0), 0x0f00_0000);
        assert_eq!(read(&mut ioapic, 0x10), 0x1_0000);
        for register in [0x3e, 0x3f] {
            write(&mut ioapic, register, 0xffff_ffff);
        }
        assert_eq!(read(&mut ioapic, 0x3e), 0x1_afff);
        assert_eq!(read(&mut ioapic, 0x3f), 0xff00_0000);
        assert_eq!(read(&mut ioapic, 0x40), u32::MAX);
    }

    #[test]
    fn a_message_says_what_the_redirection_entry_says() {
        let mut ioapic = IoApic::new();
        write(&mut ioapic, 0x13, 0x0500_0000);
        write(&mut ioapic, 0x12, 0x0000_8c41);
        let message = ioapic.set_line(1, true);
        let expected = Message {
            pin: 1,
            logical: true,
            destination: 5,
            delivery: Delivery::Nmi,
            vector: 0x41,
            level: true,
        };
        assert_eq!(message, Some(expected));
    }

    #[test]
    fn a_level_asks_until_it_is_taken_and_again_after_its_end() {
        let mut ioapic = IoApic::new();
        let asks = write(&mut ioapic, 0x22, 0x8049);
        assert_eq!(asks, None, "the pin is not asserted");
        assert!(ioapic.set_line(9, true).is_some() && ioapic.set_line(9, true).is_some());
        ioapic.accepted(9);
        assert_eq!(ioapic.set_line(9, true), None);
        assert_eq!(ioapic.end_of_interrupt(9, 0x48), None, "another vector's");
        assert_eq!(ioapic.end_of_interrupt(8, 0x49), None, "another pin");
        assert!(ioapic.end_of_interrupt(9, 0x49).is_some());
        ioapic.accepted(9);
        ioapic.set_line(9, false);
        assert_eq!(ioapic.end_of_interrupt(9, 0x49), None);
    }
}
