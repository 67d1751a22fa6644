//! The 8254 timer and the port through which the guest reaches its channel 2.
//!
//! Intel 8254 data sheet, "Mode Definitions". A channel is not counted down: its count, its output
//! and its next rising edge follow from when it was loaded. The one tick between the write of a
//! count and its load is left out.

use crate::clock::Clock;

/// 14.31818 MHz / 12.
const PIT_HZ: u64 = 1_193_182;

/// The access format: which bytes of a count a read or write moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

/// One of the counters. Times are in ticks of the PIT.
struct Channel {
    /// 0 to 5.
    mode: u8,
    bcd: bool,
    access: Access,
    /// The low byte of a two-byte access is through.
    write_low: Option<u8>,
    read_high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// The initial count, 1 to 65536.
    initial: u64,
    /// A new initial count for modes 2 and 3: it counts from the end of the present period.
    next_initial: Option<u64>,
    gate: bool,
    run: Run,
}

/// What a channel is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// Waiting for a count, or in modes 1 and 5 for a trigger.
    Idle,
    /// Counting since this time.
    Since(u64),
    /// The gate is low; so many ticks were counted before.
    Stopped(u64),
}

impl Channel {
    fn new() -> Channel {
        Channel {
            mode: 3,
            bcd: false,
            access: Access::LowThenHigh,
            write_low: None,
            read_high_next: false,
            latched_count: None,
            latched_status: None,
            initial: 0x1_0000,
            next_initial: None,
            gate: true,
            run: Run::Idle,
        }
    }

    /// The control word: everything starts anew and waits for a count.
    fn set_mode(&mut self, control: u8) {
        self.access = match control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        };
        // Modes 6 and 7 are 2 and 3.
        self.mode = match control >> 1 & 7 {
            mode @ 6..=7 => mode - 4,
            mode => mode,
        };
        self.bcd = control & 1 != 0;
        self.write_low = None;
        self.read_high_next = false;
        self.latched_count = None;
        self.latched_status = None;
        self.next_initial = None;
        self.run = Run::Idle;
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Whether counting waits for a rising edge of the gate.
    fn triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    fn write_count(&mut self, tick: u64, byte: u8) {
        let count = match (self.access, self.write_low.take()) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::LowThenHigh, Some(low)) => u16::from_le_bytes([low, byte]),
            (Access::LowThenHigh, None) => {
                self.write_low = Some(byte);
                // In mode 0 the first byte stops the count.
                if self.mode == 0 {
                    self.run = Run::Idle;
                }
                return;
            }
        };
        let initial = match (self.bcd, count) {
            (false, 0) => 0x1_0000,
            (false, count) => u64::from(count),
            (true, count) => match from_bcd(count) {
                0 => 10_000,
                count => count,
            },
        };
        self.settle(tick);
        if self.periodic() && self.run != Run::Idle {
            self.next_initial = Some(initial);
            return;
        }
        self.initial = initial;
        if !self.triggered() {
            self.run = if self.gate { Run::Since(tick) } else { Run::Stopped(0) };
        }
    }

    fn set_gate(&mut self, tick: u64, gate: bool) {
        self.settle(tick);
        let rose = gate && !self.gate;
        let fell = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            1 | 5 if rose => self.run = Run::Since(tick),
            1 | 5 => {}
            // In modes 2 and 3 a rising gate starts a new period.
            2 | 3 => match self.run {
                Run::Stopped(_) if rose => {
                    self.initial = self.next_initial.take().unwrap_or(self.initial);
                    self.run = Run::Since(tick);
                }
                Run::Since(start) if fell => self.run = Run::Stopped(tick - start),
                _ => {}
            },
            _ => match self.run {
                Run::Stopped(counted) if rose => {
                    self.run = Run::Since(tick.saturating_sub(counted))
                }
                Run::Since(start) if fell => self.run = Run::Stopped(tick - start),
                _ => {}
            },
        }
    }

    /// Ticks counted since the count was loaded.
    fn counted(&self, tick: u64) -> Option<u64> {
        match self.run {
            Run::Idle => None,
            Run::Since(start) => Some(tick.saturating_sub(start)),
            Run::Stopped(counted) => Some(counted),
        }
    }

    /// Makes a new initial count the present one, once the period is over.
    fn settle(&mut self, tick: u64) {
        let (Some(next), Run::Since(start)) = (self.next_initial, self.run) else { return };
        if tick.saturating_sub(start) >= self.initial {
            self.run = Run::Since(start + self.initial);
            self.initial = next;
            self.next_initial = None;
        }
    }

    /// The counting element.
    fn count(&self, tick: u64) -> u16 {
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let n = self.initial;
        let count = match (self.counted(tick), self.mode) {
            (None, _) => n,
            (Some(counted), 2) => n - counted % n,
            // Mode 3 counts down by two, twice in a period, from the next even number below an odd
            // count.
            (Some(counted), 3) => {
                let half = n.div_ceil(2);
                let in_half = match counted % n {
                    first if first < half => first,
                    second => second - half,
                };
                (n & !1).saturating_sub(2 * in_half)
            }
            // The others go on below zero.
            (Some(counted), _) => (n + modulus - counted % modulus) % modulus,
        };
        let count = (count % modulus) as u16;
        if self.bcd { to_bcd(count) } else { count }
    }

    fn output(&self, tick: u64) -> bool {
        let n = self.initial;
        match (self.mode, self.counted(tick)) {
            (0, None) => false,
            (_, None) => true,
            (0 | 1, Some(counted)) => counted >= n,
            // A low gate forces the output of modes 2 and 3 high.
            (2 | 3, _) if !self.gate => true,
            (2, Some(counted)) => counted % n != n - 1,
            (3, Some(counted)) => counted % n < n.div_ceil(2),
            (_, Some(counted)) => counted != n,
        }
    }

    /// The first tick after `after` at which the output rises.
    fn next_rise(&self, after: u64) -> Option<u64> {
        let Run::Since(start) = self.run else { return None };
        let (n, counted) = (self.initial, after.saturating_sub(start));
        match self.mode {
            2 | 3 => Some(start.saturating_add((counted / n + 1).saturating_mul(n))),
            // The strobe of modes 4 and 5 is one tick long.
            mode => {
                let rise = start.saturating_add(if mode >= 4 { n + 1 } else { n });
                (rise > after).then_some(rise)
            }
        }
    }

    fn status(&self, tick: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::LowThenHigh => 3,
        };
        let null_count = self.run == Run::Idle || self.next_initial.is_some();
        u8::from(self.output(tick)) << 7
            | u8::from(null_count) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn latch_count(&mut self, tick: u64) {
        // A latched count stays until it is read.
        let count = self.count(tick);
        self.latched_count.get_or_insert(count);
    }

    fn latch_status(&mut self, tick: u64) {
        let status = self.status(tick);
        self.latched_status.get_or_insert(status);
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(tick)).to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::LowThenHigh if self.read_high_next => (high, true),
            Access::LowThenHigh => (low, false),
        };
        self.read_high_next = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }
}

