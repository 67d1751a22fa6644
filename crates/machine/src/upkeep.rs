//! What the user is to see in time whatever the guest does: its output, and its screen.

use crate::screen::Screen;

/// How long output may wait for more of its line: 20 ms, in fractions of a second.
const OUTPUT_WAITS: u64 = 50;

/// Times of the platform at which something is due that is no device's.
#[derive(Debug)]
pub struct Upkeep {
    /// Ticks in a second.
    second: u64,
    /// When output is sent that waits for the rest of its line.
    output_at: Option<u64>,
    /// The guest's screen, if the user wants to see it.
    pub screen: Option<Screen>,
    /// The earliest of all times.
    next: Option<u64>,
}

impl Upkeep {
    /// At time 0 of a clock with `second` ticks in a second.
    pub fn new(second: u64, screen: bool) -> Upkeep {
        let screen = screen.then(|| Screen::new(second));
        let mut upkeep = Upkeep { second, output_at: None, screen, next: None };
        upkeep.settle();
        upkeep
    }

    /// When something is due, if anything is.
    pub fn next(&self) -> Option<u64> {
        self.next
    }

    /// Output waits. It does so from the first call since it was sent.
    pub fn output_waits(&mut self, now: u64) {
        if self.output_at.is_none() {
            self.output_at = Some(now + self.second / OUTPUT_WAITS);
            self.settle();
        }
    }

    /// All output has been sent.
    pub fn output_sent(&mut self) {
        if self.output_at.take().is_some() {
            self.settle();
        }
    }

    /// Whether output has waited long enough.
    pub fn output_is_due(&self, now: u64) -> bool {
        self.output_at.is_some_and(|at| at <= now)
    }

    /// Whether the screen should be looked at.
    pub fn screen_is_due(&self, now: u64) -> bool {
        self.screen.as_ref().is_some_and(|screen| screen.next_look() <= now)
    }

    /// The screen has been looked at.
    pub fn settle(&mut self) {
        let look = self.screen.as_ref().map(Screen::next_look);
        self.next = self.output_at.into_iter().chain(look).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn output_is_due_within_50_ms_of_its_first_byte() {
        let mut upkeep = Upkeep::new(SECOND, false);
        assert_eq!(upkeep.next(), None);
        upkeep.output_waits(100);
        upkeep.output_waits(5000);
        let due = upkeep.next().unwrap();
        assert!((100..=100 + SECOND / 20).contains(&due));
        assert!(!upkeep.output_is_due(due - 1) && upkeep.output_is_due(due));
        upkeep.output_sent();
        assert_eq!((upkeep.next(), upkeep.output_is_due(due)), (None, false));
    }

    #[test]
    fn the_earlier_of_both_is_next() {
        let mut upkeep = Upkeep::new(SECOND, true);
        let look = upkeep.next().unwrap();
        assert!(!upkeep.screen_is_due(look - 1) && upkeep.screen_is_due(look));
        upkeep.output_waits(1);
        assert!(upkeep.next().unwrap() < look);
        upkeep.output_sent();
        assert_eq!(upkeep.next(), Some(look));
    }
}
