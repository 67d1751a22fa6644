//! How a device's line reaches the CPU: through the 8259s and LINT0, or through the I/O APIC.

use crate::ioapic::{IoApic, Message, PINS};
use crate::lapic::{Effect, Ipi, Lapic};
use crate::pic::PicPair;

/// An ISA interrupt line with a device on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Irq(u8);

impl Irq {
    pub(crate) const TIMER: Irq = Irq(0);
    pub(crate) const COM1: Irq = Irq(4);
    /// The real-time clock.
    pub(crate) const RTC: Irq = Irq(8);
    /// The ACPI system control interrupt.
    pub(crate) const SCI: Irq = Irq(9);
    /// The error of the x87 FPU, as a PC/AT reports it.
    pub(crate) const FPU: Irq = Irq(13);

    /// The line of the 8259s.
    pub(crate) const fn line(self) -> u8 {
        self.0
    }

    /// The pin of the I/O APIC: the line's number, but pin 2 for the timer, as the MADT says.
    pub(crate) const fn pin(self) -> u8 {
        if self.0 == 0 { 2 } else { self.0 }
    }
}

/// All interrupt controllers.
pub(crate) struct Interrupts {
    pub(crate) pic: PicPair,
    pub(crate) ioapic: IoApic,
    pub(crate) lapic: Lapic,
    lines: u16,
}

impl Interrupts {
    pub(crate) fn new(physical_address_bits: u8, tsc_deadline: bool) -> Interrupts {
        let mut pic = PicPair::new();
        // Firmware makes the SCI level-triggered.
        pic.set_level_triggered(true, 1 << (Irq::SCI.line() & 7));
        Interrupts {
            pic,
            ioapic: IoApic::new(),
            lapic: Lapic::new(physical_address_bits, tsc_deadline),
            lines: 0,
        }
    }

    /// Sets the level of a line.
    pub(crate) fn set(&mut self, irq: Irq, level: bool) {
        let bit = 1 << irq.line();
        if (self.lines & bit != 0) == level {
            return;
        }
        self.lines ^= bit;
        self.pic.set_line(irq.line(), level);
        let message = self.ioapic.set_line(irq.pin(), level);
        self.deliver(message);
    }

    /// The level of a line.
    pub(crate) fn line(&self, irq: u8) -> bool {
        self.lines >> (irq & 15) & 1 != 0
    }

    /// Makes one rising edge, after which the line is high.
    pub(crate) fn pulse(&mut self, irq: Irq) {
        self.set(irq, false);
        self.set(irq, true);
    }

    /// Whether an edge on the line could reach the CPU, or be latched where the guest can see it
    /// soon.
    pub(crate) fn listens(&self, irq: Irq) -> bool {
        self.ioapic.unmasked(irq.pin())
            || self.pic.unmasked(irq.line()) && self.lapic.listens_to_lint0()
    }

    /// Whether an edge on the line is an NMI to the CPU.
    pub(crate) fn is_nmi(&self, irq: Irq) -> bool {
        self.ioapic.sends_nmi(irq.pin())
            || self.pic.unmasked(irq.line()) && self.lapic.lint0_is_nmi()
    }

    /// Carries the 8259s' output to LINT0.
    pub(crate) fn update(&mut self) {
        self.lapic.set_lint0(self.pic.output());
    }

    /// A store to the local APIC's page. Its registers take aligned 32-bit stores only.
    pub(crate) fn lapic_write(
        &mut self,
        now: u64,
        offset: u16,
        size: u8,
        value: u32,
    ) -> Option<Ipi> {
        if size != 4 || offset & 0xf != 0 {
            return None;
        }
        match self.lapic.write(now, offset, value)? {
            Effect::EoiBroadcast(vector) => {
                for pin in 0..PINS {
                    let message = self.ioapic.end_of_interrupt(pin, vector);
                    self.deliver(message);
                }
                None
            }
            Effect::Ipi(ipi) => Some(ipi),
        }
    }

    /// A store to the I/O APIC's page.
    pub(crate) fn ioapic_write(&mut self, offset: u16, size: u8, value: u32) {
        let message = self.ioapic.mmio_write(offset, size, value);
        self.deliver(message);
    }

    /// Carries a message of the I/O APIC to the local APIC, if it is that one's.
    fn deliver(&mut self, message: Option<Message>) {
        let Some(Message { pin, logical, destination, delivery, vector, level }) = message else {
            return;
        };
        let taken = self.lapic.is_destination(logical, destination)
            && self.lapic.deliver(delivery, vector, level);
        if taken && level {
            self.ioapic.accepted(pin);
        }
    }

