//! The MC146818 clock and the CMOS memory around it.
//!
//! Motorola MC146818A data sheet, "Time, Calendar, and Alarm Locations" and "Registers". The clock has no
//! interrupts: alarm, periodic and update-ended interrupts can be enabled but never come.

use time::{Date, Month, OffsetDateTime, Time};

use crate::clock::Clock;
use crate::platform::RamLayout;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where PC firmware keeps the century; the FADT says so.
pub(crate) const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// A 32768 Hz crystal, periodic rate 1024 Hz: what PC firmware sets.
const A_FIRMWARE: u8 = 0x26;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const D_VALID: u8 = 1 << 7;
const HOURS_PM: u8 = 1 << 7;

/// The update cycle, with the 244 µs before it during which the flag is up already (data sheet, "Update Cycle").
const UPDATE_NANOSECONDS: u64 = 244_000 + 1_984_000;
const SECOND_NANOSECONDS: u64 = 1_000_000_000;

pub(crate) struct Rtc {
    clock: Clock,
    /// The time at `now == 0`, in seconds since 1970-01-01.
    epoch: i64,
    /// The time that stands still while the guest sets it.
    held: Option<OffsetDateTime>,
    index: u8,
    memory: [u8; 128],
}

impl Rtc {
    pub(crate) fn new(clock: Clock, unix_seconds: u64, ram: &RamLayout) -> Rtc {
        let mut rtc = Rtc {
            clock,
            epoch: i64::try_from(unix_seconds).unwrap_or(i64::MAX),
            held: None,
            index: 0,
            memory: [0; 128],
        };
        rtc.memory[usize::from(STATUS_A)] = A_FIRMWARE;
        rtc.memory[usize::from(STATUS_B)] = B_24_HOURS;

        let above = |start: u64, unit: u64| ram.below_4g.saturating_sub(start) / unit;
        rtc.set_size(0x15, (ram.below_4g / 1024).min(640));
        rtc.set_size(0x17, above(1 << 20, 1 << 10));
        rtc.set_size(0x30, above(1 << 20, 1 << 10));
        rtc.set_size(0x34, above(16 << 20, 64 << 10));
        rtc
    }

    /// Puts a memory size into two bytes, or the largest that they can hold.
    fn set_size(&mut self, index: usize, units: u64) {
        let units = u16::try_from(units).unwrap_or(u16::MAX);
        self.memory[index..index + 2].copy_from_slice(&units.to_le_bytes());
    }

    /// A write to port 0x70; its bit 7, which masks NMIs on a PC, has no effect.
    pub(crate) fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// A read of port 0x71.
    pub(crate) fn read(&self, now: u64) -> u8 {
        let time = self.time(now);
        match self.index {
            SECONDS => self.encode(time.second()),
            MINUTES => self.encode(time.minute()),
            HOURS if self.status_b() & B_24_HOURS != 0 => self.encode(time.hour()),
            HOURS => {
                let pm = if time.hour() >= 12 { HOURS_PM } else { 0 };
                self.encode((time.hour() + 11) % 12 + 1) | pm
            }
            WEEKDAY => self.encode(time.weekday().number_from_sunday()),
            DAY => self.encode(time.day()),
            MONTH => self.encode(time.month().into()),
            YEAR => self.encode(time.year().rem_euclid(100) as u8),
            CENTURY => self.encode((time.year() / 100).rem_euclid(100) as u8),
            STATUS_A => {
                self.memory[usize::from(STATUS_A)] | if self.updating(now) { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_C => 0,
            STATUS_D => D_VALID,
            index => self.memory[usize::from(index)],
        }
    }

    /// A write to port 0x71.
    pub(crate) fn write(&mut self, now: u64, value: u8) {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => self.set_field(now, value),
            STATUS_A => self.memory[usize::from(STATUS_A)] = value & !A_UPDATE_IN_PROGRESS,
            STATUS_B => {
                let time = self.time(now);
                self.memory[usize::from(STATUS_B)] = value;
                if value & B_SET != 0 {
                    self.held = Some(time);
                } else if self.held.take().is_some() {
                    self.set_time(now, time);
                }
            }
            STATUS_C | STATUS_D => {}
            index => self.memory[usize::from(index)] = value,
        }
    }

    fn status_b(&self) -> u8 {
        self.memory[usize::from(STATUS_B)]
    }

    fn time(&self, now: u64) -> OffsetDateTime {
        self.held.unwrap_or_else(|| {
            let (seconds, _) = self.clock.seconds(now);
            let seconds = self.epoch.saturating_add_unsigned(seconds);
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(LAST_YEAR_OF_CENTURIES)
        })
    }

    fn set_time(&mut self, now: u64, time: OffsetDateTime) {
        let (seconds, _) = self.clock.seconds(now);
        self.epoch = time.unix_timestamp().saturating_sub_unsigned(seconds);
    }

    fn updating(&self, now: u64) -> bool {
        let (_, nanoseconds) = self.clock.seconds(now);
        self.held.is_none() && nanoseconds >= SECOND_NANOSECONDS - UPDATE_NANOSECONDS
    }

    /// Changes one field of the time. What makes no date is moved to the nearest that is one; the day of the
    /// week follows from the date.
    fn set_field(&mut self, now: u64, value: u8) {
        let before = self.time(now);
        let (mut hour, mut minute, mut second) = before.to_hms();
        let (mut year, mut month, mut day) = before.to_calendar_date();
        let number = self.decode(value);
        match self.index {
            SECONDS => second = number.min(59),
            MINUTES => minute = number.min(59),
            HOURS if self.status_b() & B_24_HOURS != 0 => hour = number.min(23),
            HOURS => {
                hour =
                    self.decode(value & !HOURS_PM).min(12) % 12 + if value & HOURS_PM != 0 { 12 } else { 0 };
            }
            DAY => day = number.max(1),
            MONTH => month = Month::try_from(number.clamp(1, 12)).unwrap_or(month),
            YEAR => year = year / 100 * 100 + i32::from(number.min(99)),
            CENTURY => year = i32::from(number.min(99)) * 100 + year % 100,
            _ => {}
        }
        day = day.min(month.length(year));
        let (Ok(date), Ok(time)) =
            (Date::from_calendar_date(year, month, day), Time::from_hms(hour, minute, second))
        else {
            return;
        };
        let after = OffsetDateTime::new_utc(date, time);
        if self.held.is_some() {
            self.held = Some(after);
        } else {
            self.set_time(now, after);
        }
    }

    fn encode(&self, number: u8) -> u8 {
        if self.status_b() & B_BINARY != 0 { number } else { (number / 10) << 4 | (number % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.status_b() & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }
}

/// Where the clock stops: its registers have no fifth digit for the year.
const LAST_YEAR_OF_CENTURIES: OffsetDateTime = OffsetDateTime::new_utc(Date::MAX, Time::MIDNIGHT);

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1_000_000_000;
    /// Thursday, 2026-11-19 23:59:58 UTC.
    const START: u64 = 1_795_132_798;
    const RAM: RamLayout = RamLayout { below_4g: 256 << 20, above_4g: 0 };

    fn rtc() -> Rtc {
        Rtc::new(Clock::new(HZ), START, &RAM)
    }

    fn read(rtc: &mut Rtc, now: u64, index: u8) -> u8 {
        rtc.select(index);
        rtc.read(now)
    }

    fn write(rtc: &mut Rtc, now: u64, index: u8, value: u8) {
        rtc.select(index);
        rtc.write(now, value);
    }

    fn clock_face(rtc: &mut Rtc, now: u64) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY].map(|index| read(rtc, now, index))
    }

