//! The MC146818 clock and the CMOS memory around it.
//!
//! Motorola MC146818A data sheet, "Time, Calendar, and Alarm Locations", "Registers" and
//! "Interrupts". The divider always runs: its reset bits in register A are only stored.

use time::{Date, Month, OffsetDateTime, Time};

use crate::clock::Clock;
use crate::config::RamLayout;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
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
const A_RATE: u8 = 0xf;
const B_SET: u8 = 1 << 7;
const B_UPDATE_ENABLE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// Flags of register C; the bits of register B that let them interrupt are at the same places.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE_ENDED: u8 = 1 << 4;
const FLAGS: u8 = PERIODIC | ALARM | UPDATE_ENDED;
const C_INTERRUPT: u8 = 1 << 7;
const D_VALID: u8 = 1 << 7;
/// An alarm byte from here on matches any value.
const DO_NOT_CARE: u8 = 0xc0;
const HOURS_PM: u8 = 1 << 7;

/// The update cycle, with the 244 µs before it during which the flag is up already (data sheet,
/// "Update Cycle").
const UPDATE_NANOSECONDS: u64 = 244_000 + 1_984_000;
const SECOND_NANOSECONDS: u64 = 1_000_000_000;
const CRYSTAL_HZ: u64 = 32768;
const DAY_SECONDS: u32 = 86400;

pub(crate) struct Rtc {
    clock: Clock,
    /// The time at `now == 0`, in seconds since 1970-01-01.
    epoch: i64,
    /// The time that stands still while the guest sets it.
    held: Option<OffsetDateTime>,
    index: u8,
    memory: [u8; 128],
    /// The flags of register C that have come up since it was read.
    flags: u8,
    /// Seconds of the clock, and ticks of the periodic rate, up to which the flags have been looked
    /// at.
    seconds_seen: u64,
    ticks_seen: u64,
    /// The second of the clock at which time and alarm match next.
    alarm_at: Option<u64>,
}

