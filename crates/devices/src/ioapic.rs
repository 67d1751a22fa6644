//! The I/O APIC: an 82093AA with 24 pins.
//!
//! Intel 82093AA data sheet, "Register Description". Pins are given as asserted or not, so that the polarity bit
//! has no effect. As in the chip, an edge on a masked pin is lost.

use crate::lapic::{Delivery, Lapic};

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

    /// Asserts or deasserts pin `pin`.
    pub(crate) fn set_line(&mut self, pin: u8, asserted: bool, lapic: &mut Lapic) {
        let rose = asserted && self.lines & 1 << pin == 0;
        self.lines = self.lines & !(1 << pin) | u32::from(asserted) << pin;
        let entry = self.entries[usize::from(pin)];
        if entry & ENTRY_LEVEL != 0 {
            self.serve_level(pin, lapic);
        } else if rose && entry & ENTRY_MASKED == 0 {
            send(entry, lapic);
        }
    }

    /// The local APIC has ended a level-triggered interrupt: pins that are still asserted ask again.
    pub(crate) fn end_of_interrupt(&mut self, vector: u8, lapic: &mut Lapic) {
        for pin in 0..PINS {
            let entry = &mut self.entries[usize::from(pin)];
            if *entry & ENTRY_REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !ENTRY_REMOTE_IRR;
                self.serve_level(pin, lapic);
            }
        }
    }

    /// A load from the page.
    pub(crate) fn mmio_read(&self, offset: u16) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => self.register(),
            _ => 0,
        }
    }

    /// A store to the page. IOREGSEL takes any size, IOWIN 32 bits.
    pub(crate) fn mmio_write(&mut self, offset: u16, size: u8, value: u32, lapic: &mut Lapic) {
        match (offset, size) {
            (0x00, _) => self.select = value as u8,
            (0x10, 4) => self.set_register(value, lapic),
            _ => {}
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

    fn set_register(&mut self, value: u32, lapic: &mut Lapic) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
        }
        let Some(pin) = self.entry_of(self.select) else { return };
        let shift = 32 * (self.select & 1);
        let written = u64::from(u32::MAX) << shift;
        let entry = &mut self.entries[usize::from(pin)];
        *entry = *entry & !(ENTRY_WRITABLE & written) | u64::from(value) << shift & ENTRY_WRITABLE;
        if *entry & ENTRY_LEVEL == 0 {
            // Changing to edge and back is how a guest ends an interrupt at a chip of this version.
            *entry &= !ENTRY_REMOTE_IRR;
        }
        self.serve_level(pin, lapic);
    }

    /// The pin whose redirection entry register `select` is half of.
    fn entry_of(&self, select: u8) -> Option<u8> {
        select.checked_sub(0x10).map(|i| i / 2).filter(|&pin| pin < PINS)
    }

    /// Sends the interrupt of a level-triggered pin, if it is asserted and the last one has ended.
    fn serve_level(&mut self, pin: u8, lapic: &mut Lapic) {
        let entry = &mut self.entries[usize::from(pin)];
        let waits = *entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR | ENTRY_LEVEL) == ENTRY_LEVEL;
        if waits && self.lines & 1 << pin != 0 && send(*entry, lapic) {
            *entry |= ENTRY_REMOTE_IRR;
        }
    }
}

