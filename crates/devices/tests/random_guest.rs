//! A guest that pokes at everything without plan.
//!
//! It must not bring the platform down, and the platform must not depend on how often it is called: a second
//! platform that is advanced at many more times shows the guest exactly the same.

use umbra_devices::{IOAPIC_GPA, LAPIC_DEFAULT_GPA, Platform, PlatformConfig, RamLayout};

const CONFIG: PlatformConfig = PlatformConfig {
    ram: RamLayout { below_4g: 3 << 30, above_4g: 5 << 30 },
    tsc_hz: 2_893_202_117,
    wall_clock_unix_seconds: 0,
    physical_address_bits: 40,
    tsc_deadline: true,
};

/// xorshift64*: the same sequence everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn port(&mut self) -> u16 {
        const DEVICES: &[(u16, u16)] = &[
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
        if self.below(16) == 0 {
            return self.next() as u16;
        }
        let (first, count) = self.one_of(DEVICES);
        first + self.below(count.into()) as u16
    }

    fn gpa(&mut self) -> u64 {
        let page = self.one_of(&[LAPIC_DEFAULT_GPA, LAPIC_DEFAULT_GPA, IOAPIC_GPA, 0x1234_5000]);
        let offset = match self.below(4) {
            0 => self.below(0x1000),
            _ if page == IOAPIC_GPA => self.below(2) * 0x10,
            _ => self.below(0x40) * 0x10,
        };
        page + offset
    }

    /// Values of all magnitudes.
    fn value(&mut self) -> u64 {
        let shift = self.below(64);
        self.next() >> shift
    }
}

/// One thing that the guest does, or that is done to it.
#[derive(Clone, Copy, Debug)]
enum Step {
    PortRead(u16, u8),
    PortWrite(u16, u8, u32),
    Load(u64, u8),
    Store(u64, u8, u64),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    TaskPriority(u64),
    TscOffset(u64),
    TakeInterrupt,
    TakeNmi,
    Input,
    Output,
}

/// What a guest does that wants interrupts, or there would hardly be any.
fn sensible(random: &mut Random) -> Step {
    let vector = 0x20 + random.below(0xe0);
    let lapic = |register, value| Step::Store(LAPIC_DEFAULT_GPA + register, 4, value);
    match random.below(12) {
        0..3 => lapic(0x0b0, 0),
        3 => lapic(0x0f0, 0x1ff),
        4 => lapic(0x320, random.below(4) << 17 | vector),
        5 => lapic(0x380, random.value()),
        6 => lapic(0x300, 0x4_0000 | vector),
        7 => lapic(0x350, 0x700),
        8 => Step::PortWrite(random.one_of(&[0x20, 0xa0]), 1, 0x20),
        9 => Step::PortWrite(random.one_of(&[0x21, 0xa1]), 1, 0),
        10 => Step::Store(IOAPIC_GPA + 0x10, 4, random.below(2) << 15 | vector),
        _ => random.one_of(&[Step::TaskPriority(0), Step::Wrmsr(0x1b, 0xfee0_0900)]),
    }
}

fn step(random: &mut Random) -> Step {
    let size = random.one_of(&[1, 1, 1, 2, 4]);
    let msr = random.one_of(&[0x1b, 0x6e0, 0x6e0, 0x800]);
    match random.below(36) {
        0..6 => Step::PortRead(random.port(), size),
        6..12 => Step::PortWrite(random.port(), size, random.value() as u32),
        12..14 => Step::Load(random.gpa(), random.one_of(&[1, 2, 4, 4, 8])),
        14..18 => Step::Store(random.gpa(), random.one_of(&[1, 4, 4, 4, 8]), random.value()),
        18 => match random.below(8) {
            0 => Step::Rdmsr(msr),
            1 => Step::Wrmsr(0x1b, random.one_of(&[0xfee0_0900, 0xfee0_0900, 0x1234_5900, 0xfee0_0100])),
            2 => Step::Wrmsr(msr, random.value()),
            3 => Step::TscOffset(random.value()),
            _ => Step::TaskPriority(random.below(18)),
        },
        19..22 => Step::TakeInterrupt,
        22 => random.one_of(&[Step::TakeNmi, Step::Input]),
        23 => Step::Output,
        _ => sensible(random),
    }
}

/// Carries out a step and writes down all that can be seen of it.
fn observe(platform: &mut Platform, now: u64, step: Step) -> String {
    let seen = match step {
        Step::PortRead(port, size) => {
            let value = platform.port_read(now, port, size);
            assert!(size == 4 || u64::from(value) < 1 << (8 * size), "{step:?} read {value:#x}");
            format!("{value:#x}")
        }
        Step::PortWrite(port, size, value) => format!("{:?}", platform.port_write(now, port, size, value)),
        Step::Load(gpa, size) => format!("{:#x}", platform.mmio_read(now, gpa, size)),
        Step::Store(gpa, size, value) => format!("{:?}", platform.mmio_write(now, gpa, size, value)),
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

fn run(seed: u64, steps: u64, start: u64) -> u64 {
    let mut random = Random(seed);
    let (mut lazy, mut eager) = (Platform::new(&CONFIG), Platform::new(&CONFIG));
    let (mut now, mut interrupts) = (start, 0);
    lazy.advance(now);
    eager.advance(now);
    for i in 0..steps {
        let before = now;
        now = now.saturating_add(random.value() >> random.one_of(&[24, 36, 48, 60]));
        for _ in 0..random.below(4) {
            let at = random.one_of(&[eager.next_deadline().unwrap_or(now), before + (now - before) / 2]);
            eager.advance(at.min(now));
        }
        let step = step(&mut random);
        let seen = observe(&mut lazy, now, step);
        assert_eq!(seen, observe(&mut eager, now, step), "seed {seed:#x}, step {i}: {step:?} at {now}");
        interrupts += u64::from(matches!(step, Step::TakeInterrupt) && seen.starts_with("Some"));
        for platform in [&lazy, &eager] {
            assert!(platform.next_deadline().is_none_or(|at| at > now || now == u64::MAX));
        }
    }
    interrupts
}

#[test]
fn a_random_guest_sees_the_same_however_often_time_is_advanced() {
    let interrupts: u64 =
        (1..=200).map(|seed| run(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), 10_000, 0)).sum();
    // Else the guests have never got anything going.
    assert!(interrupts > 10_000, "{interrupts} interrupts only");
}

#[test]
fn the_end_of_time_is_survived() {
    for seed in 1..=20 {
        run(seed, 10_000, u64::MAX - (1 << 36));
        run(seed, 1_000, u64::MAX);
    }
}