impl Rtc {
    pub(crate) fn new(clock: Clock, unix_seconds: u64, ram: &RamLayout) -> Rtc {
        let mut rtc = Rtc {
            clock,
            epoch: i64::try_from(unix_seconds).unwrap_or(i64::MAX),
            held: None,
            index: 0,
            memory: [0; 128],
            flags: 0,
            seconds_seen: 0,
            ticks_seen: 0,
            alarm_at: None,
        };
        rtc.memory[usize::from(STATUS_A)] = A_FIRMWARE;
        rtc.memory[usize::from(STATUS_B)] = B_24_HOURS;

        let above = |start: u64, unit: u64| ram.below_4g.saturating_sub(start) / unit;
        rtc.set_size(0x15, (ram.below_4g / 1024).min(640));
        rtc.set_size(0x17, above(1 << 20, 1 << 10));
        rtc.set_size(0x30, above(1 << 20, 1 << 10));
        rtc.set_size(0x34, above(16 << 20, 64 << 10));
        // As Bochs and QEMU have it: three bytes, memory from 4 GiB up in units of 64 KiB.
        let units = (ram.above_4g / (64 << 10)).min(0xff_ffff);
        rtc.memory[0x5b..0x5e].copy_from_slice(&units.to_le_bytes()[..3]);
        rtc.set_alarm(0);
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
    pub(crate) fn read(&mut self, now: u64) -> u8 {
        let time = self.time(now);
        match self.index {
            SECONDS => self.encode(time.second()),
            MINUTES => self.encode(time.minute()),
            HOURS => self.encode_hour(time.hour()),
            WEEKDAY => self.encode(time.weekday().number_from_sunday()),
            DAY => self.encode(time.day()),
            MONTH => self.encode(time.month().into()),
            YEAR => self.encode(time.year().rem_euclid(100) as u8),
            CENTURY => self.encode((time.year() / 100).rem_euclid(100) as u8),
            STATUS_A => {
                self.memory[usize::from(STATUS_A)]
                    | if self.updating(now) { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_C => {
                self.run_to(now);
                let interrupt = if self.interrupt() { C_INTERRUPT } else { 0 };
                interrupt | core::mem::take(&mut self.flags)
            }
            STATUS_D => D_VALID,
            index => self.memory[usize::from(index)],
        }
    }

    /// A write to port 0x71.
    pub(crate) fn write(&mut self, now: u64, value: u8) {
        self.run_to(now);
        self.write_register(now, value);
        self.set_alarm(now);
    }

    fn write_register(&mut self, now: u64, value: u8) {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                self.set_field(now, value)
            }
            STATUS_A => {
                self.memory[usize::from(STATUS_A)] = value & !A_UPDATE_IN_PROGRESS;
                self.ticks_seen = self.periodic_ticks(now);
            }
            STATUS_B => {
                let time = self.time(now);
                self.memory[usize::from(STATUS_B)] = value;
                if value & B_SET != 0 {
                    self.held = Some(time);
                    // Data sheet: "the SET bit going high clears the UIE bit".
                    self.memory[usize::from(STATUS_B)] &= !B_UPDATE_ENABLE;
                } else if self.held.take().is_some() {
                    self.set_time(now, time);
                }
            }
            STATUS_C | STATUS_D => {}
            index => self.memory[usize::from(index)] = value,
        }
    }

    /// Whether a flag may interrupt.
    #[inline]
    pub(crate) fn may_interrupt(&self) -> bool {
        self.status_b() & FLAGS != 0
    }

    /// Whether the interrupt line is asserted, as of the last [`run_to`](Rtc::run_to).
    pub(crate) fn interrupt(&self) -> bool {
        self.flags & self.status_b() & FLAGS != 0
    }

    /// When the line will rise.
    pub(crate) fn next_interrupt(&self, now: u64) -> Option<u64> {
        let enabled = self.status_b() & FLAGS;
        if enabled == 0 || self.interrupt() {
            return None;
        }
        let (second, _) = self.clock.seconds(now);
        let runs = self.held.is_none();
        let periodic = self.periodic_hz().filter(|_| enabled & PERIODIC != 0);
        let sources = [
            periodic.map(|hz| self.clock.tsc_at(self.periodic_ticks(now) + 1, hz)),
            (runs && enabled & UPDATE_ENDED != 0).then(|| self.clock.tsc_at(second + 1, 1)),
            self.alarm_at
                .filter(|_| runs && enabled & ALARM != 0)
                .map(|at| self.clock.tsc_at(at, 1)),
        ];
        sources.into_iter().flatten().min()
    }

    /// Raises the flags for what has happened since the last call: they come up whether or not they
    /// may interrupt (data sheet, "Interrupts").
    pub(crate) fn run_to(&mut self, now: u64) {
        let (second, _) = self.clock.seconds(now);
        if self.held.is_none() {
            if second > self.seconds_seen {
                self.flags |= UPDATE_ENDED;
            }
            if self.alarm_at.is_some_and(|at| at <= second) {
                self.flags |= ALARM;
                self.set_alarm(now);
            }
        }
        self.seconds_seen = self.seconds_seen.max(second);
        let ticks = self.periodic_ticks(now);
        if ticks > self.ticks_seen {
            self.flags |= PERIODIC;
            self.ticks_seen = ticks;
        }
    }

    /// The rate that register A selects, if it selects one.
    fn periodic_hz(&self) -> Option<u64> {
        match self.memory[usize::from(STATUS_A)] & A_RATE {
            0 => None,
            // The two fastest rates exist with a faster crystal only; with this one they are 256
            // and 128 Hz.
            rate @ 1..=2 => Some(CRYSTAL_HZ >> (rate + 6)),
            rate => Some(CRYSTAL_HZ >> (rate - 1)),
        }
    }

    fn periodic_ticks(&self, now: u64) -> u64 {
        self.periodic_hz().map_or(0, |hz| self.clock.device_ticks(now, hz))
    }

    /// Finds the next second at which time and alarm match.
    fn set_alarm(&mut self, now: u64) {
        let time = self.time(now);
        let (hour, minute, second) = time.to_hms();
        let today = u32::from(hour) * 3600 + u32::from(minute) * 60 + u32::from(second);
        let (elapsed, _) = self.clock.seconds(now);
        self.alarm_at =
            self.next_match(today).map(|seconds| elapsed.saturating_add(seconds.into()));
    }

    /// Seconds from a second of the day to the next that the alarm bytes match; a day if it is that
    /// one.
    fn next_match(&self, from: u32) -> Option<u32> {
        let matches = |index: u8, value: u8| {
            let alarm = self.memory[usize::from(index)];
            alarm >= DO_NOT_CARE || alarm == value
        };
        let mut at = from + 1;
        while at <= from + DAY_SECONDS {
            let [hour, minute, second] =
                [at / 3600 % 24, at / 60 % 60, at % 60].map(|part| part as u8);
            if !matches(HOURS_ALARM, self.encode_hour(hour)) {
                at = (at / 3600 + 1) * 3600;
            } else if !matches(MINUTES_ALARM, self.encode(minute)) {
                at = (at / 60 + 1) * 60;
            } else if !matches(SECONDS_ALARM, self.encode(second)) {
                at += 1;
            } else {
                return Some(at - from);
            }
        }
        None
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

    /// Changes one field of the time. What makes no date is moved to the nearest that is one; the
    /// day of the week follows from the date.
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
                hour = self.decode(value & !HOURS_PM).min(12) % 12
                    + if value & HOURS_PM != 0 { 12 } else { 0 };
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

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.status_b() & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOURS_PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
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
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY]
            .map(|index| read(rtc, now, index))
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
        for (index, value) in [(MONTH, 0x02), (DAY, 0x29), (YEAR, 0x28), (DAY, 0x29), (HOURS, 0x07)]
        {
            write(&mut rtc, 5 * HZ, index, value);
        }
        assert_eq!(read(&mut rtc, 6 * HZ - 1, STATUS_A), A_FIRMWARE);
        write(&mut rtc, 6 * HZ, STATUS_B, B_24_HOURS);
        assert_eq!(clock_face(&mut rtc, 7 * HZ), [0x20, 0x28, 0x02, 0x29, 0x07, 0x59, 0x59, 3]);
    }

