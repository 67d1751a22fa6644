//! What KVM counts, and what can be said of its exits from that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use umbra_telemetry::ExitCause;

use super::Exits;

/// KVM's counters by its own names (Linux, arch/x86/kvm/x86.c, `kvm_vcpu_stats_desc` and
/// `kvm_vm_stats_desc`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Kvm(pub BTreeMap<String, u64>);

/// Exits that KVM counts and that have nothing to do with memory.
const NOT_MEMORY: &[&str] =
    &["io_exits", "mmio_exits", "irq_exits", "irq_window_exits", "nmi_window_exits", "halt_exits"];

impl Kvm {
    /// A counter; one that this KVM does not have counted nothing.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// The sum of counters.
    pub fn sum(&self, names: &[&str]) -> u64 {
        names.iter().fold(0, |sum: u64, name| sum.saturating_add(self.get(name)))
    }

    /// The exits by cause, as far as a counter is exactly one cause.
    pub fn exits(&self) -> Exits {
        let interrupts = ["irq_exits", "irq_window_exits", "nmi_window_exits"];
        let known = [
            (ExitCause::Invlpg, self.get("invlpg")),
            (ExitCause::Io, self.get("io_exits")),
            (ExitCause::Interrupt, self.sum(&interrupts)),
            (ExitCause::Hlt, self.get("halt_exits")),
        ];
        Exits::partial(self.get("exits"), &known)
    }

    /// All exits but those that are counted as something else. CPUID and accesses to model-specific
    /// registers are not counted, so they are in it.
    pub fn memory_exits(&self) -> Option<u64> {
        self.0.get("exits")?.checked_sub(self.sum(NOT_MEMORY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_remains() {
        let kvm = |counters: &[(&str, u64)]| {
            Kvm(counters.iter().map(|&(name, count)| (String::from(name), count)).collect())
        };
        let counted = kvm(&[("exits", 100), ("irq_exits", 7), ("io_exits", 3), ("invlpg", 5)]);
        assert_eq!(counted.memory_exits(), Some(90));
        assert_eq!(counted.exits().get(ExitCause::Interrupt), Some(7));
        assert_eq!(counted.exits().get(ExitCause::Invlpg), Some(5));
        assert_eq!(counted.exits().get(ExitCause::Cr3Write), None);
        assert_eq!(kvm(&[]).memory_exits(), None);
    }
}
