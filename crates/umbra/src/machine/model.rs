//! The machines: CPUs that are emulated, and this host's own.

use std::str::FromStr;

/// A machine by the name of its CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Intel Core 2 T9600: no EPT, no VPID, open to Meltdown.
    Penryn,
    /// Intel Skylake-X: EPT and VPID, PCID, SMEP, SMAP; EPT is not used.
    Skylake,
    /// AMD Ryzen in Bochs, with SVM; nested paging is not used.
    Ryzen,
    /// AMD EPYC in QEMU's own emulation of a CPU, with SVM: fast, and less exact.
    QemuSvm,
    /// Another CPU, by its name in Bochs (`bochs --help cpu`). It must have 64-bit mode, and VMX or
    /// SVM.
    Bochs(String),
    /// This host's own CPU, in QEMU with KVM and nested VMX. Experimental.
    Kvm,
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
            Machine::Ryzen => "ryzen".into(),
            Machine::QemuSvm => "qemu-svm".into(),
            Machine::Kvm => "kvm".into(),
        }
    }

    /// Its CPU's name in Bochs, if that is what emulates it.
    pub fn bochs_model(&self) -> Option<&str> {
        match self {
            Machine::Penryn => Some("core2_penryn_t9600"),
            Machine::Skylake => Some("corei7_skylake_x"),
            Machine::Bochs(model) => Some(model),
            Machine::Ryzen => Some("ryzen"),
            Machine::QemuSvm | Machine::Kvm => None,
        }
    }

    /// Whether an emulator runs its CPU, and not this host's.
    pub fn is_emulated(&self) -> bool {
        *self != Machine::Kvm
    }

    /// Whether its time-stamp counter counts instructions: Bochs's does with `clock: sync=none`,
    /// and QEMU's with `-icount shift=0`.
    pub fn ticks_are_instructions(&self) -> bool {
        self.is_emulated()
    }
}

impl FromStr for Machine {
    type Err = String;

    fn from_str(name: &str) -> Result<Machine, String> {
        match (name, name.strip_prefix(BOCHS)) {
            ("penryn", _) => Ok(Machine::Penryn),
            ("skylake", _) => Ok(Machine::Skylake),
            ("ryzen", _) => Ok(Machine::Ryzen),
            ("qemu-svm", _) => Ok(Machine::QemuSvm),
            ("kvm", _) => Ok(Machine::Kvm),
            // It goes into Bochs's configuration as it is.
            (_, Some(model))
                if !model.is_empty()
                    && model.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) =>
            {
                Ok(Machine::Bochs(model.into()))
            }
            _ => Err(format!(
                "give penryn, skylake, ryzen, qemu-svm, kvm, or {BOCHS}MODEL with a model of `bochs --help cpu`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for name in
            ["penryn", "skylake", "ryzen", "qemu-svm", "kvm", "bochs:corei7_sandy_bridge_2600k"]
        {
            assert_eq!(name.parse::<Machine>().unwrap().name(), name);
        }
        for name in
            ["", "Penryn", "core2_penryn_t9600", "bochs:", "bochs:a,b", "bochs:a b", "bochs:\n"]
        {
            assert!(name.parse::<Machine>().unwrap_err().contains("skylake"), "{name}");
        }
    }
}