    #[test]
    fn the_update_ended_flag_comes_each_second_and_goes_when_read() {
        let mut rtc = rtc();
        write(&mut rtc, 0, STATUS_A, 0x20);
        // Not in the next hours.
        write(&mut rtc, 0, HOURS_ALARM, 0x12);
        assert_eq!(read(&mut rtc, HZ - 1, STATUS_C), 0);
        assert_eq!(read(&mut rtc, HZ, STATUS_C), UPDATE_ENDED);
        assert_eq!(read(&mut rtc, HZ + 1, STATUS_C), 0, "reading clears it");
        assert_eq!(read(&mut rtc, 5 * HZ, STATUS_C), UPDATE_ENDED, "once for all seconds");
        // The flag itself comes up whatever is enabled; the interrupt does not.
        write(&mut rtc, 5 * HZ, STATUS_B, B_24_HOURS | UPDATE_ENDED);
        assert_eq!(read(&mut rtc, 6 * HZ, STATUS_C), C_INTERRUPT | UPDATE_ENDED);
        // Nothing is updated while the clock is set, and that ends the enable, too.
        write(&mut rtc, 6 * HZ, STATUS_B, B_SET | B_24_HOURS | UPDATE_ENDED);
        assert_eq!(read(&mut rtc, 9 * HZ, STATUS_C), 0);
        assert_eq!(read(&mut rtc, 9 * HZ, STATUS_B), B_SET | B_24_HOURS);
    }

