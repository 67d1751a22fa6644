//! The PC's two 8259A interrupt controllers.
//!
//! Intel 8259A data sheet, "Programming the 8259A"; the edge/level control registers are the
//! PIIX4's (82371AB data sheet, "ELCR1, ELCR2"). An edge stays latched until it is acknowledged,
//! also if its line falls again: the chip would turn that into a spurious interrupt, but no later
//! PC chipset does.

const ICW1_INITIALIZE: u8 = 1 << 4;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW1_ICW4: u8 = 1 << 0;
const ICW4_AUTO_EOI: u8 = 1 << 1;

const OCW3_SELECT: u8 = 1 << 3;
const OCW3_POLL: u8 = 1 << 2;

/// The level that an 8259A answers with when the request is gone.
const SPURIOUS_LEVEL: u8 = 7;

/// Which initialization word the next write to the data port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expecting {
    #[default]
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Default)]
pub(crate) struct Pic {
    /// The levels of the request lines.
    lines: u8,
    /// Latched edges.
    edges: u8,
    in_service: u8,
    mask: u8,
    /// Which lines are level-triggered (ELCR).
    level_triggered: u8,
    /// Which lines can be made level-triggered.
    level_capable: u8,
    vector_base: u8,
    /// The request with the highest priority.
    highest: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    /// Interrupts of a level that is in service may nest (for the primary: one from the secondary).
    special_fully_nested: bool,
    read_in_service: bool,
    poll: bool,
    expecting: Expecting,
    single: bool,
    icw4_follows: bool,
}

impl Pic {
    fn new(vector_base: u8, level_capable: u8) -> Pic {
        Pic { vector_base, level_capable, mask: 0xff, ..Pic::default() }
    }

    /// Sets the level of request line `line` (0 to 7).
    fn set_line(&mut self, line: u8, level: bool) {
        let bit = 1 << line;
        if !level {
            self.lines &= !bit;
        } else {
            if self.lines & bit == 0 {
                self.edges |= bit;
            }
            self.lines |= bit;
        }
    }

    /// The interrupt request register.
    fn requests(&self) -> u8 {
        self.edges & !self.level_triggered | self.lines & self.level_triggered
    }

    /// The request that the INT output stands for.
    fn pending(&self) -> Option<u8> {
        let requests = self.requests() & !self.mask;
        if requests == 0 {
            return None;
        }
        for i in 0..8 {
            let line = (self.highest + i) & 7;
            let bit = 1 << line;
            if self.in_service & bit != 0 && !self.special_mask {
                // Nothing below this one may interrupt.
                return (self.special_fully_nested && requests & bit != 0).then_some(line);
            }
            // In special mask mode a level in service only blocks itself.
            if requests & bit != 0 && self.in_service & bit == 0 {
                return Some(line);
            }
        }
        None
    }

    /// INTA: puts the pending request into service and returns it; with none pending the answer is
    /// spurious, and nothing is in service.
    fn acknowledge(&mut self) -> (u8, u8) {
        let Some(line) = self.pending() else {
            return (SPURIOUS_LEVEL, self.vector_base | SPURIOUS_LEVEL);
        };
        self.edges &= !(1 << line);
        if !self.auto_eoi {
            self.in_service |= 1 << line;
        } else if self.rotate_on_auto_eoi {
            self.highest = (line + 1) & 7;
        }
        (line, self.vector_base | line)
    }

