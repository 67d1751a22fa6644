//! The page faults of the guest in a row: whether it gets further, and how soon they come.

use umbra_paging::Gva;

/// The guest has run for a short time if it was fewer ticks than these: a kernel that walks a table
/// spends some hundred instructions on an entry, and some thousand on a page fault.
const SOON: u64 = 1500;

/// The last page faults that exited.
#[derive(Default)]
pub struct FaultHistory {
    /// The last one, unless an instruction retired since.
    last: Option<(u64, Gva, u32)>,
    repeats: u32,
    /// The guest's CR2 at the last one.
    cr2: u64,
    /// How long the guest ran before the last exit, in ticks of the machine's time-stamp counter.
    ran: u64,
}

impl FaultHistory {
    /// The guest has run for so many ticks.
    pub fn exited_after(&mut self, ticks: u64) {
        self.ran = ticks;
    }

    /// Another fault; returns how often exactly it has come before without a break.
    pub fn fault(&mut self, rip: u64, gva: Gva, error_code: u32) -> u32 {
        let this = Some((rip, gva, error_code));
        self.repeats = if self.last == this { self.repeats + 1 } else { 0 };
        self.last = this;
        self.repeats
    }

    /// Whether it came soon after the last exit, with no page fault of the guest's own since the
    /// last fault that exited: `cr2` is the guest's.
    pub fn is_back_to_back(&mut self, cr2: u64) -> bool {
        let same_fault = core::mem::replace(&mut self.cr2, cr2) == cr2;
        same_fault && self.ran < SOON
    }

    /// An instruction retired, an iteration of one, or an event is delivered.
    pub fn progress_made(&mut self) {
        self.last = None;
    }
}
