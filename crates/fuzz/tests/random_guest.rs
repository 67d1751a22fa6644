//! A guest that pokes at everything without plan.
//!
//! It must not bring the platform down, and the platform must not depend on how often it is called:
//! a second platform that is advanced at many more times shows the guest exactly the same.

use umbra_devices::{IOAPIC_GPA, LAPIC_DEFAULT_GPA};
use umbra_fuzz::twins::{PORTS, Step, Twins};

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
        if self.below(16) == 0 {
            return self.next() as u16;
        }
        let (first, count) = self.one_of(PORTS);
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
            1 => Step::Wrmsr(
                0x1b,
                random.one_of(&[0xfee0_0900, 0xfee0_0900, 0x1234_5900, 0xfee0_0100]),
            ),
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

fn run(seed: u64, steps: u64, start: u64) -> u64 {
    let mut random = Random(seed);
    let mut twins = Twins::new(start);
    let (mut now, mut interrupts) = (start, 0);
    for i in 0..steps {
        let before = now;
        now = now.saturating_add(random.value() >> random.one_of(&[24, 36, 48, 60]));
        for _ in 0..random.below(4) {
            let at =
                random.one_of(&[twins.next_deadline().unwrap_or(now), before + (now - before) / 2]);
            twins.advance_one(at.min(now));
        }
        let step = step(&mut random);
        let seen = twins.step(now, step, format_args!("seed {seed:#x}, step {i}"));
        interrupts += u64::from(matches!(step, Step::TakeInterrupt) && seen.starts_with("Some"));
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