    /// A read of port 0 (command) or 1 (data).
    fn read(&mut self, port: u16) -> u8 {
        if core::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(_) => 0x80 | self.acknowledge().0,
                None => SPURIOUS_LEVEL,
            };
        }
        match port {
            0 if self.read_in_service => self.in_service,
            0 => self.requests(),
            _ => self.mask,
        }
    }

    /// A write to port 0 (command) or 1 (data).
    fn write(&mut self, port: u16, value: u8) {
        match (port, self.expecting) {
            (0, _) if value & ICW1_INITIALIZE != 0 => self.initialize(value),
            (0, _) if value & OCW3_SELECT != 0 => self.ocw3(value),
            (0, _) => self.ocw2(value),
            (_, Expecting::Ocw1) => self.mask = value,
            (_, Expecting::Icw2) => {
                self.vector_base = value & 0xf8;
                self.expecting = if self.single { self.after_icw3() } else { Expecting::Icw3 };
            }
            // The cascade is wired: line 2 of the primary.
            (_, Expecting::Icw3) => self.expecting = self.after_icw3(),
            (_, Expecting::Icw4) => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.special_fully_nested = value & 1 << 4 != 0;
                self.expecting = Expecting::Ocw1;
            }
        }
    }

    fn after_icw3(&self) -> Expecting {
        if self.icw4_follows { Expecting::Icw4 } else { Expecting::Ocw1 }
    }

    /// ICW1 clears what the data sheet lists; lines, ELCR and the vector base stay.
    fn initialize(&mut self, value: u8) {
        *self = Pic {
            lines: self.lines,
            level_triggered: self.level_triggered,
            level_capable: self.level_capable,
            vector_base: self.vector_base,
            expecting: Expecting::Icw2,
            single: value & ICW1_SINGLE != 0,
            icw4_follows: value & ICW1_ICW4 != 0,
            ..Pic::default()
        };
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ended) = self.end_highest() {
                    self.highest = (ended + 1) & 7;
                }
            }
            0b011 => self.in_service &= !(1 << level),
            0b111 => {
                self.in_service &= !(1 << level);
                self.highest = (level + 1) & 7;
            }
            0b110 => self.highest = (level + 1) & 7,
            _ => {}
        }
    }

    /// Non-specific EOI: ends the interrupt in service with the highest priority.
    fn end_highest(&mut self) -> Option<u8> {
        let line =
            (0..8).map(|i| (self.highest + i) & 7).find(|line| self.in_service & 1 << line != 0)?;
        self.in_service &= !(1 << line);
        Some(line)
    }

    fn ocw3(&mut self, value: u8) {
        if value & OCW3_POLL != 0 {
            self.poll = true;
        } else if value & 0b10 != 0 {
            self.read_in_service = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }
}

/// The line of the primary that the secondary's output drives.
const CASCADE: u8 = 2;

/// Both controllers: 16 lines, one output.
pub(crate) struct PicPair {
    primary: Pic,
    secondary: Pic,
}

impl PicPair {
    /// As firmware leaves them: initialized for real mode, everything masked.
    pub(crate) fn new() -> PicPair {
        // IRQ 0, 1, 2, 8 and 13 are edge-triggered for good.
        PicPair { primary: Pic::new(0x08, 0xf8), secondary: Pic::new(0x70, 0xde) }
    }

    /// Sets the level of interrupt line `irq`, 0 to 15.
    pub(crate) fn set_line(&mut self, irq: u8, level: bool) {
        match irq {
            0..=7 => self.primary.set_line(irq, level),
            _ => self.secondary.set_line(irq & 7, level),
        }
        self.cascade();
    }

    /// Whether an edge on line `irq` could interrupt.
    pub(crate) fn unmasked(&self, irq: u8) -> bool {
        match irq {
            0..=7 => self.primary.mask & 1 << irq == 0,
            _ => self.secondary.mask & 1 << (irq & 7) == 0 && self.primary.mask & 1 << CASCADE == 0,
        }
    }

    /// The level of the output.
    pub(crate) fn output(&self) -> bool {
        self.primary.pending().is_some()
    }

