//! How writes to guest tables are answered.

use umbra_mmu::Predictor;
use umbra_mmu::policy::{Answer, EmulateReachable, TableWrite, UnsyncFlush, WritePolicy};
use umbra_paging::Gfn;

/// The MMU's predictor of bursts, or, with that switched off, emulation of every write to a table
/// in use.
pub enum Writes {
    /// The predictor.
    Predict(alloc::boxed::Box<Predictor>),
    /// Emulation.
    Emulate(EmulateReachable),
}

impl WritePolicy for Writes {
    fn needs_site(&self, write: &TableWrite) -> bool {
        match self {
            Writes::Predict(policy) => policy.needs_site(write),
            Writes::Emulate(policy) => policy.needs_site(write),
        }
    }

    fn answer(&mut self, write: &TableWrite) -> Answer {
        match self {
            Writes::Predict(policy) => policy.answer(write),
            Writes::Emulate(policy) => policy.answer(write),
        }
    }

    fn attached(&mut self, gfn: Gfn, changed: u32) {
        if let Writes::Predict(policy) = self {
            policy.attached(gfn, changed);
        }
    }

    fn flushed(&mut self, flush: UnsyncFlush) -> bool {
        match self {
            Writes::Predict(policy) => policy.flushed(flush),
            Writes::Emulate(policy) => policy.flushed(flush),
        }
    }
}
