//! Two platforms that differ in how often time is advanced, and must not show it.

use std::fmt;

use umbra_devices::{Platform, PlatformConfig, RamLayout};

const CONFIG: PlatformConfig = PlatformConfig {
    ram: RamLayout { below_4g: 3 << 30, above_4g: 5 << 30 },
    tsc_hz: 2_893_202_117,
    wall_clock_unix_seconds: 0,
    physical_address_bits: 40,
    tsc_deadline: true,
};

/// Ports that devices have: the first one and how many.
pub const PORTS: &[(u16, u16)] = &[
    (0x20, 2),
    (0x40, 4),
    (0x60, 5),
    (0x70, 2),
    (0x92, 1),
    (0xa0, 2),
    (0xe9, 1),
    (0xf4, 1),
    (0x3f8, 8),
    (0x4d0, 2),
    (0x501, 1),
    (0x510, 2),
    (0x5f0, 8),
    (0x600, 16),
    (0xcf8, 8),
    (0x8900, 1),
];

/// One thing that the guest does, or that is done to it.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Port, bytes.
    PortRead(u16, u8),
    /// Port, bytes, value.
    PortWrite(u16, u8, u32),
    /// Gpa, bytes.
    Load(u64, u8),
    /// Gpa, bytes, value.
    Store(u64, u8, u64),
    /// MSR.
    Rdmsr(u32),
    /// MSR, value.
    Wrmsr(u32, u64),
    /// CR8.
    TaskPriority(u64),
    /// The guest's TSC less the platform's time.
    TscOffset(u64),
    /// The CPU takes an interrupt, if there is one.
    TakeInterrupt,
    /// The CPU takes an NMI, if there is one.
    TakeNmi,
    /// Something is typed.
    Input,
    /// What the guest printed is taken.
    Output,
}

/// A platform whose time is advanced only when something is done, and one that may be advanced in
/// between.
#[derive(Debug)]
pub struct Twins {
    lazy: Platform,
    eager: Platform,
}

impl Twins {
    /// Two platforms at this time.
    pub fn new(now: u64) -> Twins {
        let (mut lazy, mut eager) = (Platform::new(&CONFIG), Platform::new(&CONFIG));
        lazy.advance(now);
        eager.advance(now);
        Twins { lazy, eager }
    }

    /// When the second one wants to be advanced.
    pub fn next_deadline(&self) -> Option<u64> {
        self.eager.next_deadline()
    }

    /// Advances only the second one.
    pub fn advance_one(&mut self, now: u64) {
        self.eager.advance(now);
    }

    /// Carries out a step on both; all that can be seen of it, as text. `place` is named if that
    /// fails.
    ///
    /// # Panics
    /// The two show different things, or something that they must never show.
    pub fn step(&mut self, now: u64, step: Step, place: impl fmt::Display) -> String {
        let seen = observe(&mut self.lazy, now, step);
        assert_eq!(seen, observe(&mut self.eager, now, step), "{place}: {step:?} at {now}");
        for platform in [&self.lazy, &self.eager] {
            assert!(platform.next_deadline().is_none_or(|at| at > now || now == u64::MAX));
        }
        seen
    }
}

/// Carries out a step; all that can be seen of it, as text.
fn observe(platform: &mut Platform, now: u64, step: Step) -> String {
    let seen = match step {
        Step::PortRead(port, size) => {
            let value = platform.port_read(now, port, size);
            assert!(size == 4 || u64::from(value) < 1 << (8 * size), "{step:?} reads {value:#x}");
            format!("{value:#x}")
        }
        Step::PortWrite(port, size, value) => {
            format!("{:?}", platform.port_write(now, port, size, value))
        }
        Step::Load(gpa, size) => format!("{:#x}", platform.mmio_read(now, gpa, size)),
        Step::Store(gpa, size, value) => {
            format!("{:?}", platform.mmio_write(now, gpa, size, value))
        }
        Step::Rdmsr(msr) => format!("{:?}", platform.msr_read(now, msr)),
        Step::Wrmsr(msr, value) => format!("{:?}", platform.msr_write(now, msr, value)),
        Step::TaskPriority(value) => format!("{:?}", platform.set_cr8(value)),
        Step::TscOffset(offset) => format!("{:?}", platform.set_tsc_offset(now, offset)),
        Step::TakeInterrupt => {
            platform.advance(now);
            let pending = platform.pending_interrupt();
            let vector = platform.acknowledge();
            assert_eq!(pending, vector.is_some());
            format!("{vector:?}")
        }
        Step::TakeNmi => {
            let pending = platform.nmi_pending();
            assert_eq!(pending, platform.take_nmi());
            format!("{pending}")
        }
        Step::Input => {
            let room = platform.console_input_room();
            let taken = platform.console_input(b"cat /proc/vmstat\n");
            assert_eq!(taken, room.min(17));
            format!("{taken}")
        }
        Step::Output => {
            let due = platform.output_due();
            format!("{due} {:?} {:?}", platform.take_console_output(), platform.take_debug_output())
        }
    };
    platform.advance(now);
    format!("{seen} {} {}", platform.pending_interrupt(), platform.cr8())
}
