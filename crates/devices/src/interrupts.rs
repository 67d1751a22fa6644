//! How a device's line reaches the CPU: through the 8259s and LINT0, or through the I/O APIC.

use crate::ioapic::IoApic;
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
        self.ioapic.set_line(irq.pin(), level, &mut self.lapic);
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

    /// Whether an edge on the line could reach the CPU, or be latched where the guest can see it soon.
    pub(crate) fn listens(&self, irq: Irq) -> bool {
        self.ioapic.unmasked(irq.pin()) || self.pic.unmasked(irq.line()) && self.lapic.listens_to_lint0()
    }

    /// Whether an edge on the line is an NMI to the CPU.
    pub(crate) fn is_nmi(&self, irq: Irq) -> bool {
        self.ioapic.sends_nmi(irq.pin()) || self.pic.unmasked(irq.line()) && self.lapic.lint0_is_nmi()
    }

    /// Carries the 8259s' output to LINT0.
    pub(crate) fn update(&mut self) {
        self.lapic.set_lint0(self.pic.output());
    }

    /// A store to the local APIC's page. Its registers take aligned 32-bit stores only.
    pub(crate) fn lapic_write(&mut self, now: u64, offset: u16, size: u8, value: u32) -> Option<Ipi> {
        if size != 4 || offset & 0xf != 0 {
            return None;
        }
        match self.lapic.write(now, offset, value)? {
            Effect::EoiBroadcast(vector) => {
                self.ioapic.end_of_interrupt(vector, &mut self.lapic);
                None
            }
            Effect::Ipi(ipi) => Some(ipi),
        }
    }

    /// A store to the I/O APIC's page.
    pub(crate) fn ioapic_write(&mut self, offset: u16, size: u8, value: u32) {
        self.ioapic.mmio_write(offset, size, value, &mut self.lapic);
    }

    fn external_pending(&self) -> bool {
        self.lapic.passes_external_interrupts() && self.pic.output()
    }

    pub(crate) fn pending(&self) -> bool {
        self.external_pending() || self.lapic.pending().is_some()
    }

    /// INTA. External interrupts do not go through the local APIC's priorities, and come first.
    pub(crate) fn acknowledge(&mut self) -> Option<u8> {
        if self.external_pending() { Some(self.pic.acknowledge()) } else { self.lapic.acknowledge() }
    }
}
