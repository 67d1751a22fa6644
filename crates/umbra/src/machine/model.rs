//! The CPUs that are emulated.

/// A machine by the name of its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Machine {
    /// Intel Core 2 T9600: no EPT, no VPID, open to Meltdown
    Penryn,
    /// Intel Skylake-X: EPT and VPID, PCID, SMEP, SMAP; EPT is not used
    Skylake,
}

impl Machine {
    /// Its name in options and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Machine::Penryn => "penryn",
            Machine::Skylake => "skylake",
        }
    }

    /// Its name in Bochs (`bochs --help cpu`).
    pub(super) fn bochs_model(self) -> &'static str {
        match self {
            Machine::Penryn => "core2_penryn_t9600",
            Machine::Skylake => "corei7_skylake_x",
        }
    }
}