    fn external_pending(&self) -> bool {
        self.lapic.passes_external_interrupts() && self.pic.output()
    }

    pub(crate) fn pending(&self) -> bool {
        self.external_pending() || self.lapic.pending().is_some()
    }

    /// INTA. External interrupts do not go through the local APIC's priorities, and come first.
    pub(crate) fn acknowledge(&mut self) -> Option<u8> {
        if self.external_pending() {
            Some(self.pic.acknowledge())
        } else {
            self.lapic.acknowledge()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOI: u16 = 0x0b0;

    fn write(apics: &mut Interrupts, register: u8, value: u32) {
        apics.ioapic_write(0x00, 4, register.into());
        apics.ioapic_write(0x10, 4, value);
    }

    fn read(apics: &mut Interrupts, register: u8) -> u32 {
        apics.ioapic_write(0x00, 1, register.into());
        apics.ioapic.mmio_read(0x10)
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let mut apics = Interrupts::new(40, false);
        apics.set(Irq::COM1, true);
        write(&mut apics, 0x18, 0x31);
        assert_eq!(apics.lapic.pending(), None);
        apics.set(Irq::COM1, true);
        assert_eq!(apics.lapic.pending(), None);
        apics.set(Irq::COM1, false);
        apics.set(Irq::COM1, true);
        assert_eq!(apics.lapic.acknowledge(), Some(0x31));
        assert_eq!(apics.lapic_write(0, EOI, 4, 0), None);
        assert_eq!(apics.lapic.pending(), None);
    }

    #[test]
    fn a_level_waits_for_the_eoi() {
        let mut apics = Interrupts::new(40, false);
        write(&mut apics, 0x22, 0x8049);
        apics.set(Irq::SCI, true);
        assert_eq!(read(&mut apics, 0x22), 0xc049);
        assert_eq!(apics.lapic.acknowledge(), Some(0x49));
        apics.set(Irq::SCI, false);
        apics.set(Irq::SCI, true);
        assert_eq!(apics.lapic.pending(), None);
        apics.lapic_write(0, EOI, 4, 0);
        assert_eq!(apics.lapic.acknowledge(), Some(0x49));
        apics.set(Irq::SCI, false);
        apics.lapic_write(0, EOI, 4, 0);
        assert_eq!((read(&mut apics, 0x22), apics.lapic.pending()), (0x8049, None));
    }

    #[test]
    fn a_level_is_sent_when_it_is_unmasked() {
        let mut apics = Interrupts::new(40, false);
        write(&mut apics, 0x22, 0x1_8049);
        apics.set(Irq::SCI, true);
        assert_eq!(apics.lapic.pending(), None);
        write(&mut apics, 0x22, 0x8049);
        assert_eq!(apics.lapic.pending(), Some(0x49));
    }

    #[test]
    fn a_level_that_nobody_takes_stays() {
        let mut apics = Interrupts::new(40, false);
        apics.lapic_write(0, 0x0f0, 4, 0xff);
        apics.set(Irq::SCI, true);
        write(&mut apics, 0x22, 0x8049);
        assert_eq!((read(&mut apics, 0x22), apics.lapic.pending()), (0x8049, None));
        apics.lapic_write(0, 0x0f0, 4, 0x1ff);
        write(&mut apics, 0x22, 0x8049);
        assert_eq!((read(&mut apics, 0x22), apics.lapic.pending()), (0xc049, Some(0x49)));
    }

    #[test]
    fn edge_and_back_clears_remote_irr() {
        let mut apics = Interrupts::new(40, false);
        write(&mut apics, 0x22, 0x8049);
        apics.set(Irq::SCI, true);
        apics.set(Irq::SCI, false);
        write(&mut apics, 0x22, 0x1_0049);
        write(&mut apics, 0x22, 0x8049);
        assert_eq!(read(&mut apics, 0x22), 0x8049);
    }

    #[test]
    fn destination_and_delivery_mode() {
        let mut apics = Interrupts::new(40, false);
        apics.lapic_write(0, 0x0d0, 4, 1 << 24);
        let mut send = |low: u32, high: u32| {
            write(&mut apics, 0x15, high);
            write(&mut apics, 0x14, low);
            apics.set(Irq::TIMER, true);
            apics.set(Irq::TIMER, false);
            let taken = (apics.lapic.acknowledge(), apics.lapic.take_nmi());
            apics.lapic_write(0, EOI, 4, 0);
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
