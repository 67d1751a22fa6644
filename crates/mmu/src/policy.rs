//! How writes to tracked guest tables are answered.

use umbra_paging::{Gpa, Gva};

/// A write to a tracked frame.
#[derive(Clone, Copy, Debug)]
pub struct TableWrite {
    /// Where it goes.
    pub gpa: Gpa,
    /// The guest instruction that writes.
    pub rip: Gva,
    /// Whether a shadow of the frame can be reached by the hardware: a parent links to it, or it is a root in
    /// use. Guests free page tables by clearing what references them, and then use the frame for data.
    pub reachable: bool,
}

/// The answer to a [`TableWrite`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The hypervisor emulates the instruction; the shadows follow.
    Emulate,
    /// The frame's shadows are zapped and the guest writes freely. Only for frames that are not reachable;
    /// for others it counts as [`Answer::Emulate`].
    Zap,
}

/// Decides how writes to tracked frames are answered. Any answer is correct; they differ in exits.
pub trait WritePolicy {
    /// Decides about one write.
    fn answer(&mut self, write: &TableWrite) -> Answer;
}

/// The simplest policy: emulate writes to tables in use, zap the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmulateReachable;

impl WritePolicy for EmulateReachable {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        if write.reachable { Answer::Emulate } else { Answer::Zap }
    }
}
