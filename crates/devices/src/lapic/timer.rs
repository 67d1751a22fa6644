//! The local APIC's timer.
//!
//! SDM volume 3, "APIC Timer" and "TSC-Deadline Mode". Its input clock is the platform's TSC.

/// Bits 18:17 of the timer's LVT entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
    /// The reserved encoding: the timer stands.
    Reserved,
}

impl Mode {
    pub(super) fn of_lvt(entry: u32) -> Mode {
        match entry >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            2 => Mode::TscDeadline,
            _ => Mode::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Mode::OneShot | Mode::Periodic)
    }
}

#[derive(Default)]
pub(super) struct Timer {
    mode: Mode,
    initial_count: u32,
    divide_configuration: u32,
    /// When it fires next, in the platform's time.
    fires_at: Option<u64>,
    /// IA32_TSC_DEADLINE: guest time-stamp counter, zero when disarmed.
    tsc_deadline: u64,
    /// The guest's time-stamp counter less the platform's time.
    tsc_offset: u64,
}

impl Timer {
    /// The state after a reset. The guest's time-stamp counter is not the timer's.
    pub(super) fn reset(&mut self) {
        *self = Timer { tsc_offset: self.tsc_offset, ..Timer::default() };
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes the mode. One-shot and periodic mode go on with the same count; every other change
    /// disarms.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode != self.mode && !(mode.counts() && self.mode.counts()) {
            self.fires_at = None;
            self.tsc_deadline = 0;
        }
        self.mode = mode;
    }

    pub(super) fn initial_count(&self) -> u32 {
        self.initial_count
    }

    pub(super) fn set_initial_count(&mut self, now: u64, count: u32) {
        if self.mode.counts() {
            self.initial_count = count;
            self.fires_at = (count != 0).then(|| now.saturating_add(self.ticks(count)));
        }
    }

    pub(super) fn current_count(&self, now: u64) -> u32 {
        let Some(fires_at) = self.fires_at.filter(|_| self.mode.counts()) else { return 0 };
        let left = fires_at.saturating_sub(now).div_ceil(self.divider());
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    pub(super) fn divide_configuration(&self) -> u32 {
        self.divide_configuration
    }

    /// Changes the divider; the count goes on from where it is.
    pub(super) fn set_divide_configuration(&mut self, now: u64, value: u32) {
        let current = self.current_count(now);
        self.divide_configuration = value & 0b1011;
        if self.mode.counts() && self.fires_at.is_some() {
            self.fires_at = Some(now.saturating_add(self.ticks(current)));
        }
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Arms the timer for a value of the guest's time-stamp counter, or disarms it with zero.
    /// Ignored outside TSC-deadline mode.
    pub(super) fn set_tsc_deadline(&mut self, now: u64, deadline: u64) {
        if self.mode == Mode::TscDeadline {
            self.tsc_deadline = deadline;
            let tsc = now.wrapping_add(self.tsc_offset);
            self.fires_at =
                (deadline != 0).then(|| now.saturating_add(deadline.saturating_sub(tsc)));
        }
    }

    pub(super) fn set_tsc_offset(&mut self, now: u64, offset: u64) {
        self.tsc_offset = offset;
        self.set_tsc_deadline(now, self.tsc_deadline);
    }

    /// Whether the timer has fired since the last call, however often.
    pub(super) fn take_expiry(&mut self, now: u64) -> bool {
        let Some(fired_at) = self.fires_at.filter(|&at| at <= now) else { return false };
        self.tsc_deadline = 0;
        self.fires_at = match self.mode {
            Mode::Periodic if self.initial_count != 0 => {
                let period = self.ticks(self.initial_count);
                Some(now.saturating_add(period - (now - fired_at) % period))
            }
            _ => None,
        };
        true
    }

    pub(super) fn fires_at(&self) -> Option<u64> {
        self.fires_at
    }

    /// TSC ticks in so many counts.
    fn ticks(&self, count: u32) -> u64 {
        u64::from(count) * self.divider()
    }

    fn divider(&self) -> u64 {
        let code = self.divide_configuration & 3 | self.divide_configuration >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dividers() {
        let dividers = [0, 1, 2, 3, 8, 9, 10, 11].map(|divide_configuration| {
            Timer { divide_configuration, ..Timer::default() }.divider()
        });
        assert_eq!(dividers, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn one_shot_counts_down_once() {
        let mut timer = Timer::default();
        timer.set_initial_count(1000, 100);
        assert_eq!(
            [1000, 1001, 1002, 1199, 1200].map(|now| timer.current_count(now)),
            [100, 100, 99, 1, 0]
        );
        assert!(!timer.take_expiry(1199));
        assert!(timer.take_expiry(1200));
        assert!(!timer.take_expiry(5000));
        assert_eq!((timer.fires_at(), timer.initial_count()), (None, 100));
    }

    #[test]
    fn periodic_keeps_its_phase_however_late() {
        let mut timer = Timer::default();
        timer.set_mode(Mode::Periodic);
        timer.set_divide_configuration(0, 0b1011);
        timer.set_initial_count(0, 100);
        assert!(timer.take_expiry(100));
        assert_eq!(timer.fires_at(), Some(200));
        assert!(timer.take_expiry(1_000_042));
        assert_eq!(timer.fires_at(), Some(1_000_100));
        assert_eq!(timer.current_count(1_000_042), 58);
    }

    #[test]
    fn changing_between_one_shot_and_periodic_does_not_restart() {
        let mut timer = Timer::default();
        timer.set_divide_configuration(0, 0b1011);
        timer.set_initial_count(0, 100);
        timer.set_mode(Mode::Periodic);
        assert_eq!(timer.current_count(60), 40);
        assert!(timer.take_expiry(100));
        timer.set_mode(Mode::OneShot);
        assert!(timer.take_expiry(200));
        timer.set_mode(Mode::Periodic);
        assert_eq!((timer.current_count(201), timer.fires_at()), (0, None));
    }

    #[test]
    fn a_new_divider_scales_what_is_left() {
        let mut timer = Timer::default();
        timer.set_divide_configuration(0, 0b1011);
        timer.set_initial_count(0, 100);
        timer.set_divide_configuration(60, 0b0000);
        assert_eq!(timer.current_count(60), 40);
        assert_eq!(timer.fires_at(), Some(140));
    }

    #[test]
    fn the_deadline_is_the_guests_time_stamp_counter() {
        let mut timer = Timer::default();
        timer.set_tsc_deadline(0, 500);
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_mode(Mode::TscDeadline);
        timer.set_initial_count(0, 7);
        assert_eq!((timer.initial_count(), timer.fires_at()), (0, None));
        timer.set_tsc_deadline(100, 500);
        assert_eq!(timer.fires_at(), Some(500));
        timer.set_tsc_offset(100, 300);
        assert_eq!(timer.fires_at(), Some(200));
        assert!(timer.take_expiry(200));
        assert_eq!((timer.tsc_deadline(), timer.fires_at()), (0, None));
        timer.set_tsc_deadline(300, 1);
        assert!(timer.take_expiry(300));
        timer.set_tsc_deadline(300, 1 << 40);
        timer.set_mode(Mode::OneShot);
        assert_eq!((timer.tsc_deadline(), timer.fires_at()), (0, None));
    }
}
