//! The shadow MMU's whole interface: random programs on the differential machine.

use umbra_mmu::MIN_FRAMES_PER_VCPU;
use umbra_reference::program::Program;
use umbra_reference::{Config, run_program};

use crate::input::Input;

/// Longer programs are slow and find no more.
const MAX_STEPS: usize = 512;

/// Bytes are a configuration, then a program ([`Program::from_bytes`]). Every outcome is judged,
/// and the auditor looks after every step.
///
/// # Panics
/// A divergence, or a violation.
pub fn mmu(data: &[u8]) {
    let mut input = Input::new(data);
    let word = input.u64();
    let program = Program::from_bytes(&input.rest()[..input.rest().len().min((MAX_STEPS + 2) * 8)]);
    let mut config = Config::from_word(word, true);
    // A configuration has other uses for the bits below.
    let pick = word >> 32;
    config.full_audit = if pick & 3 == 0 { 1 } else { 16 };
    if let Some(shadow) = &mut config.shadow {
        if pick & 4 != 0 {
            // The least pool there is: reclaim in the middle of everything.
            shadow.frames = MIN_FRAMES_PER_VCPU * config.cpus as u32;
        }
        if pick & 8 != 0 {
            shadow.targets = (pick >> 4 & 7) as usize;
            shadow.detach = (pick >> 8) as u8;
            shadow.release = (pick >> 16) as u8 / 2;
            shadow.unsync = (pick >> 24) as u8;
        }
    }
    if let Err(divergence) = run_program(&program, &config) {
        panic!("{divergence}\n{config:?}\n{program}");
    }
}
