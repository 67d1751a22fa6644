//! The ACPI fixed hardware: PM1a event and control registers and the PM timer.
//!
//! ACPI Specification 6.5, 4.8.3 "Fixed Hardware Features" and 4.8.4 "Fixed Hardware Registers".
//! The platform is in ACPI mode from the start, as the FADT says with its SMI_CMD of zero.

use umbra_telemetry::GuestExit;

use crate::clock::Clock;

/// Where the register blocks are; the FADT tells the guest.
pub(crate) const PM1A_EVENT_PORT: u16 = 0x600;
pub(crate) const PM1A_CONTROL_PORT: u16 = 0x604;
pub(crate) const PM_TIMER_PORT: u16 = 0x608;

/// The SLP_TYP of S5, for \_S5. Zero as on QEMU's PC, so that small kernels which know that find it
/// here too.
pub(crate) const SLEEP_TYPE_S5: u8 = 0;

const PM_TIMER_HZ: u64 = 3_579_545;
const PM_TIMER_BITS: u32 = 24;

const STATUS_TIMER: u16 = 1 << 0;
/// TMR_EN, GBL_EN, PWRBTN_EN, SLPBTN_EN, RTC_EN.
const ENABLE_IMPLEMENTED: u16 = 0x0721;
const ENABLE_TIMER: u16 = 1 << 0;
const CONTROL_SCI_ENABLE: u16 = 1 << 0;
/// BM_RLD and SLP_TYP keep what is written. GBL_RLS and SLP_EN read zero.
const CONTROL_WRITABLE: u16 = 0x1c02;
/// SLP_TYP and SLP_EN in the control register's high byte.
const CONTROL_HIGH_SLEEP_TYPE_SHIFT: u8 = 2;
const CONTROL_HIGH_SLEEP_ENABLE: u8 = 1 << 5;

pub(crate) struct PowerManagement {
    clock: Clock,
    status: u16,
    enable: u16,
    control: u16,
    /// The time, in TSC ticks, at which the timer's highest bit changes next.
    next_toggle: u64,
}

impl PowerManagement {
    pub(crate) fn new(clock: Clock) -> PowerManagement {
        let mut pm = PowerManagement {
            clock,
            status: 0,
            enable: 0,
            control: CONTROL_SCI_ENABLE,
            next_toggle: 0,
        };
        pm.find_next_toggle(0);
        pm
    }

    /// A read at an offset from [`PM1A_EVENT_PORT`].
    pub(crate) fn read(&self, now: u64, offset: u16, size: u8) -> u32 {
        let timer = (self.ticks(now) & ((1 << PM_TIMER_BITS) - 1)) as u32;
        let mut registers = [0xff; 16];
        registers[0..2].copy_from_slice(&self.status.to_le_bytes());
        registers[2..4].copy_from_slice(&self.enable.to_le_bytes());
        registers[4..6].copy_from_slice(&self.control.to_le_bytes());
        registers[8..12].copy_from_slice(&timer.to_le_bytes());
        registers
            .iter()
            .skip(usize::from(offset))
            .take(usize::from(size.min(4)))
            .enumerate()
            .fold(0, |value, (i, &byte)| value | u32::from(byte) << (8 * i))
    }

