//! The predictor: which instructions write tables in bursts.
//!
//! A burst of writes costs an exit each if they are emulated, and two in all if the table is detached at the first of
//! them; a lone write costs one and two. Guests have few instructions that write tables, and what one of them did the
//! last times is what it does the next time: so there is a small table, indexed by the instruction. What it says is
//! never needed for correctness, and it may be cleared at any time.
//!
//! It learns from two sources. While an instruction's writes are emulated, their number in a row on one table, with no
//! other instruction's write to a table between them, is a *run*. A long run may still be of lone writes (a guest that
//! faults pages in one after the other), so a run only ever leads to a trial. When a table that was detached is used
//! again, the number of entries that have changed tells how long the burst really was.

use umbra_paging::Gfn;

use crate::policy::{Answer, TableWrite, WritePolicy};

/// Instructions remembered: direct-mapped.
const INSTRUCTIONS: usize = 256;
/// Detached frames of which the instruction is remembered: direct-mapped.
const DETACHED: usize = 64;
/// A burst is worth a detach from this length on.
const WORTH: u32 = 3;
/// How many writes of a run are emulated before a trial.
const RUN: u32 = 2;
/// Trials that failed put the next one off: at most by 2 to this power.
const MAX_BACKOFF: u8 = 9;

/// What is known of one instruction.
#[derive(Clone, Copy, Default)]
struct Instruction {
    rip: u64,
    /// Its last bursts were long (positive) or short (negative): see [`CONFIDENT`].
    bursts: i8,
    /// Trials that failed in a row.
    backoff: u8,
    /// Occasions for a trial to let pass.
    wait: u16,
}

/// From here on the first write of a burst detaches.
const CONFIDENT: i8 = 2;
const MAX_CONFIDENCE: i8 = 3;

/// The [`WritePolicy`] that predicts bursts.
pub struct Predictor {
    instructions: [Instruction; INSTRUCTIONS],
    /// (frame + 1, instruction) of what was detached.
    detached: [(u64, u64); DETACHED],
    /// The writes in a row that were emulated: their instruction, the frame, how many.
    run: (u64, u64, u32),
}

impl Default for Predictor {
    fn default() -> Predictor {
        Predictor {
            instructions: [Instruction::default(); INSTRUCTIONS],
            detached: [(0, 0); DETACHED],
            run: (0, 0, 0),
        }
    }
}

impl Predictor {
    fn instruction(&mut self, rip: u64) -> &mut Instruction {
        let slot = (rip ^ rip >> 8 ^ rip >> 16) as usize % INSTRUCTIONS;
        let found = &mut self.instructions[slot];
        if found.rip != rip {
            *found = Instruction { rip, ..Instruction::default() };
        }
        found
    }

    /// A run has ended that stayed below what a trial needs: it was a short burst.
    fn end_of_run(&mut self) {
        let (rip, _, length) = self.run;
        if length != 0 && length < WORTH {
            let instruction = self.instruction(rip);
            instruction.bursts = (instruction.bursts - 1).max(-MAX_CONFIDENCE);
        }
    }

    fn detach(&mut self, gfn: u64, rip: u64) -> Answer {
        self.detached[gfn as usize % DETACHED] = (gfn + 1, rip);
        self.run = (0, 0, 0);
        Answer::Detach
    }
}

impl WritePolicy for Predictor {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        let (rip, gfn) = (write.rip.raw(), write.gpa.gfn().raw());
        if !write.reachable {
            // Nobody will attach it for what is written now: most likely it is no table any more.
            return Answer::Detach;
        }
        let (last_rip, last_gfn, length) = self.run;
        if (last_rip, last_gfn) != (rip, gfn) {
            self.end_of_run();
            self.run = (rip, gfn, 1);
            if self.instruction(rip).bursts >= CONFIDENT {
                return self.detach(gfn, rip);
            }
            return Answer::Emulate;
        }
        self.run.2 = length.saturating_add(1);
        if length < RUN {
            return Answer::Emulate;
        }
        let instruction = self.instruction(rip);
        if instruction.wait > 0 {
            instruction.wait -= 1;
            return Answer::Emulate;
        }
        self.detach(gfn, rip)
    }

    fn attached(&mut self, gfn: Gfn, changed: u32) {
        let (detached, rip) = core::mem::take(&mut self.detached[gfn.raw() as usize % DETACHED]);
        if detached != gfn.raw() + 1 {
            return;
        }
        let instruction = self.instruction(rip);
        if changed >= WORTH {
            instruction.bursts = (instruction.bursts + 1).min(MAX_CONFIDENCE);
            instruction.backoff = 0;
        } else {
            instruction.bursts = (instruction.bursts - 1).max(-MAX_CONFIDENCE);
            if changed < 2 {
                instruction.backoff = (instruction.backoff + 1).min(MAX_BACKOFF);
                instruction.wait = 1 << instruction.backoff;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use umbra_paging::Gva;

    use super::*;

    /// Writes `rips` in turn to entries of frame 7: how many were answered by a detach. After each of those the table
    /// is used again at once.
    fn writes(predictor: &mut Predictor, rips: &[u64], times: usize, burst: u32) -> usize {
        let mut detached = 0;
        for n in 0..times {
            for &rip in rips {
                let gpa = Gfn::new(7).entry(n % 512);
                let write = TableWrite { gpa, rip: Gva::new(rip), reachable: true };
                if predictor.answer(&write) == Answer::Detach {
                    detached += 1;
                    predictor.attached(Gfn::new(7), burst);
                }
            }
        }
        detached
    }

    #[test]
    fn an_instruction_that_writes_bursts_detaches_at_once() {
        let mut predictor = Predictor::default();
        assert_eq!(writes(&mut predictor, &[1], 3, 100), 1, "the third write of the first run is a trial");
        writes(&mut predictor, &[1], 3, 100);
        assert_eq!(writes(&mut predictor, &[1], 1, 100), 1);
    }

    #[test]
    fn lone_writes_in_a_row_are_hardly_ever_tried() {
        let mut predictor = Predictor::default();
        let tried = writes(&mut predictor, &[1], 1024, 1);
        assert!(tried <= 10, "{tried}");
        assert!(writes(&mut predictor, &[1], 1024, 1) <= 3);
    }

    #[test]
    fn writes_of_two_instructions_in_turn_are_no_burst() {
        let mut predictor = Predictor::default();
        assert_eq!(writes(&mut predictor, &[1, 2], 1000, 1), 0);
    }

    #[test]
    fn what_was_a_burst_is_given_up_when_it_no_longer_is_one() {
        let mut predictor = Predictor::default();
        writes(&mut predictor, &[1], 20, 100);
        let detached = writes(&mut predictor, &[1, 2], 100, 1);
        assert!(detached <= 2, "{detached}");
    }
}