/// The value of four decimal digits, modulo 10000 if some are none.
fn from_bcd(count: u16) -> u64 {
    (0..4).rev().fold(0, |value, digit| value * 10 + u64::from(count >> (4 * digit) & 0xf)) % 10_000
}

fn to_bcd(count: u16) -> u16 {
    (0..4).fold(0, |bcd, digit| bcd | (count / 10u16.pow(digit) % 10) << (4 * digit))
}

const TIMER: usize = 0;
const SPEAKER: usize = 2;

const SPEAKER_GATE: u8 = 1 << 0;
const SPEAKER_WRITABLE: u8 = 0x0f;
const SPEAKER_REFRESH: u8 = 1 << 4;
const SPEAKER_OUTPUT: u8 = 1 << 5;
/// Memory refresh, which toggles bit 4 of port 0x61, takes place each 15 µs.
const REFRESH_TICKS: u64 = 18;

/// The timer.
pub(crate) struct Pit {
    clock: Clock,
    channels: [Channel; 3],
    /// Port 0x61, as written.
    speaker: u8,
    /// The next rising edge of channel 0, in TSC ticks.
    next_edge: Option<u64>,
}

impl Pit {
    /// As firmware leaves it: channel 0 at 18.2 Hz in mode 2, channel 2 stopped.
    pub(crate) fn new(clock: Clock) -> Pit {
        let mut pit = Pit {
            clock,
            channels: core::array::from_fn(|_| Channel::new()),
            speaker: 0,
            next_edge: None,
        };
        pit.channels[SPEAKER].gate = false;
        pit.write(0, 3, 0x34);
        pit.write(0, 0, 0);
        pit.write(0, 0, 0);
        pit
    }

    fn tick(&self, now: u64) -> u64 {
        self.clock.device_ticks(now, PIT_HZ)
    }

    /// A read of port 0x40 + `port`.
    pub(crate) fn read(&mut self, now: u64, port: u16) -> u8 {
        let tick = self.tick(now);
        match self.channels.get_mut(usize::from(port)) {
            Some(channel) => {
                channel.settle(tick);
                channel.read(tick)
            }
            // The control word cannot be read.
            None => u8::MAX,
        }
    }

    /// A write to port 0x40 + `port`.
    pub(crate) fn write(&mut self, now: u64, port: u16, value: u8) {
        let tick = self.tick(now);
        if let Some(channel) = self.channels.get_mut(usize::from(port)) {
            channel.write_count(tick, value);
        } else {
            self.control(tick, value);
        }
        self.find_next_edge(now);
    }

