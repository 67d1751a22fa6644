//! The registers of a VGA that shows text: mode 3, 80 columns and 25 rows, as firmware leaves it.
//!
//! All registers hold what is written to them; what they do to the picture is the embedder's
//! matter, and only for the text of mode 3 ([`TextScreen`]). The memory at 0xa0000 is the
//! embedder's, too. Names, places and reset values are those of IBM's Video Graphics Array as chip
//! vendors describe it ("VGA Registers" in their programmer's references).

use crate::clock::Clock;

/// The text that the CRT controller shows, in cells of a character and an attribute byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextScreen {
    /// The first cell, counted from 0xb8000 on; cells beyond the 16384th are the first ones again.
    pub start: u16,
    /// Cells from one row to the next.
    pub pitch: u16,
}

/// A block of registers behind an index register.
struct Indexed<const COUNT: usize> {
    index: u8,
    values: [u8; COUNT],
}

impl<const COUNT: usize> Indexed<COUNT> {
    const fn new(values: [u8; COUNT]) -> Self {
        Indexed { index: 0, values }
    }

    /// An index beyond the registers reads as zero.
    fn read(&self) -> u8 {
        self.values.get(usize::from(self.index)).copied().unwrap_or(0)
    }

    fn write(&mut self, value: u8) {
        if let Some(register) = self.values.get_mut(usize::from(self.index)) {
            *register = value;
        }
    }
}

/// The palette RAM behind ports 0x3c7 to 0x3c9: three bytes of 6 bits for each colour.
struct Palette {
    mask: u8,
    /// The byte that a read and a write of the data port reach next.
    read_at: usize,
    write_at: usize,
    reading: bool,
    bytes: [u8; PALETTE_BYTES],
}

const PALETTE_BYTES: usize = 3 * 256;

impl Palette {
    /// The 64 colours of an EGA, `rgbRGB`: what mode 3 uses.
    fn new() -> Palette {
        let mut bytes = [0; PALETTE_BYTES];
        for (colour, rgb) in bytes.chunks_exact_mut(3).take(64).enumerate() {
            for (channel, byte) in rgb.iter_mut().enumerate() {
                let (weak, strong) = (colour >> (5 - channel) & 1, colour >> (2 - channel) & 1);
                *byte = 0x15 * weak as u8 + 0x2a * strong as u8;
            }
        }
        Palette { mask: 0xff, read_at: 0, write_at: 0, reading: false, bytes }
    }

    fn read(&mut self) -> u8 {
        let byte = self.bytes[self.read_at];
        self.read_at = (self.read_at + 1) % PALETTE_BYTES;
        byte
    }

    fn write(&mut self, value: u8) {
        self.bytes[self.write_at] = value & 0x3f;
        self.write_at = (self.write_at + 1) % PALETTE_BYTES;
    }
}

pub(crate) struct Vga {
    clock: Clock,
    miscellaneous: u8,
    enable: u8,
    feature: u8,
    attribute: Indexed<21>,
    /// Whether a write to port 0x3c0 goes to the register and not to the index.
    attribute_data: bool,
    sequencer: Indexed<5>,
    graphics: Indexed<9>,
    crtc: Indexed<25>,
    palette: Palette,
}

/// CRT controller: where the picture starts in memory, in cells.
const CRTC_START_HIGH: usize = 0x0c;
const CRTC_START_LOW: usize = 0x0d;
const CRTC_RETRACE_END: usize = 0x11;
/// Protects registers 0 to 7, but for the bit of the line compare.
const CRTC_PROTECT: u8 = 1 << 7;
const CRTC_OVERFLOW: u8 = 0x07;
const CRTC_LINE_COMPARE_8: u8 = 1 << 4;
/// The distance of two rows, in units of two cells.
const CRTC_OFFSET: usize = 0x13;

const GRAPHICS_MISCELLANEOUS: usize = 6;
/// Graphics, not text.
const GRAPHICS_MODE: u8 = 1 << 0;

/// The attribute index shows the picture, not the border's colour alone.
const ATTRIBUTE_SHOW: u8 = 1 << 5;

/// Input status 1.
const STATUS_NOT_DISPLAYING: u8 = 1 << 0;
const STATUS_VERTICAL_RETRACE: u8 = 1 << 3;

/// Mode 3 draws 900 dots a line and 449 lines a frame, at 28.322 MHz: 31.5 kHz, 70 Hz.
const DOT_HZ: u64 = 28_322_000;
const LINE_DOTS: u64 = 900;
const SHOWN_DOTS: u64 = 720;
const FRAME_LINES: u64 = 449;
const SHOWN_LINES: u64 = 400;
const RETRACE_LINES: core::ops::Range<u64> = 412..414;