    /// INTA: the vector of the pending interrupt, or of the spurious one.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let (line, vector) = self.primary.acknowledge();
        let vector = match line {
            CASCADE => self.secondary.acknowledge().1,
            _ => vector,
        };
        self.cascade();
        vector
    }

    /// A read of ports 0x20, 0x21 (`secondary` false), 0xa0, 0xa1.
    pub(crate) fn read(&mut self, secondary: bool, port: u16) -> u8 {
        let value = self.chip(secondary).read(port);
        self.cascade();
        value
    }

    /// A write to ports 0x20, 0x21 (`secondary` false), 0xa0, 0xa1.
    pub(crate) fn write(&mut self, secondary: bool, port: u16, value: u8) {
        self.chip(secondary).write(port, value);
        self.cascade();
    }

    /// ELCR1, or ELCR2 if `secondary`.
    pub(crate) fn level_triggered(&self, secondary: bool) -> u8 {
        if secondary { self.secondary.level_triggered } else { self.primary.level_triggered }
    }

    /// Writes ELCR1, or ELCR2 if `secondary`.
    pub(crate) fn set_level_triggered(&mut self, secondary: bool, value: u8) {
        let chip = self.chip(secondary);
        chip.level_triggered = value & chip.level_capable;
        self.cascade();
    }

    fn chip(&mut self, secondary: bool) -> &mut Pic {
        if secondary { &mut self.secondary } else { &mut self.primary }
    }

    /// Carries the secondary's output to the primary. The primary must not keep a request that the
    /// secondary has withdrawn.
    fn cascade(&mut self) {
        let output = self.secondary.pending().is_some();
        // A second interrupt of the secondary is a new edge: its output falls between the two.
        self.primary.set_line(CASCADE, false);
        self.primary.edges &= !(1 << CASCADE);
        self.primary.set_line(CASCADE, output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: bool = false;
    const SECONDARY: bool = true;

    /// Programs both as Linux does (`init_8259A`), with vectors from 0x30, and unmasks everything.
    fn programmed(icw4: u8) -> PicPair {
        let mut pics = PicPair::new();
        for (secondary, base, icw3) in [(PRIMARY, 0x30, 4), (SECONDARY, 0x38, 2)] {
            pics.write(secondary, 0, 0x11);
            for icw in [base, icw3, icw4] {
                pics.write(secondary, 1, icw);
            }
            assert_eq!(pics.read(secondary, 1), 0);
        }
        pics
    }

    fn in_service(pics: &mut PicPair, secondary: bool) -> u8 {
        pics.write(secondary, 0, 0x0b);
        let isr = pics.read(secondary, 0);
        pics.write(secondary, 0, 0x0a);
        isr
    }

    #[test]
    fn firmware_leaves_everything_masked() {
        let mut pics = PicPair::new();
        (0..16).for_each(|irq| pics.set_line(irq, true));
        assert!(!pics.output());
        pics.write(PRIMARY, 1, 0xfe);
        assert_eq!(pics.acknowledge(), 0x08);
    }

    #[test]
    fn priorities_nest_and_eoi_ends_the_highest() {
        let mut pics = programmed(1);
        pics.set_line(4, true);
        assert_eq!(pics.acknowledge(), 0x34);
        pics.set_line(6, true);
        assert!(!pics.output());
        pics.set_line(1, true);
        assert_eq!(pics.acknowledge(), 0x31);
        assert_eq!(in_service(&mut pics, PRIMARY), 0x12);
        pics.write(PRIMARY, 0, 0x20);
        assert_eq!(in_service(&mut pics, PRIMARY), 0x10);
        assert!(!pics.output());
        pics.write(PRIMARY, 0, 0x20);
        assert_eq!(pics.acknowledge(), 0x36);
    }

    #[test]
    fn an_edge_counts_once_and_a_level_until_it_falls() {
        let mut pics = programmed(1);
        pics.set_level_triggered(PRIMARY, 0xff);
        assert_eq!(pics.level_triggered(PRIMARY), 0xf8);
        for (irq, again) in [(1, false), (4, true)] {
            pics.set_line(irq, true);
            assert_eq!(pics.acknowledge(), 0x30 | irq);
            pics.write(PRIMARY, 0, 0x60 | irq);
            assert_eq!(pics.output(), again);
            pics.set_line(irq, false);
            assert!(!pics.output());
        }
    }

    #[test]
    fn the_secondary_stands_between_lines_1_and_3() {
        let mut pics = programmed(1);
        pics.set_line(3, true);
        pics.set_line(8, true);
        pics.set_line(15, true);
        assert_eq!(pics.acknowledge(), 0x38);
        assert_eq!((in_service(&mut pics, PRIMARY), in_service(&mut pics, SECONDARY)), (4, 1));
        assert!(!pics.output());
        pics.write(SECONDARY, 0, 0x20);
        pics.write(PRIMARY, 0, 0x20);
        assert_eq!(pics.acknowledge(), 0x3f);
        pics.write(SECONDARY, 0, 0x20);
        pics.write(PRIMARY, 0, 0x20);
        assert_eq!(pics.acknowledge(), 0x33);
    }

    #[test]
    fn the_secondary_nests_only_in_special_fully_nested_mode() {
        for (icw4, nests) in [(0x01, false), (0x11, true)] {
            let mut pics = programmed(icw4);
            pics.set_line(12, true);
            assert_eq!(pics.acknowledge(), 0x3c);
            pics.set_line(9, true);
            assert_eq!(pics.output(), nests);
        }
    }

    #[test]
    fn a_withdrawn_request_is_spurious() {
        let mut pics = programmed(1);
        pics.set_level_triggered(PRIMARY, 0x20);
        pics.set_line(5, true);
        assert!(pics.output());
        pics.set_line(5, false);
        assert_eq!(pics.acknowledge(), 0x37);
        assert_eq!(in_service(&mut pics, PRIMARY), 0);
        pics.set_line(10, true);
        pics.write(SECONDARY, 1, 0xff);
        assert!(!pics.output());
    }

    #[test]
    fn automatic_eoi_leaves_nothing_in_service_and_rotates_if_told() {
        let mut pics = programmed(3);
        pics.write(PRIMARY, 0, 0x80);
        pics.set_line(0, true);
        assert_eq!(pics.acknowledge(), 0x30);
        assert_eq!(in_service(&mut pics, PRIMARY), 0);
        pics.set_line(0, false);
        pics.set_line(0, true);
        pics.set_line(7, true);
        assert_eq!(pics.acknowledge(), 0x37);
    }

    #[test]
    fn special_mask_mode_lets_lower_requests_through() {
        let mut pics = programmed(1);
        pics.set_line(1, true);
        assert_eq!(pics.acknowledge(), 0x31);
        pics.set_line(6, true);
        assert!(!pics.output());
        pics.write(PRIMARY, 1, 0x02);
        pics.write(PRIMARY, 0, 0x68);
        assert_eq!(pics.acknowledge(), 0x36);
        pics.write(PRIMARY, 0, 0x48);
        pics.set_line(7, true);
        assert!(!pics.output());
    }

    #[test]
    fn rotation_moves_the_bottom() {
        let mut pics = programmed(1);
        pics.write(PRIMARY, 0, 0xc0 | 4);
        pics.set_line(3, true);
        pics.set_line(5, true);
        assert_eq!(pics.acknowledge(), 0x35);
        pics.write(PRIMARY, 0, 0xa0);
        pics.set_line(5, false);
        pics.set_line(5, true);
        assert_eq!(pics.acknowledge(), 0x33);
    }

    #[test]
    fn polling_acknowledges() {
        let mut pics = programmed(1);
        pics.write(PRIMARY, 0, 0x0c);
        assert_eq!(pics.read(PRIMARY, 0) & 0x80, 0);
        pics.set_line(4, true);
        pics.write(PRIMARY, 0, 0x0c);
        assert_eq!(pics.read(PRIMARY, 0), 0x84);
        assert_eq!(in_service(&mut pics, PRIMARY), 0x10);
    }
}