    fn control(&mut self, tick: u64, value: u8) {
        let select = value >> 6;
        if let Some(channel) = self.channels.get_mut(usize::from(select)) {
            channel.settle(tick);
            if value & 0x30 == 0 {
                channel.latch_count(tick);
            } else {
                channel.set_mode(value);
            }
            return;
        }
        // The read-back command: bits 5 and 4 low latch count and status of the channels in bits 1
        // to 3.
        for (i, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << i != 0 {
                channel.settle(tick);
                if value & 0x20 == 0 {
                    channel.latch_count(tick);
                }
                if value & 0x10 == 0 {
                    channel.latch_status(tick);
                }
            }
        }
    }

    /// A read of port 0x61.
    pub(crate) fn read_speaker_port(&mut self, now: u64) -> u8 {
        let tick = self.tick(now);
        let channel = &mut self.channels[SPEAKER];
        channel.settle(tick);
        let output = if channel.output(tick) { SPEAKER_OUTPUT } else { 0 };
        let refresh = if (tick / REFRESH_TICKS) & 1 != 0 { SPEAKER_REFRESH } else { 0 };
        self.speaker | output | refresh
    }

    /// A write to port 0x61.
    pub(crate) fn write_speaker_port(&mut self, now: u64, value: u8) {
        let tick = self.tick(now);
        self.speaker = value & SPEAKER_WRITABLE;
        self.channels[SPEAKER].set_gate(tick, value & SPEAKER_GATE != 0);
    }

    /// The level of channel 0's output.
    pub(crate) fn timer_output(&self, now: u64) -> bool {
        self.channels[TIMER].output(self.tick(now))
    }

    /// Whether channel 0's output has risen since the last call, however often.
    pub(crate) fn take_interrupt_edge(&mut self, now: u64) -> bool {
        if self.next_edge.is_none_or(|at| now < at) {
            return false;
        }
        let tick = self.tick(now);
        self.channels[TIMER].settle(tick);
        self.find_next_edge(now);
        true
    }

    /// When channel 0's output rises next, in TSC ticks, and whether it does so again and again.
    pub(crate) fn next_interrupt(&self) -> Option<(u64, bool)> {
        self.next_edge.map(|at| (at, self.channels[TIMER].periodic()))
    }

