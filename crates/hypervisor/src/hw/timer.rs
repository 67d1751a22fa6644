//! Time: the TSC's frequency, and the local APIC's timer as alarm clock.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::apic::{self, Register};
use super::vectors::TIMER;
use super::{cpu, port};

static FIRED: AtomicBool = AtomicBool::new(false);

/// APIC timer ticks per TSC tick, in units of 2^-32.
static RATIO: AtomicU64 = AtomicU64::new(0);

/// APIC: divide the timer's clock by 1 (SDM, "Divide Configuration Register").
const DIVIDE_BY_1: u32 = 0b1011;

/// The 8254's clock.
const PIT_HZ: u64 = 1_193_182;
/// How long to measure, in 8254 ticks: 10 ms.
const MEASURE: u16 = (PIT_HZ / 100) as u16;

/// How often.
const SAMPLES: usize = 3;
/// Ticks of the TSC to wait for the end of a sample: a second of the fastest machines, a few of
/// slow ones.
const PATIENCE: u64 = 1 << 32;

const PIT_CHANNEL_2: u16 = 0x42;
const PIT_CONTROL: u16 = 0x43;
/// Channel 2, both bytes, mode 0: the output rises when the count ends.
const PIT_ONE_SHOT: u8 = 0xb0;
const SYSTEM_CONTROL: u16 = 0x61;
const GATE_2: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
const OUTPUT_2: u8 = 1 << 5;

/// Measures TSC and APIC timer against the 8254; the APIC must be on. Returns TSC ticks per second.
///
/// # Errors
/// A sentence, if the clocks stand still.
pub fn calibrate() -> Result<u64, &'static str> {
    apic::write(Register::Divide, DIVIDE_BY_1);
    apic::write(Register::LvtTimer, u32::from(TIMER));
    // System management may take time out of a sample, and never puts any in: the shortest is the
    // best.
    let samples = (0..SAMPLES).map_while(|_| sample());
    let (tsc, apic) = samples.min().filter(|(tsc, apic)| *tsc > 0 && *apic > 0).ok_or(
        "the machine's clocks (8254, TSC, local APIC timer) do not run; choose another machine model",
    )?;
    RATIO.store((u64::from(apic) << 32) / tsc, Ordering::Relaxed);
    let measure = u64::from(MEASURE);
    Ok((tsc * PIT_HZ + measure / 2) / measure)
}

/// The ticks of TSC and APIC timer in [`MEASURE`], if the 8254 counts at all.
fn sample() -> Option<(u64, u32)> {
    let control = port::read_u8(SYSTEM_CONTROL) & !(SPEAKER | GATE_2);
    port::write_u8(SYSTEM_CONTROL, control | GATE_2);
    port::write_u8(PIT_CONTROL, PIT_ONE_SHOT);
    port::write_u8(PIT_CHANNEL_2, MEASURE as u8);
    port::write_u8(PIT_CHANNEL_2, (MEASURE >> 8) as u8);
    apic::write(Register::InitialCount, u32::MAX);
    let start = cpu::tsc();
    let mut ended = false;
    // Some machines gate the 8254 off.
    while !ended && cpu::tsc() - start < PATIENCE {
        ended = port::read_u8(SYSTEM_CONTROL) & OUTPUT_2 != 0;
    }
    let tsc = cpu::tsc() - start;
    let apic = u32::MAX - apic::read(Register::CurrentCount);
    port::write_u8(SYSTEM_CONTROL, control);
    disarm();
    ended.then_some((tsc, apic))
}

/// Rings at a time of the TSC, or shortly afterwards; a time past rings at once. A time beyond the
/// timer's 32 bits rings too early: look at the TSC, and arm again.
pub fn arm(deadline_tsc: u64) {
    let delta = deadline_tsc.saturating_sub(cpu::tsc());
    let count = (u128::from(delta) * u128::from(RATIO.load(Ordering::Relaxed))) >> 32;
    apic::write(Register::InitialCount, u32::try_from(count).unwrap_or(u32::MAX).max(1));
}

/// Takes the alarm back. It may have rung already.
pub fn disarm() {
    apic::write(Register::InitialCount, 0);
}

/// Whether [`take_fired`] would say that the alarm has rung.
pub fn has_fired() -> bool {
    FIRED.load(Ordering::Relaxed)
}

/// Whether the alarm has rung since the last call.
pub fn take_fired() -> bool {
    FIRED.swap(false, Ordering::Relaxed)
}

/// The timer's interrupt handler.
pub(super) fn interrupt() {
    FIRED.store(true, Ordering::Relaxed);
    apic::write(Register::EndOfInterrupt, 0);
}
