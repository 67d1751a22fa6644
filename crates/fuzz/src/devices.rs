//! The virtual PC: a guest that pokes at everything.

use umbra_devices::{IOAPIC_GPA, LAPIC_DEFAULT_GPA, Platform, PlatformConfig, RamLayout};

use crate::input::Input;

const CONFIG: PlatformConfig = PlatformConfig {
    ram: RamLayout { below_4g: 3 << 30, above_4g: 5 << 30 },
    tsc_hz: 2_893_202_117,
    wall_clock_unix_seconds: 0,
    physical_address_bits: 40,
    tsc_deadline: true,
};

/// Steps of one input at most.
const MAX_STEPS: usize = 2000;

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

fn port(input: &mut Input<'_>) -> u16 {
    // The first port and how many follow it.
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
        (0, u16::MAX),
    ];
    let (first, count) = input.one_of(DEVICES);
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

/// Carries out a step; all that can be seen of it, as text.
fn observe(platform: &mut Platform, now: u64, step: Step) -> String {
    let seen = match step {
        Step::PortRead(port, size) => {
            let value = platform.port_read(now, port, size);
            assert!(size == 4 || u64::from(value) < 1 << (8 * size), "{step:?} reads {value:#x}");
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

/// Bytes are what a guest does to its devices, and when. Nothing panics, and a platform that is advanced at more times
/// shows the guest the same.
///
/// # Panics
/// One of that is not so.
pub fn devices(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut lazy, mut eager) = (Platform::new(&CONFIG), Platform::new(&CONFIG));
    let mut now = if input.u8() & 1 == 0 { 0 } else { u64::MAX - (1 << 36) };
    lazy.advance(now);
    eager.advance(now);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let before = now;
        now = now.saturating_add(u64::from(input.u8()) << (input.u8() % 48));
        let at = [eager.next_deadline().unwrap_or(now), before + (now - before) / 2];
        at.into_iter().filter(|at| *at <= now).for_each(|at| eager.advance(at));
        let step = step(&mut input);
        assert_eq!(observe(&mut lazy, now, step), observe(&mut eager, now, step), "{step:?} at {now}");
        for platform in [&lazy, &eager] {
            assert!(platform.next_deadline().is_none_or(|at| at > now || now == u64::MAX));
        }
    }
}
