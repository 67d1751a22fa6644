//! The guest's time, and the machine's one-shot timer that brings the guest back when something is
//! due.

use umbra_vcpu::backend::Backend;

use super::Vcpu;
use crate::hw::{cpu, timer};

/// The machine's time-stamp counter as the guest gets it: from zero on, without the time of audits
/// and of tracing.
struct Clock {
    /// The machine's TSC at the guest's zero.
    zero: u64,
    /// What the guest has added to its counter by writing it.
    written: u64,
}

/// The one-shot timer.
#[derive(Default)]
struct Alarm {
    /// The platform's own deadline when it was set.
    device: Option<u64>,
    /// The time of the platform that it is set to: [`NOT_SET`](Alarm::NOT_SET), or
    /// [`NEVER`](Alarm::NEVER).
    set_to: u64,
}

impl Alarm {
    /// In the past, so that it is set at the next look.
    const NOT_SET: u64 = 0;
    const NEVER: u64 = u64::MAX;
}

/// The time of the guest's platform, in ticks since the start, and the alarm for what is due in it.
pub struct Time {
    clock: Clock,
    alarm: Alarm,
}

impl Time {
    /// Starts at zero.
    pub fn new() -> Time {
        Time { clock: Clock { zero: cpu::tsc(), written: 0 }, alarm: Alarm::default() }
    }

    /// Ticks since the start: the time of the platform.
    pub fn now(&self) -> u64 {
        self.at(cpu::tsc())
    }

    /// The time of the platform at a time-stamp of the machine.
    pub fn at(&self, machine_tsc: u64) -> u64 {
        machine_tsc.wrapping_sub(self.clock.zero)
    }

    /// The guest's counter is that of the platform plus this.
    pub fn written(&self) -> u64 {
        self.clock.written
    }

    /// The guest's counter is the machine's plus this.
    pub fn tsc_offset(&self) -> u64 {
        self.clock.written.wrapping_sub(self.clock.zero)
    }

    /// The guest reads its counter.
    pub fn read_tsc(&self) -> u64 {
        self.now().wrapping_add(self.clock.written)
    }

    /// The guest writes its counter.
    pub fn write_tsc(&mut self, value: u64) {
        self.clock.written = value.wrapping_sub(self.now());
    }

    /// Whether the alarm stands for the platform's `deadline`, and has not rung.
    pub fn alarm_is_set(&self, deadline: Option<u64>) -> bool {
        deadline == self.alarm.device && self.alarm.set_to > self.now() && !timer::has_fired()
    }

    /// Takes note of it if the alarm has rung.
    pub fn take_alarm(&mut self) {
        if timer::take_fired() {
            self.reset_alarm();
        }
    }

    /// Something is due earlier than when the alarm was set.
    pub fn ring_by(&mut self, at: Option<u64>) {
        if at.is_some_and(|at| at < self.alarm.set_to) {
            self.reset_alarm();
        }
    }

    /// Sets the alarm for the earlier of the platform's deadline and another one.
    pub fn set_alarm(&mut self, device: Option<u64>, other: Option<u64>) {
        self.alarm.device = device;
        let deadline = device.into_iter().chain(other).min().unwrap_or(Alarm::NEVER);
        if self.alarm.set_to != deadline {
            self.alarm.set_to = deadline;
            self.arm();
        }
    }

    /// Forgets what the alarm is set to, so that it is set anew.
    fn reset_alarm(&mut self) {
        self.alarm.set_to = Alarm::NOT_SET;
    }

    fn arm(&self) {
        if !matches!(self.alarm.set_to, Alarm::NOT_SET | Alarm::NEVER) {
            timer::arm(self.alarm.set_to.saturating_add(self.clock.zero));
        }
    }
}

/// What becomes of the alarm when time is taken back: it rings for a time of the machine, which the
/// guest's has fallen behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmAfter {
    /// It is set at the next look at the platform.
    SetLater,
    /// It is set to the same time of the guest at once.
    SetNow,
}

impl<B: Backend> Vcpu<B> {
    /// Takes what the machine did since `start`, a time-stamp of it, out of the guest's time.
    pub(super) fn take_time_back(&mut self, start: u64, alarm: AlarmAfter) {
        let ticks = cpu::tsc() - start;
        self.time.clock.zero = self.time.clock.zero.wrapping_add(ticks);
        self.backend.set_tsc_offset(self.time.tsc_offset());
        match alarm {
            AlarmAfter::SetLater => self.time.reset_alarm(),
            AlarmAfter::SetNow => self.time.arm(),
        }
    }
}
