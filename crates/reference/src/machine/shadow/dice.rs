//! A write policy by chance: any answer must be right.

use fastrand::Rng;
use umbra_mmu::policy::{Answer, TableWrite, UnsyncFlush, WritePolicy};

pub(super) struct Dice {
    random: Rng,
    /// Of 256 writes to tables in use, so many are answered by a detach.
    detach: u8,
    /// Of 256 others, so many are answered by unsync.
    unsync: u8,
}

impl Dice {
    pub(super) fn new(seed: u64, detach: u8, unsync: u8) -> Dice {
        Dice { random: Rng::with_seed(seed), detach, unsync }
    }
}

impl WritePolicy for Dice {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        if !write.reachable || self.random.u8(..) < self.detach {
            Answer::Detach
        } else if self.unsync > 0 && self.random.u8(..) < self.unsync {
            Answer::Unsync
        } else {
            Answer::Emulate
        }
    }

    fn flushed(&mut self, _: UnsyncFlush) -> bool {
        self.random.u8(..8) != 0
    }
}