    #[test]
    fn the_periodic_flag_comes_at_its_rate() {
        let mut rtc = rtc();
        for (rate, hz) in [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)] {
            write(&mut rtc, 0, STATUS_A, 0x20 | rate);
            read(&mut rtc, 0, STATUS_C);
            let period = HZ.div_ceil(hz);
            assert_eq!(read(&mut rtc, period - 1, STATUS_C) & PERIODIC, 0, "{hz} Hz");
            assert_eq!(read(&mut rtc, period, STATUS_C) & PERIODIC, PERIODIC, "{hz} Hz");
            rtc = self::rtc();
        }
    }

    #[test]
    fn the_alarm_flag_comes_when_all_three_bytes_match() {
        let mut rtc = rtc();
        write(&mut rtc, 0, STATUS_A, 0x20);
        // It is 23:59:58.
        for (hours, minutes, seconds, due) in [
            (0x23, 0x59, 0x59, 1),
            (0x00, 0x00, 0x03, 5),
            (0xff, 0xc0, 0x01, 3),
            (0x23, 0x59, 0x58, 86400),
            (0xc0, 0x58, 0x00, 3482),
        ] {
            let mut rtc = Rtc { clock: rtc.clock, memory: rtc.memory, ..self::rtc() };
            for (index, value) in
                [(HOURS_ALARM, hours), (MINUTES_ALARM, minutes), (SECONDS_ALARM, seconds)]
            {
                write(&mut rtc, 0, index, value);
            }
            assert_eq!(read(&mut rtc, due * HZ - 1, STATUS_C) & ALARM, 0, "{due}");
            assert_eq!(read(&mut rtc, due * HZ, STATUS_C) & ALARM, ALARM, "{due}");
        }
        write(&mut rtc, 0, HOURS_ALARM, 0x24);
        assert_eq!(read(&mut rtc, 90_000 * HZ, STATUS_C) & ALARM, 0, "no such hour");
    }

    #[test]
    fn the_line_rises_when_it_was_said_to() {
        let mut rtc = rtc();
        assert_eq!(rtc.next_interrupt(0), None, "nothing is enabled");
        for (enable, at) in [(PERIODIC, HZ.div_ceil(1024)), (UPDATE_ENDED, HZ), (ALARM, 2 * HZ)] {
            rtc = self::rtc();
            write(&mut rtc, 0, STATUS_B, B_24_HOURS | enable);
            assert_eq!(rtc.next_interrupt(0), Some(at));
            rtc.run_to(at - 1);
            assert!(!rtc.interrupt());
            rtc.run_to(at);
            assert!(rtc.interrupt());
            assert_eq!(rtc.next_interrupt(at), None, "it stays up until register C is read");
            assert_eq!(read(&mut rtc, at, STATUS_C) & (C_INTERRUPT | enable), C_INTERRUPT | enable);
            assert!(!rtc.interrupt());
        }
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
        let mut word =
            |index| u16::from_le_bytes([read(&mut rtc, 0, index), read(&mut rtc, 0, index + 1)]);
        assert_eq!([0x15, 0x17, 0x30].map(&mut word), [640, 0xffff, 0xffff]);
        assert_eq!(u64::from(word(0x34)) << 16, RAM.below_4g - (16 << 20));
        for (above_4g, units) in [(0, 0), (5 << 30, 5 << 14), (u64::MAX, 0xff_ffff)] {
            let mut rtc = Rtc::new(Clock::new(HZ), START, &RamLayout { above_4g, ..RAM });
            let bytes = [0x5b, 0x5c, 0x5d].map(|index| u32::from(read(&mut rtc, 0, index)));
            assert_eq!(bytes[0] | bytes[1] << 8 | bytes[2] << 16, units);
        }
        write(&mut rtc, 0, 0x5a, 0xa5);
        assert_eq!(read(&mut rtc, 0, 0x5a | 0x80), 0xa5);
    }
}
