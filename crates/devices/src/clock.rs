//! Conversions between the platform's time, in TSC ticks, and the ticks of devices with clocks of
//! their own.

/// The frequency of `now`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    tsc_hz: u64,
}

impl Clock {
    pub(crate) fn new(tsc_hz: u64) -> Clock {
        assert!(
            tsc_hz >= 1_000_000,
            "a time base of {tsc_hz} Hz is too coarse for the PIT and the PM timer"
        );
        Clock { tsc_hz }
    }

    /// Whole ticks of a clock of `hz` since `now == 0`.
    pub(crate) fn device_ticks(self, now: u64, hz: u64) -> u64 {
        match now.checked_mul(hz) {
            // Hours pass before the product leaves 64 bits, and until then this is much cheaper.
            Some(product) => product / self.tsc_hz,
            None => saturate(u128::from(now) * u128::from(hz) / u128::from(self.tsc_hz)),
        }
    }

    /// The first `now` at which a clock of `hz` has made `ticks` ticks.
    pub(crate) fn tsc_at(self, ticks: u64, hz: u64) -> u64 {
        saturate((u128::from(ticks) * u128::from(self.tsc_hz)).div_ceil(u128::from(hz)))
    }

    /// Whole seconds since `now == 0`, and nanoseconds since the last of them.
    pub(crate) fn seconds(self, now: u64) -> (u64, u64) {
        let rest = self.device_ticks(now % self.tsc_hz, 1_000_000_000);
        (now / self.tsc_hz, rest)
    }

    /// How many ticks of `now` are 10 µs.
    pub(crate) fn tsc_ticks_in_10_us(self) -> u64 {
        self.tsc_hz / 100_000
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tsc_at_is_the_first_time_with_that_many_ticks() {
        for tsc_hz in [1_000_000, 1_000_000_000, 2_893_202_117] {
            let clock = Clock::new(tsc_hz);
            for hz in [1_193_182, 3_579_545] {
                for ticks in [1, 2, 3, 1193, 65536, 1 << 40] {
                    let at = clock.tsc_at(ticks, hz);
                    assert!(clock.device_ticks(at, hz) >= ticks);
                    assert!(clock.device_ticks(at - 1, hz) < ticks);
                }
            }
        }
    }

    #[test]
    fn ticks_do_not_jump_where_the_product_leaves_64_bits() {
        let (clock, hz) = (Clock::new(1_000_000_000), 3_579_545);
        let last = u64::MAX / hz;
        let ticks = clock.device_ticks(last, hz);
        assert!((ticks..=ticks + 1).contains(&clock.device_ticks(last + 1, hz)));
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        let clock = Clock::new(1_000_000);
        assert_eq!(clock.device_ticks(u64::MAX, 3_579_545), u64::MAX);
        assert_eq!(Clock::new(u64::MAX).tsc_at(u64::MAX, 1), u64::MAX);
        assert!(clock.seconds(u64::MAX).1 < 1_000_000_000);
    }
}
