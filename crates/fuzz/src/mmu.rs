//! The shadow MMU's whole interface: random programs on the differential machine.

use umbra_mmu::MIN_FRAMES_PER_VCPU;
use umbra_paging::Gfn;
use umbra_reference::program::{HostEvent, Op, Program};
use umbra_reference::universe::{END, HOT};
use umbra_reference::{Config, run_program};

use crate::input::Input;

/// Longer programs are slow and find no more.
const MAX_STEPS: usize = 512;

/// Bytes are a configuration, then a program ([`Program::from_bytes`]). Words at the top of their range are what the host
/// does to stretches of guest memory, and to the roots that the guest loads by itself. Every outcome is judged, and the
/// auditor looks after every step.
///
/// # Panics
/// A divergence, or a violation.
pub fn mmu(data: &[u8]) {
    let mut input = Input::new(data);
    let word = input.u64();
    let bytes = &input.rest()[..input.rest().len().min((MAX_STEPS + 2) * 8)];
    let mut program = Program::from_bytes(bytes);
    for (op, word) in program.ops.iter_mut().zip(bytes[bytes.len().min(16)..].chunks_exact(8)) {
        if let Some(event) = event(word) {
            *op = Op::Host(event);
        }
    }
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
        }
    }
    if let Err(divergence) = run_program(&program, &config) {
        panic!("{divergence}\n{config:?}\n{program}");
    }
}

/// What the host does to a stretch of frames or to a root, if the word says so.
fn event(word: &[u8]) -> Option<HostEvent> {
    let &[frame, before, length, what, .., 0xf8..=0xff] = word else { return None };
    let hot = HOT[usize::from(frame) % HOT.len()];
    let first = hot.saturating_sub(u64::from(before) % 512);
    // Also beyond the end of memory.
    let frames = Gfn::new(first)..Gfn::new(first + (1 << (length % 12)).min(END));
    Some(match what % 8 {
        0 | 1 => HostEvent::RemapRange(frames.start, frames.end),
        2 | 3 => HostEvent::WriteProtectRange(frames.start, frames.end),
        4 | 5 => HostEvent::SwapOutRange(frames.start, frames.end),
        6 => HostEvent::Offer,
        _ => HostEvent::Withdraw(Gfn::new(hot)),
    })
}