impl Vga {
    pub(crate) fn new(clock: Clock) -> Vga {
        let mut attribute = Indexed::new([
            0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d,
            0x3e, 0x3f, 0x0c, 0x00, 0x0f, 0x08, 0x00,
        ]);
        attribute.index = ATTRIBUTE_SHOW;
        Vga {
            clock,
            miscellaneous: 0x67,
            enable: 1,
            feature: 0,
            attribute,
            attribute_data: false,
            sequencer: Indexed::new([0x03, 0x00, 0x03, 0x00, 0x02]),
            graphics: Indexed::new([0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x00, 0xff]),
            crtc: Indexed::new([
                0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00,
                0x00, 0x00, 0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
            ]),
            palette: Palette::new(),
        }
    }

    /// The text that is shown, `None` if the guest has switched to graphics.
    pub(crate) fn text_screen(&self) -> Option<TextScreen> {
        if self.graphics.values[GRAPHICS_MISCELLANEOUS] & GRAPHICS_MODE != 0 {
            return None;
        }
        let [high, low] = [CRTC_START_HIGH, CRTC_START_LOW].map(|at| self.crtc.values[at]);
        Some(TextScreen {
            start: u16::from_be_bytes([high, low]),
            pitch: 2 * u16::from(self.crtc.values[CRTC_OFFSET]),
        })
    }

    /// A read of a port from 0x3c0 to 0x3df. Those of a monochrome adapter are absent.
    pub(crate) fn read(&mut self, now: u64, port: u16) -> u8 {
        match port {
            0x3c0 => self.attribute.index,
            0x3c1 => {
                let Indexed { index, values } = &self.attribute;
                values.get(usize::from(index & 0x1f)).copied().unwrap_or(0)
            }
            // Input status 0: no vertical interrupt, and the monitor's sense bit.
            0x3c2 => 1 << 4,
            0x3c3 => self.enable,
            0x3c4 => self.sequencer.index,
            0x3c5 => self.sequencer.read(),
            0x3c6 => self.palette.mask,
            0x3c7 => {
                if self.palette.reading {
                    3
                } else {
                    0
                }
            }
            0x3c8 => (self.palette.write_at / 3) as u8,
            0x3c9 => self.palette.read(),
            0x3ca => self.feature,
            0x3cc => self.miscellaneous,
            0x3ce => self.graphics.index,
            0x3cf => self.graphics.read(),
            0x3d4 => self.crtc.index,
            0x3d5 => self.crtc.read(),
            0x3da => {
                self.attribute_data = false;
                self.status(now)
            }
            _ => u8::MAX,
        }
    }

    /// A write to such a port.
    pub(crate) fn write(&mut self, port: u16, value: u8) {
        match port {
            0x3c0 => {
                if self.attribute_data {
                    if let Some(register) =
                        self.attribute.values.get_mut(usize::from(self.attribute.index & 0x1f))
                    {
                        *register = value;
                    }
                } else {
                    self.attribute.index = value & 0x3f;
                }
                self.attribute_data = !self.attribute_data;
            }
            0x3c2 => self.miscellaneous = value,
            0x3c3 => self.enable = value,
            0x3c4 => self.sequencer.index = value,
            0x3c5 => self.sequencer.write(value),
            0x3c6 => self.palette.mask = value,
            0x3c7 => {
                self.palette.read_at = 3 * usize::from(value);
                self.palette.reading = true;
            }
            0x3c8 => {
                self.palette.write_at = 3 * usize::from(value);
                self.palette.reading = false;
            }
            0x3c9 => self.palette.write(value),
            0x3ce => self.graphics.index = value,
            0x3cf => self.graphics.write(value),
            0x3d4 => self.crtc.index = value,
            0x3d5 => self.write_crtc(value),
            0x3da => self.feature = value,
            _ => {}
        }
    }

    fn write_crtc(&mut self, value: u8) {
        let protected = self.crtc.values[CRTC_RETRACE_END] & CRTC_PROTECT != 0;
        match self.crtc.index {
            CRTC_OVERFLOW if protected => {
                let before = self.crtc.read();
                self.crtc.write(before & !CRTC_LINE_COMPARE_8 | value & CRTC_LINE_COMPARE_8);
            }
            0..CRTC_OVERFLOW if protected => {}
            _ => self.crtc.write(value),
        }
    }

