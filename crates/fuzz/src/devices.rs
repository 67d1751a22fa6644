//! The virtual PC: a guest that pokes at everything.

use umbra_devices::{IOAPIC_GPA, LAPIC_DEFAULT_GPA};

use crate::input::Input;
use crate::twins::{PORTS, Step, Twins};

/// Steps of one input at most.
const MAX_STEPS: usize = 2000;

fn port(input: &mut Input<'_>) -> u16 {
    // As often as each of the devices: any port at all.
    let device = input.below(PORTS.len() as u64 + 1) as usize;
    let (first, count) = PORTS.get(device).copied().unwrap_or((0, u16::MAX));
    first + input.below(count.into()) as u16
}

fn gpa(input: &mut Input<'_>) -> u64 {
    input.one_of(&[LAPIC_DEFAULT_GPA, IOAPIC_GPA, 0x1234_5000]) + input.below(0x1000)
}

fn step(input: &mut Input<'_>) -> Step {
    let size = input.one_of(&[1, 2, 4]);
    let wide = input.one_of(&[1, 2, 4, 8]);
    let msr = input.one_of(&[0x1b, 0x6e0, 0x800]);
    match input.u8() % 12 {
        0 => Step::PortRead(port(input), size),
        1 => Step::PortWrite(port(input), size, input.u32()),
        2 => Step::Load(gpa(input), wide),
        3 => Step::Store(gpa(input), wide, input.u64()),
        4 => Step::Rdmsr(msr),
        5 => Step::Wrmsr(msr, input.u64()),
        6 => Step::TaskPriority(input.u8().into()),
        7 => Step::TscOffset(input.u64()),
        8 => Step::TakeInterrupt,
        9 => Step::TakeNmi,
        10 => Step::Input,
        _ => Step::Output,
    }
}

/// Bytes are what a guest does to its devices, and when. Nothing panics, and a platform that is
/// advanced at more times shows the guest the same.
///
/// # Panics
/// One of that is not so.
pub fn devices(data: &[u8]) {
    let mut input = Input::new(data);
    let mut now = if input.u8() & 1 == 0 { 0 } else { u64::MAX - (1 << 36) };
    let mut twins = Twins::new(now);
    for number in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let before = now;
        now = now.saturating_add(u64::from(input.u8()) << (input.u8() % 48));
        let at = [twins.next_deadline().unwrap_or(now), before + (now - before) / 2];
        at.into_iter().filter(|at| *at <= now).for_each(|at| twins.advance_one(at));
        twins.step(now, step(&mut input), format_args!("step {number}"));
    }
}
