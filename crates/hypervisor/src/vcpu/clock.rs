//! The guest's time.

use crate::hw::cpu;

/// The machine's time-stamp counter as the guest gets it: from zero on, without the time of audits and of tracing.
pub struct Clock {
    /// The machine's TSC at the guest's zero.
    zero: u64,
    /// What the guest has added to its counter by writing it.
    written: u64,
}

impl Clock {
    /// Starts at zero.
    pub fn new() -> Clock {
        Clock { zero: cpu::tsc(), written: 0 }
    }

    /// Ticks since the start: the time of the platform.
    pub fn now(&self) -> u64 {
        self.at(cpu::tsc())
    }

    /// The time of the platform at a time-stamp of the machine.
    pub fn at(&self, machine_tsc: u64) -> u64 {
        machine_tsc.wrapping_sub(self.zero)
    }

    /// The machine's TSC at a time of the platform.
    pub fn machine_tsc(&self, now: u64) -> u64 {
        now.saturating_add(self.zero)
    }

    /// The guest's counter is that of the platform plus this.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The guest's counter is the machine's plus this.
    pub fn tsc_offset(&self) -> u64 {
        self.written.wrapping_sub(self.zero)
    }

    /// The guest reads its counter.
    pub fn read_tsc(&self) -> u64 {
        self.now().wrapping_add(self.written)
    }

    /// The guest writes its counter.
    pub fn write_tsc(&mut self, value: u64) {
        self.written = value.wrapping_sub(self.now());
    }

    /// Takes `ticks` out of the guest's time.
    pub fn skip(&mut self, ticks: u64) {
        self.zero = self.zero.wrapping_add(ticks);
    }
}