    #[test]
    fn time_passes_in_bcd() {
        let mut rtc = rtc();
        assert_eq!(clock_face(&mut rtc, 0), [0x20, 0x26, 0x11, 0x19, 0x23, 0x59, 0x58, 5]);
        assert_eq!(clock_face(&mut rtc, 2 * HZ), [0x20, 0x26, 0x11, 0x20, 0x00, 0x00, 0x00, 6]);
    }

    #[test]
    fn binary_and_12_hour_formats() {
        let mut rtc = rtc();
        write(&mut rtc, 0, STATUS_B, B_BINARY);
        assert_eq!([HOURS, MINUTES].map(|index| read(&mut rtc, 0, index)), [HOURS_PM | 11, 59]);
        assert_eq!(read(&mut rtc, 2 * HZ, HOURS), 12);
        write(&mut rtc, 2 * HZ, HOURS, HOURS_PM | 12);
        write(&mut rtc, 2 * HZ, STATUS_B, B_24_HOURS);
        assert_eq!(read(&mut rtc, 2 * HZ, HOURS), 0x12);
    }

    #[test]
    fn update_in_progress_comes_before_the_second() {
        let mut rtc = rtc();
        assert_eq!(read(&mut rtc, 0, STATUS_A), A_FIRMWARE);
        assert_eq!(read(&mut rtc, HZ - 1, STATUS_A), A_FIRMWARE | A_UPDATE_IN_PROGRESS);
        assert_eq!(read(&mut rtc, HZ, STATUS_A), A_FIRMWARE);
        assert_eq!(read(&mut rtc, HZ - 3_000_000, STATUS_A), A_FIRMWARE);
    }

    #[test]
    fn the_clock_stands_while_it_is_set() {
        let mut rtc = rtc();
        write(&mut rtc, 0, STATUS_B, B_SET | B_24_HOURS);
        for (index, value) in [(MONTH, 0x02), (DAY, 0x29), (YEAR, 0x28), (DAY, 0x29), (HOURS, 0x07)] {
            write(&mut rtc, 5 * HZ, index, value);
        }
        assert_eq!(read(&mut rtc, 6 * HZ - 1, STATUS_A), A_FIRMWARE);
        write(&mut rtc, 6 * HZ, STATUS_B, B_24_HOURS);
        assert_eq!(clock_face(&mut rtc, 7 * HZ), [0x20, 0x28, 0x02, 0x29, 0x07, 0x59, 0x59, 3]);
    }

    #[test]
    fn no_value_breaks_the_calendar() {
        let mut rtc = rtc();
        for now in [0, u64::MAX] {
            for binary in [0, B_BINARY] {
                write(&mut rtc, now, STATUS_B, B_24_HOURS | binary);
                for index in 0..=0x7f {
                    for value in [0, 1, 0x31, 0x99, 0xff] {
                        if index != STATUS_B {
                            write(&mut rtc, now, index, value);
                            clock_face(&mut rtc, now);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn memory_sizes() {
        let mut rtc = rtc();
        let mut word = |index| u16::from_le_bytes([read(&mut rtc, 0, index), read(&mut rtc, 0, index + 1)]);
        assert_eq!([0x15, 0x17, 0x30].map(&mut word), [640, 0xffff, 0xffff]);
        assert_eq!(u64::from(word(0x34)) << 16, RAM.below_4g - (16 << 20));
        write(&mut rtc, 0, 0x5a, 0xa5);
        assert_eq!(read(&mut rtc, 0, 0x5a | 0x80), 0xa5);
    }
}
