//! The physical battery-backed clock (MC146818 data sheet, "Time, Calendar, and Alarm Locations").

use time::{Date, Month, PrimitiveDateTime, Time};

use super::port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;

const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// In 12-hour mode.
const AFTERNOON: u8 = 1 << 7;

fn read(register: u8) -> u8 {
    port::write_u8(INDEX, register);
    port::read_u8(DATA)
}

/// UTC in seconds since 1970, if the clock runs and is set. (It is taken to run in UTC, years 1970
/// to 2069.)
pub fn unix_seconds() -> Option<u64> {
    // An update takes 2 ms; a port access at least a hundred ns.
    (0..100_000).any(|_| read(STATUS_A) & UPDATE_IN_PROGRESS == 0).then_some(())?;
    let status = read(STATUS_B);
    let decode = |raw: u8| if status & BINARY != 0 { raw } else { (raw >> 4) * 10 + (raw & 0xf) };
    let raw_hours = read(HOURS);
    let hours = match status & HOURS_24 {
        0 => decode(raw_hours & !AFTERNOON) % 12 + if raw_hours & AFTERNOON != 0 { 12 } else { 0 },
        _ => decode(raw_hours),
    };
    let year = i32::from(decode(read(YEAR)));
    let year = if year < 70 { 2000 + year } else { 1900 + year };
    let month = Month::try_from(decode(read(MONTH))).ok()?;
    let date = Date::from_calendar_date(year, month, decode(read(DAY))).ok()?;
    let time = Time::from_hms(hours, decode(read(MINUTES)), decode(read(SECONDS))).ok()?;
    PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp().try_into().ok()
}
