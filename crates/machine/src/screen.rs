//! The text on the guest's screen, and when it is worth a message.
//!
//! The guest writes to memory without an exit, so the screen is looked at from time to time. A
//! screen that rests is shown once. One that never rests, such as a memory tester's with its clock,
//! is shown every few seconds; otherwise nobody would see it before the end.

use alloc::vec::Vec;

use umbra_devices::TextScreen;
use umbra_telemetry::{SCREEN_COLUMNS, SCREEN_ROWS};

/// Cells of text memory, each a character and an attribute byte.
const CELLS: usize = 0x4000;
const CELL: usize = 2;
/// Bytes of text memory.
const TEXT_BYTES: usize = CELLS * CELL;

/// Grey on black.
const ATTRIBUTE: u8 = 0x07;

/// Text memory as firmware leaves it.
pub fn blank() -> Vec<u8> {
    [b' ', ATTRIBUTE].repeat(CELLS)
}

/// The characters that are shown out of the bytes of text memory, row by row.
///
/// # Panics
/// Those are not all its bytes.
pub fn characters(memory: &[u8], shown: TextScreen) -> Vec<u8> {
    assert_eq!(memory.len(), TEXT_BYTES, "text memory has {CELLS} cells");
    let row = |row: usize| usize::from(shown.start) + row * usize::from(shown.pitch);
    let cells =
        (0..SCREEN_ROWS).flat_map(|n| (0..SCREEN_COLUMNS).map(move |column| row(n) + column));
    cells.map(|cell| memory[cell % CELLS * CELL]).collect()
}

/// What is known of the screen. All times are ticks of one clock.
#[derive(Debug)]
pub struct Screen {
    /// Ticks in a second.
    second: u64,
    /// What was shown last.
    shown: Vec<u8>,
    /// What was seen last.
    seen: Vec<u8>,
    /// Since when it is like that.
    changed_at: u64,
    /// Since when it is not what was shown.
    differs_since: Option<u64>,
    next_look: u64,
}

/// Looks in a second.
const LOOKS: u64 = 8;

/// Seconds after which a screen is shown that does not rest.
const PATIENCE: u64 = 2;

impl Screen {
    /// A blank screen at time 0 of a clock with `second` ticks in a second.
    pub fn new(second: u64) -> Screen {
        let blank = alloc::vec![b' '; SCREEN_ROWS * SCREEN_COLUMNS];
        let next_look = second / LOOKS;
        Screen {
            second,
            shown: blank.clone(),
            seen: blank,
            changed_at: 0,
            differs_since: None,
            next_look,
        }
    }

    /// When to look again.
    pub fn next_look(&self) -> u64 {
        self.next_look
    }

    /// The characters that were seen last.
    pub fn seen(&self) -> &[u8] {
        &self.seen
    }

    /// Looks at the [`characters`] that are there now. Returns them if they are to be shown: they
    /// have rested for a second, or something else has been on the screen for longer than is
    /// tolerable.
    pub fn look(&mut self, now: u64, characters: Vec<u8>) -> Option<Vec<u8>> {
        self.next_look = now + self.second / LOOKS;
        if characters != self.seen {
            self.changed_at = now;
        }
        self.seen = characters;
        if self.seen == self.shown {
            self.differs_since = None;
            return None;
        }
        let since = *self.differs_since.get_or_insert(now);
        let rests = now - self.changed_at >= self.second;
        (rests || now - since >= PATIENCE * self.second).then(|| self.show())
    }

    /// Looks for the last time: whatever has not been shown is to be shown.
    pub fn last_look(&mut self, characters: Vec<u8>) -> Option<Vec<u8>> {
        self.seen = characters;
        (self.seen != self.shown).then(|| self.show())
    }

    fn show(&mut self) -> Vec<u8> {
        self.differs_since = None;
        self.shown = self.seen.clone();
        self.seen.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;
    const TOP: TextScreen = TextScreen { start: 0, pitch: 80 };

    fn text(first: u8) -> Vec<u8> {
        let mut memory = blank();
        memory[0] = first;
        characters(&memory, TOP)
    }

    /// When a screen is shown that has `at(time)` in its corner.
    fn shown(end: u64, at: impl Fn(u64) -> u8) -> Vec<(u64, u8)> {
        let mut screen = Screen::new(SECOND);
        let mut shown = Vec::new();
        while screen.next_look() < end {
            let now = screen.next_look();
            shown.extend(screen.look(now, text(at(now))).map(|text| (now, text[0])));
        }
        shown.extend(screen.last_look(text(at(end))).map(|text| (end, text[0])));
        shown
    }

    #[test]
    fn a_screen_that_rests_is_shown_once() {
        assert_eq!(shown(9000, |_| b' '), [], "a blank one is not");
        assert_eq!(shown(9000, |now| if now < 3000 { b' ' } else { b'x' }), [(4000, b'x')]);
    }

    #[test]
    fn a_screen_that_never_rests_is_shown_every_few_seconds() {
        let times: Vec<u64> =
            shown(9000, |now| b'a' + (now / 125 % 26) as u8).iter().map(|at| at.0).collect();
        assert_eq!(times, [2125, 4250, 6375, 8500, 9000]);
    }

    #[test]
    fn what_comes_and_goes_in_between_is_not_shown() {
        assert_eq!(shown(9000, |now| if now == 3000 { b'x' } else { b' ' }), []);
    }

    #[test]
    fn the_end_shows_what_is_left() {
        assert_eq!(shown(3500, |now| if now < 3000 { b' ' } else { b'x' }), [(3500, b'x')]);
    }

    #[test]
    fn the_text_is_where_the_crtc_says_and_wraps() {
        let mut memory = blank();
        memory[2 * 0x3fff] = b'a';
        memory[0] = b'b';
        memory[2 * 99] = b'c';
        let found = characters(&memory, TextScreen { start: 0x3fff, pitch: 100 });
        assert_eq!((found[0], found[1], found[SCREEN_COLUMNS]), (b'a', b'b', b'c'));
        assert_eq!(found.len(), 2000);
    }
}
