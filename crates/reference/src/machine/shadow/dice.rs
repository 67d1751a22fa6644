//! A write policy by chance: any answer must be right.

use fastrand::Rng;
use umbra_mmu::policy::{Answer, TableWrite, WritePolicy};

pub(super) struct Dice {
    random: Rng,
    /// Of 256 writes to tables in use, so many are answered by a detach.
    detach: u8,
}

impl Dice {
    pub(super) fn new(seed: u64, detach: u8) -> Dice {
        Dice { random: Rng::with_seed(seed), detach }
    }
}

impl WritePolicy for Dice {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        if !write.reachable || self.random.u8(..) < self.detach {
            Answer::Detach
        } else {
            Answer::Emulate
        }
    }
}