    /// A write at an offset from [`PM1A_EVENT_PORT`].
    pub(crate) fn write(&mut self, offset: u16, size: u8, value: u32) -> Option<GuestExit> {
        let bytes = value.to_le_bytes();
        let mut exit = None;
        for (offset, byte) in (offset..).zip(bytes).take(usize::from(size)) {
            let high = |register: u16| (register & 0x00ff) | u16::from(byte) << 8;
            let low = |register: u16| (register & 0xff00) | u16::from(byte);
            match offset {
                // Ones clear.
                0 => self.status &= !u16::from(byte),
                1 => self.status &= !(u16::from(byte) << 8),
                2 => self.enable = low(self.enable) & ENABLE_IMPLEMENTED,
                3 => self.enable = high(self.enable) & ENABLE_IMPLEMENTED,
                4 => self.control = low(self.control) & CONTROL_WRITABLE | CONTROL_SCI_ENABLE,
                5 => {
                    self.control = high(self.control) & CONTROL_WRITABLE | CONTROL_SCI_ENABLE;
                    let sleep_type = byte >> CONTROL_HIGH_SLEEP_TYPE_SHIFT & 7;
                    if byte & CONTROL_HIGH_SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
                        exit = Some(GuestExit::AcpiOff);
                    }
                }
                _ => {}
            }
        }
        exit
    }

    /// Notes whether the timer's highest bit has changed.
    pub(crate) fn run_to(&mut self, now: u64) {
        if now >= self.next_toggle {
            self.status |= STATUS_TIMER;
            self.find_next_toggle(now);
        }
    }

    /// The level of the system control interrupt.
    pub(crate) fn sci(&self) -> bool {
        self.status & self.enable != 0
    }

    /// When the timer will interrupt, in TSC ticks.
    pub(crate) fn next_interrupt(&self) -> Option<u64> {
        (self.enable & ENABLE_TIMER != 0 && self.status & STATUS_TIMER == 0)
            .then_some(self.next_toggle)
    }

    fn ticks(&self, now: u64) -> u64 {
        self.clock.device_ticks(now, PM_TIMER_HZ)
    }

    fn find_next_toggle(&mut self, now: u64) {
        let half = 1 << (PM_TIMER_BITS - 1);
        let toggle = (self.ticks(now) / half + 1).saturating_mul(half);
        self.next_toggle = self.clock.tsc_at(toggle, PM_TIMER_HZ);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: u16 = 0;
    const ENABLE: u16 = 2;
    const CONTROL: u16 = 4;
    const TIMER: u16 = 8;

    #[test]
    fn the_timer_counts_24_bits() {
        let pm = PowerManagement::new(Clock::new(1_000_000_000));
        assert_eq!(pm.read(1_000_000_000, TIMER, 4), 3_579_545);
        let wrap = Clock::new(1_000_000_000).tsc_at(1 << 24, PM_TIMER_HZ);
        assert_eq!(pm.read(wrap - 1, TIMER, 4), 0xff_ffff);
        assert_eq!(pm.read(wrap, TIMER, 4), 0);
    }

    #[test]
    fn the_highest_bit_interrupts_each_time_it_changes() {
        let clock = Clock::new(PM_TIMER_HZ);
        let mut pm = PowerManagement::new(clock);
        assert_eq!(pm.next_interrupt(), None);
        pm.write(ENABLE, 2, u32::from(ENABLE_TIMER));
        for toggle in [1 << 23, 1 << 24, 3 << 23] {
            assert_eq!(pm.next_interrupt(), Some(toggle));
            pm.run_to(toggle - 1);
            assert!(!pm.sci());
            pm.run_to(toggle);
            assert!(pm.sci());
            pm.write(STATUS, 2, u32::from(STATUS_TIMER));
            assert!(!pm.sci());
        }
    }

    #[test]
    fn enables_read_back_and_the_mode_stays_acpi() {
        let mut pm = PowerManagement::new(Clock::new(1_000_000_000));
        pm.write(STATUS, 4, 0xffff_0000);
        assert_eq!(pm.read(0, STATUS, 4), u32::from(ENABLE_IMPLEMENTED) << 16);
        assert_eq!(pm.read(0, ENABLE + 1, 1), u32::from(ENABLE_IMPLEMENTED >> 8));
        pm.write(CONTROL, 2, 0);
        assert_eq!(pm.read(0, CONTROL, 2), 1);
    }

    #[test]
    fn only_sleep_enable_with_the_type_of_s5_ends() {
        let mut pm = PowerManagement::new(Clock::new(1_000_000_000));
        assert_eq!(pm.write(CONTROL, 2, 0x0000), None);
        assert_eq!(pm.write(CONTROL, 2, 0x2400), None);
        assert_eq!(pm.write(CONTROL, 2, 0x2000), Some(GuestExit::AcpiOff));
        assert_eq!(pm.write(CONTROL + 1, 1, 0x20), Some(GuestExit::AcpiOff));
        assert_eq!(pm.read(0, CONTROL, 2) & 0x2000, 0);
    }
}
