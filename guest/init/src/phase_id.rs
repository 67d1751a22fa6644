//! The numbers of the phases.

use umbra_telemetry::PHASE_NAMES;

/// A phase as the marks name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseId(u32);

impl PhaseId {
    /// The phase of that name, if there is one.
    pub fn of(name: &str) -> Option<PhaseId> {
        let index = PHASE_NAMES.iter().position(|&known| known == name)?;
        u32::try_from(index).ok().map(PhaseId)
    }

    /// Its place in [`PHASE_NAMES`].
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// What marks and results call it.
    pub fn number(self) -> u32 {
        self.0
    }
}
