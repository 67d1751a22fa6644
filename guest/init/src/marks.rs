//! Phase marks: how the guest tells where one kind of work begins and ends.
//!
//! A 32-bit write of `(id << 1) | 1` to port 0x5f0 starts phase `id`; the number of operations to
//! port 0x5f4 and then `id << 1` to port 0x5f0 ends it. 0xb007 to port 0x5f0 ends phase 0, `boot`,
//! which starts at guest entry. Without a hypervisor the phases go to the [journal](crate::bare)
//! instead.

use crate::bare;
use crate::phase_id::PhaseId;
use crate::sys::ports::{Port, Ports};

/// The value that ends phase 0.
const BOOT_MARK: u32 = 0xb007;

/// The right to set marks.
#[derive(Clone, Copy)]
pub struct Marks(Ports);

impl Marks {
    pub fn new(ports: Ports) -> Marks {
        Marks(ports)
    }

    /// Ends phase 0, `boot`.
    pub fn end_boot(self) {
        self.0.write(Port::PHASE, BOOT_MARK);
    }

    /// Starts a phase.
    pub fn start(self, phase: PhaseId) {
        match bare::journal() {
            Some(journal) => journal.start(phase),
            None => self.0.write(Port::PHASE, (phase.number() << 1) | 1),
        }
    }

    /// Ends a phase in which `ops` operations were done.
    pub fn end(self, phase: PhaseId, ops: u32) {
        if let Some(journal) = bare::journal() {
            return journal.end(phase, ops);
        }
        self.0.write(Port::OPS, ops);
        self.0.write(Port::PHASE, phase.number() << 1);
    }
}