/// Sends the interrupt message of a redirection entry; whether a local APIC took it that will send an EOI.
fn send(entry: u64, lapic: &mut Lapic) -> bool {
    if !lapic.is_destination(entry & ENTRY_LOGICAL != 0, (entry >> 56) as u8) {
        return false;
    }
    lapic.deliver(Delivery::of(entry as u32), entry as u8, entry & ENTRY_LEVEL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOI: u16 = 0x0b0;

    fn apics() -> (IoApic, Lapic) {
        (IoApic::new(), Lapic::new(40, false))
    }

    fn write(ioapic: &mut IoApic, lapic: &mut Lapic, register: u8, value: u32) {
        ioapic.mmio_write(0x00, 4, register.into(), lapic);
        ioapic.mmio_write(0x10, 4, value, lapic);
    }

    fn read(ioapic: &mut IoApic, lapic: &mut Lapic, register: u8) -> u32 {
        ioapic.mmio_write(0x00, 1, register.into(), lapic);
        ioapic.mmio_read(0x10)
    }

    #[test]
    fn registers() {
        let (mut ioapic, mut lapic) = apics();
        assert_eq!(read(&mut ioapic, &mut lapic, 1), 0x0017_0011);
        write(&mut ioapic, &mut lapic, 0, 0xffff_ffff);
        assert_eq!(read(&mut ioapic, &mut lapic, 0), 0x0f00_0000);
        assert_eq!(read(&mut ioapic, &mut lapic, 0x10), 0x1_0000);
        for register in [0x3e, 0x3f] {
            write(&mut ioapic, &mut lapic, register, 0xffff_ffff);
        }
        assert_eq!(read(&mut ioapic, &mut lapic, 0x3e), 0x1_afff);
        assert_eq!(read(&mut ioapic, &mut lapic, 0x3f), 0xff00_0000);
        assert_eq!(read(&mut ioapic, &mut lapic, 0x40), u32::MAX);
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let (mut ioapic, mut lapic) = apics();
        ioapic.set_line(4, true, &mut lapic);
        write(&mut ioapic, &mut lapic, 0x18, 0x31);
        assert_eq!(lapic.pending(), None);
        ioapic.set_line(4, true, &mut lapic);
        assert_eq!(lapic.pending(), None);
        ioapic.set_line(4, false, &mut lapic);
        ioapic.set_line(4, true, &mut lapic);
        assert_eq!(lapic.acknowledge(), Some(0x31));
        assert_eq!(lapic.write(0, EOI, 0), None);
        assert_eq!(lapic.pending(), None);
    }

    #[test]
    fn a_level_waits_for_the_eoi() {
        let (mut ioapic, mut lapic) = apics();
        write(&mut ioapic, &mut lapic, 0x22, 0x8049);
        ioapic.set_line(9, true, &mut lapic);
        assert_eq!(read(&mut ioapic, &mut lapic, 0x22), 0xc049);
        assert_eq!(lapic.acknowledge(), Some(0x49));
        ioapic.set_line(9, false, &mut lapic);
        ioapic.set_line(9, true, &mut lapic);
        assert_eq!(lapic.pending(), None);
        let effect = lapic.write(0, EOI, 0);
        assert_eq!(effect, Some(crate::lapic::Effect::EoiBroadcast(0x49)));
        ioapic.end_of_interrupt(0x49, &mut lapic);
        assert_eq!(lapic.acknowledge(), Some(0x49));
        ioapic.set_line(9, false, &mut lapic);
        lapic.write(0, EOI, 0);
        ioapic.end_of_interrupt(0x49, &mut lapic);
        assert_eq!((read(&mut ioapic, &mut lapic, 0x22), lapic.pending()), (0x8049, None));
    }

    #[test]
    fn a_level_is_sent_when_it_is_unmasked() {
        let (mut ioapic, mut lapic) = apics();
        write(&mut ioapic, &mut lapic, 0x22, 0x1_8049);
        ioapic.set_line(9, true, &mut lapic);
        assert_eq!(lapic.pending(), None);
        write(&mut ioapic, &mut lapic, 0x22, 0x8049);
        assert_eq!(lapic.pending(), Some(0x49));
    }

    #[test]
    fn a_level_that_nobody_takes_stays() {
        let (mut ioapic, mut lapic) = apics();
        lapic.write(0, 0x0f0, 0xff);
        ioapic.set_line(9, true, &mut lapic);
        write(&mut ioapic, &mut lapic, 0x22, 0x8049);
        assert_eq!((read(&mut ioapic, &mut lapic, 0x22), lapic.pending()), (0x8049, None));
        lapic.write(0, 0x0f0, 0x1ff);
        write(&mut ioapic, &mut lapic, 0x22, 0x8049);
        assert_eq!((read(&mut ioapic, &mut lapic, 0x22), lapic.pending()), (0xc049, Some(0x49)));
    }

    #[test]
    fn edge_and_back_clears_remote_irr() {
        let (mut ioapic, mut lapic) = apics();
        write(&mut ioapic, &mut lapic, 0x22, 0x8049);
        ioapic.set_line(9, true, &mut lapic);
        ioapic.set_line(9, false, &mut lapic);
        write(&mut ioapic, &mut lapic, 0x22, 0x1_0049);
        write(&mut ioapic, &mut lapic, 0x22, 0x8049);
        assert_eq!(read(&mut ioapic, &mut lapic, 0x22), 0x8049);
    }

    #[test]
    fn destination_and_delivery_mode() {
        let (mut ioapic, mut lapic) = apics();
        lapic.write(0, 0x0d0, 1 << 24);
        let mut send = |low: u32, high: u32| {
            write(&mut ioapic, &mut lapic, 0x11, high);
            write(&mut ioapic, &mut lapic, 0x10, low);
            ioapic.set_line(0, true, &mut lapic);
            ioapic.set_line(0, false, &mut lapic);
            let taken = (lapic.acknowledge(), lapic.take_nmi());
            lapic.write(0, EOI, 0);
            taken
        };
        assert_eq!(send(0x0040, 5 << 24), (None, false));
        assert_eq!(send(0x0040, 0), (Some(0x40), false));
        assert_eq!(send(0x0940, 1 << 24), (Some(0x40), false));
        assert_eq!(send(0x0940, 2 << 24), (None, false));
        assert_eq!(send(0x0440, 0), (None, true));
        assert_eq!(send(0x0740, 0), (None, false));
    }
}