    /// Input status 1, by the time: guests wait for either edge of the retrace.
    fn status(&self, now: u64) -> u8 {
        let dots = self.clock.device_ticks(now, DOT_HZ);
        let (line, dot) = (dots / LINE_DOTS % FRAME_LINES, dots % LINE_DOTS);
        let mut status = 0;
        if line >= SHOWN_LINES || dot >= SHOWN_DOTS {
            status |= STATUS_NOT_DISPLAYING;
        }
        if RETRACE_LINES.contains(&line) {
            status |= STATUS_VERTICAL_RETRACE;
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1_000_000_000;

    fn vga() -> Vga {
        Vga::new(Clock::new(HZ))
    }

    fn crtc(vga: &mut Vga, index: u8) -> u8 {
        vga.write(0x3d4, index);
        vga.read(0, 0x3d5)
    }

    fn set_crtc(vga: &mut Vga, index: u8, value: u8) {
        vga.write(0x3d4, index);
        vga.write(0x3d5, value);
    }

    #[test]
    fn the_cursor_is_where_the_guest_has_put_it() {
        let mut vga = vga();
        assert_eq!([0x0e, 0x0f].map(|index| crtc(&mut vga, index)), [0, 0]);
        set_crtc(&mut vga, 0x0e, 0x07);
        set_crtc(&mut vga, 0x0f, 0xcf);
        assert_eq!([0x0e, 0x0f].map(|index| crtc(&mut vga, index)), [0x07, 0xcf]);
        assert_eq!(vga.read(0, 0x3d4), 0x0f);
        set_crtc(&mut vga, 0x40, 0x55);
        assert_eq!(crtc(&mut vga, 0x40), 0, "there is no such register");
    }

    #[test]
    fn the_screen_starts_where_the_crtc_says() {
        let mut vga = vga();
        assert_eq!(vga.text_screen(), Some(TextScreen { start: 0, pitch: 80 }));
        set_crtc(&mut vga, 0x0c, 0x12);
        set_crtc(&mut vga, 0x0d, 0x34);
        set_crtc(&mut vga, 0x13, 0x50);
        assert_eq!(vga.text_screen(), Some(TextScreen { start: 0x1234, pitch: 160 }));
        vga.write(0x3ce, 6);
        vga.write(0x3cf, 0x05);
        assert_eq!(vga.text_screen(), None, "graphics");
    }

    #[test]
    fn the_timing_is_protected_until_the_guest_says_otherwise() {
        let mut vga = vga();
        let before = [0, 7].map(|index| crtc(&mut vga, index));
        set_crtc(&mut vga, 0, 0xaa);
        set_crtc(&mut vga, 7, 0x00);
        assert_eq!([0, 7].map(|index| crtc(&mut vga, index)), [before[0], before[1] & !0x10]);
        set_crtc(&mut vga, 0x11, 0x0e);
        set_crtc(&mut vga, 0, 0xaa);
        assert_eq!(crtc(&mut vga, 0), 0xaa);
    }

    #[test]
    fn the_attribute_port_is_index_and_data_in_turn() {
        let mut vga = vga();
        assert_eq!(vga.read(0, 0x3c0), 0x20);
        vga.write(0x3c0, 0x30);
        vga.write(0x3c0, 0x04);
        vga.write(0x3c0, 0x11);
        // A read of the status makes the next write an index again.
        vga.read(0, 0x3da);
        vga.write(0x3c0, 0x30);
        assert_eq!((vga.read(0, 0x3c0), vga.read(0, 0x3c1)), (0x30, 0x04));
    }

    #[test]
    fn every_other_register_holds_its_value() {
        let mut vga = vga();
        for (index, data, count) in [(0x3c4, 0x3c5, 5), (0x3ce, 0x3cf, 9)] {
            for register in 0..count {
                vga.write(index, register);
                vga.write(data, 0x50 | register);
            }
            for register in 0..count {
                vga.write(index, register);
                assert_eq!(vga.read(0, data), 0x50 | register);
            }
        }
        for (write, read) in [(0x3c2, 0x3cc), (0x3c6, 0x3c6), (0x3da, 0x3ca)] {
            vga.write(write, 0x5a);
            assert_eq!(vga.read(0, read), 0x5a, "{write:#x}");
        }
        assert_eq!([0x3b4, 0x3b5, 0x3d0, 0x3df].map(|port| vga.read(0, port)), [0xff; 4]);
    }

    #[test]
    fn a_colour_is_three_bytes() {
        let mut vga = vga();
        vga.write(0x3c7, 0x14);
        assert_eq!([0; 3].map(|_| vga.read(0, 0x3c9)), [0x2a, 0x15, 0x00], "brown");
        vga.write(0x3c8, 0xff);
        for byte in [1, 2, 0xff, 4] {
            vga.write(0x3c9, byte);
        }
        vga.write(0x3c7, 0xff);
        assert_eq!(
            [0; 4].map(|_| vga.read(0, 0x3c9)),
            [1, 2, 0x3f, 4],
            "the index goes on, and wraps"
        );
    }

    #[test]
    fn the_retrace_comes_seventy_times_a_second() {
        let mut vga = vga();
        let (mut frames, mut shown, mut before) = (0, 0, 0);
        let samples = 100_000;
        for sample in 0..samples {
            let status = vga.read(sample * (HZ / samples), 0x3da);
            frames += u64::from(status & !before & STATUS_VERTICAL_RETRACE != 0);
            shown += u64::from(status & STATUS_NOT_DISPLAYING == 0);
            before = status;
        }
        assert_eq!(frames, 70);
        let share = shown * 100 / samples;
        assert!((68..75).contains(&share), "{share} % of the time");
    }
}
