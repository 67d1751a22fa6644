//! The CPUs that are emulated.

use std::str::FromStr;

/// A machine by the name of its CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Intel Core 2 T9600: no EPT, no VPID, open to Meltdown.
    Penryn,
    /// Intel Skylake-X: EPT and VPID, PCID, SMEP, SMAP; EPT is not used.
    Skylake,
    /// Another CPU, by its name in Bochs (`bochs --help cpu`). It must be an Intel CPU with 64-bit mode and VMX.
    Bochs(String),
}

/// Before a name in Bochs.
const BOCHS: &str = "bochs:";

impl Machine {
    /// Its name in options and statistics.
    pub fn name(&self) -> String {
        match self {
            Machine::Penryn => "penryn".into(),
            Machine::Skylake => "skylake".into(),
            Machine::Bochs(model) => format!("{BOCHS}{model}"),
        }
    }

    /// Its name in Bochs.
    pub(super) fn bochs_model(&self) -> &str {
        match self {
            Machine::Penryn => "core2_penryn_t9600",
            Machine::Skylake => "corei7_skylake_x",
            Machine::Bochs(model) => model,
        }
    }
}

impl FromStr for Machine {
    type Err = String;

    fn from_str(name: &str) -> Result<Machine, String> {
        match (name, name.strip_prefix(BOCHS)) {
            ("penryn", _) => Ok(Machine::Penryn),
            ("skylake", _) => Ok(Machine::Skylake),
            // It goes into Bochs's configuration as it is.
            (_, Some(model))
                if !model.is_empty() && model.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) =>
            {
                Ok(Machine::Bochs(model.into()))
            }
            _ => Err(format!("give penryn, skylake, or {BOCHS}MODEL with a model of `bochs --help cpu`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for name in ["penryn", "skylake", "bochs:corei7_sandy_bridge_2600k"] {
            assert_eq!(name.parse::<Machine>().unwrap().name(), name);
        }
        for name in ["", "Penryn", "core2_penryn_t9600", "bochs:", "bochs:a,b", "bochs:a b", "bochs:\n"] {
            assert!(name.parse::<Machine>().unwrap_err().contains("skylake"), "{name}");
        }
    }
}