    fn find_next_edge(&mut self, now: u64) {
        let timer = &self.channels[TIMER];
        self.next_edge =
            timer.next_rise(self.tick(now)).map(|tick| self.clock.tsc_at(tick, PIT_HZ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PIT whose ticks are those of `now`.
    fn pit() -> Pit {
        Pit::new(Clock::new(PIT_HZ))
    }

    fn load(pit: &mut Pit, now: u64, channel: u16, control: u8, count: u16) {
        pit.write(now, 3, (channel as u8) << 6 | 0x30 | control);
        let [low, high] = count.to_le_bytes();
        pit.write(now, channel, low);
        pit.write(now, channel, high);
    }

    fn count(pit: &mut Pit, now: u64, channel: u16) -> u16 {
        pit.write(now, 3, (channel as u8) << 6);
        u16::from_le_bytes([pit.read(now, channel), pit.read(now, channel)])
    }

    /// The ticks of (`from`, `to`] at which channel 0's output rises, seen as levels.
    fn rises(pit: &mut Pit, from: u64, to: u64) -> Vec<u64> {
        let channel = &mut pit.channels[TIMER];
        let mut rises = Vec::new();
        for tick in from + 1..=to {
            let before = channel.output(tick - 1);
            channel.settle(tick);
            if channel.output(tick) && !before {
                rises.push(tick);
            }
        }
        rises
    }

    use alloc::vec::Vec;

    #[test]
    fn edges_are_where_the_output_rises() {
        for mode in [0, 2, 3, 4] {
            for n in [2, 3, 4, 5, 100, 101] {
                let mut pit = pit();
                load(&mut pit, 1000, 0, mode << 1, n);
                let levels = rises(&mut pit, 1000, 1400);
                let mut edges = Vec::new();
                for now in 1001..=1400 {
                    if pit.take_interrupt_edge(now) {
                        edges.push(now);
                    }
                }
                assert_eq!(edges, levels, "mode {mode}, count {n}");
                let expected = match mode {
                    0 => usize::from(true),
                    4 => 1,
                    _ => 400 / usize::from(n),
                };
                assert_eq!(edges.len(), expected, "mode {mode}, count {n}");
            }
        }
    }

    #[test]
    fn lost_periods_count_once() {
        let mut pit = pit();
        load(&mut pit, 0, 0, 2 << 1, 2);
        assert!(pit.take_interrupt_edge(1_000_001));
        assert!(!pit.take_interrupt_edge(1_000_001));
        assert_eq!(pit.next_interrupt(), Some((1_000_002, true)));
    }

    #[test]
    fn counts_go_down() {
        let mut pit = pit();
        load(&mut pit, 0, 0, 2 << 1, 1000);
        assert_eq!(
            [0, 1, 999, 1000, 1001].map(|now| count(&mut pit, now, 0)),
            [1000, 999, 1, 1000, 999]
        );
        load(&mut pit, 0, 0, 3 << 1, 1000);
        assert_eq!(
            [0, 1, 499, 500, 999, 1000].map(|now| count(&mut pit, now, 0)),
            [1000, 998, 2, 1000, 2, 1000]
        );
        load(&mut pit, 0, 0, 0, 1000);
        assert_eq!([0, 999, 1000, 1001].map(|now| count(&mut pit, now, 0)), [1000, 1, 0, 0xffff]);
        load(&mut pit, 0, 0, 4 << 1, 0);
        assert_eq!([0, 1, 0xffff, 0x1_0000].map(|now| count(&mut pit, now, 0)), [0, 0xffff, 1, 0]);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut pit = pit();
        load(&mut pit, 0, 0, 1, 0x1234);
        assert_eq!(
            [0, 1, 35, 1235].map(|now| count(&mut pit, now, 0)),
            [0x1234, 0x1233, 0x1199, 0x9999]
        );
        load(&mut pit, 0, 0, 1, 0);
        assert_eq!(count(&mut pit, 1, 0), 0x9999);
        load(&mut pit, 0, 0, 2 << 1 | 1, 0xffff);
        assert!(count(&mut pit, 77, 0) <= 0x9999);
    }

    #[test]
    fn a_latched_count_stands_still_until_read() {
        let mut pit = pit();
        load(&mut pit, 0, 0, 2 << 1, 0x8000);
        pit.write(0x10, 3, 0x00);
        pit.write(0x20, 3, 0x00);
        assert_eq!([pit.read(0x30, 0), pit.read(0x40, 0)], [0xf0, 0x7f]);
        assert_eq!([pit.read(0x50, 0), pit.read(0x50, 0)], [0xb0, 0x7f]);
    }

    #[test]
    fn read_back_latches_status_before_count() {
        let mut pit = pit();
        pit.write(0, 3, 0x34);
        pit.write(0, 3, 0xe2);
        assert_eq!(pit.read(0, 0), 0xf4, "null count, output high");
        load(&mut pit, 0, 0, 0, 0x0102);
        pit.write(2, 3, 0xc2);
        assert_eq!([0; 3].map(|_| pit.read(9, 0)), [0x30, 0x00, 0x01]);
        pit.write(0x102, 3, 0xe2);
        assert_eq!(pit.read(0x102, 0), 0xb0);
    }

    #[test]
    fn a_new_period_starts_when_the_old_one_ends() {
        let mut pit = pit();
        load(&mut pit, 0, 0, 2 << 1, 100);
        pit.write(50, 0, 40);
        pit.write(50, 0, 0);
        assert_eq!(count(&mut pit, 60, 0), 40);
        let edges: Vec<u64> = (51..200).filter(|&now| pit.take_interrupt_edge(now)).collect();
        assert_eq!(edges, [100, 140, 180]);
    }

    /// Linux's `pit_calibrate_tsc`: channel 2 in mode 0, its output in bit 5 of port 0x61.
    #[test]
    fn channel_2_is_gated_by_port_61() {
        let mut pit = pit();
        pit.write_speaker_port(0, 0);
        load(&mut pit, 0, 2, 0, 100);
        assert_eq!(count(&mut pit, 50, 2), 100);
        pit.write_speaker_port(50, SPEAKER_GATE);
        assert_eq!(count(&mut pit, 90, 2), 60);
        pit.write_speaker_port(90, 0);
        assert_eq!(count(&mut pit, 1000, 2), 60);
        pit.write_speaker_port(1000, SPEAKER_GATE);
        assert_eq!(pit.read_speaker_port(1059) & (SPEAKER_OUTPUT | SPEAKER_GATE), SPEAKER_GATE);
        assert_eq!(pit.read_speaker_port(1060) & SPEAKER_OUTPUT, SPEAKER_OUTPUT);
    }

    #[test]
    fn modes_1_and_5_start_with_the_gate() {
        for (mode, low) in [(1, 0..=99), (5, 100..=100)] {
            let mut pit = pit();
            load(&mut pit, 0, 2, mode << 1, 100);
            assert_ne!(pit.read_speaker_port(500) & SPEAKER_OUTPUT, 0);
            pit.write_speaker_port(1000, SPEAKER_GATE);
            for counted in 0..300 {
                let output = pit.read_speaker_port(1000 + counted) & SPEAKER_OUTPUT != 0;
                assert_eq!(output, !low.contains(&counted), "mode {mode} after {counted}");
            }
        }
    }
}
