//! Causes of exits in few groups, which a picture can tell apart.

use umbra_telemetry::ExitCause;

use crate::report::{Exits, Kvm, Phase, Statistics};

/// Some causes that belong together.
#[derive(Debug)]
pub struct Group {
    /// In legends and tables.
    pub name: &'static str,
    /// The causes that it has, in words.
    pub about: &'static str,
    belongs: fn(ExitCause) -> bool,
    /// Which of KVM's own counters are that; none if KVM has no counter for it.
    pub kvm: &'static [&'static str],
}

/// Every cause is in exactly one; the last one also takes what the hypervisor did not tell apart.
pub const GROUPS: &[Group] = &[
    Group {
        name: "fault handed back",
        about: "a page fault of the guest's own, injected (guest_fault_...)",
        belongs: |cause| cause.name().starts_with("guest_fault_"),
        kvm: &["pf_guest"],
    },
    Group {
        name: "shadow entry made",
        about: "the shadow tables lacked something (host_fault_link, _install, _dirty, _accessed)",
        belongs: |cause| {
            use ExitCause::{HostFaultAccessed, HostFaultDirty, HostFaultInstall, HostFaultLink};
            matches!(cause, HostFaultLink | HostFaultInstall | HostFaultDirty | HostFaultAccessed)
        },
        kvm: &["pf_fixed"],
    },
    Group {
        name: "page-table write",
        about: "a write to a guest page table that is shadowed (host_fault_table_write)",
        belongs: |cause| cause == ExitCause::HostFaultTableWrite,
        kvm: &["pf_emulate"],
    },
    Group {
        name: "INVLPG",
        about: "INVLPG or INVPCID (invlpg)",
        belongs: |cause| cause == ExitCause::Invlpg,
        kvm: &["invlpg"],
    },
    Group {
        name: "control register",
        about: "an access to CR0, CR3 or CR4 (cr0, cr3_read, cr3_write, cr4)",
        belongs: |cause| {
            use ExitCause::{Cr0, Cr3Read, Cr3Write, Cr4};
            matches!(cause, Cr0 | Cr3Read | Cr3Write | Cr4)
        },
        kvm: &[],
    },
    Group {
        name: "device",
        about: "a port or emulated device memory (io, host_fault_mmio)",
        belongs: |cause| matches!(cause, ExitCause::Io | ExitCause::HostFaultMmio),
        kvm: &["io_exits", "mmio_exits"],
    },
    Group {
        name: "interrupt, HLT",
        about: "a physical interrupt, an NMI or its window, or HLT (interrupt, hlt)",
        belongs: |cause| matches!(cause, ExitCause::Interrupt | ExitCause::Hlt),
        kvm: &["irq_exits", "irq_window_exits", "nmi_window_exits", "halt_exits"],
    },
    Group {
        name: "other, not told apart",
        about: "CPUID, model-specific registers, and what the hypervisor does not tell apart (cpuid, msr, other)",
        belongs: |cause| matches!(cause, ExitCause::Cpuid | ExitCause::Msr | ExitCause::Other),
        kvm: &[],
    },
];

/// The place of a cause's group in [`GROUPS`].
pub fn group_of(cause: ExitCause) -> usize {
    GROUPS.iter().position(|group| (group.belongs)(cause)).unwrap_or(GROUPS.len() - 1)
}

/// A number for each of [`GROUPS`].
pub type ByGroup = [u64; GROUPS.len()];

impl Statistics {
    /// The exits of the whole run by group, if they were counted.
    pub(super) fn groups(&self) -> Option<ByGroup> {
        Some(groups(self.exits.as_ref()?, self.kvm.as_ref()))
    }
}

impl Phase {
    /// Its exits by group, if they were counted.
    pub(super) fn groups(&self) -> Option<ByGroup> {
        Some(groups(self.exits.as_ref()?, self.kvm.as_ref()))
    }

    /// The exits of a group, if the hypervisor tells them.
    pub(super) fn group(&self, index: usize) -> Option<u64> {
        let groups = self.groups()?;
        let is_told = match &self.kvm {
            Some(_) => !GROUPS[index].kvm.is_empty(),
            None => self.exits.as_ref()?.iter().any(|(cause, _)| group_of(cause) == index),
        };
        // The last one has all that is not told.
        (is_told || index == GROUPS.len() - 1).then_some(groups[index])
    }
}

/// What is missing from the sum to the total is in the last group: the hypervisor did not tell it
/// apart. KVM's counters are no partition, so they may also be more.
fn groups(exits: &Exits, kvm: Option<&Kvm>) -> ByGroup {
    let total = exits.total();
    let mut groups: ByGroup = std::array::from_fn(|_| 0);
    for (cause, count) in exits.iter() {
        groups[group_of(cause)] += count;
    }
    if let Some(kvm) = kvm {
        for (group, count) in
            GROUPS.iter().zip(&mut groups).filter(|(group, _)| !group.kvm.is_empty())
        {
            // None of them can be more than all.
            *count = kvm.sum(group.kvm).min(total);
        }
    }
    let known = groups.iter().fold(0_u64, |sum, &count| sum.saturating_add(count));
    groups[GROUPS.len() - 1] += total.saturating_sub(known);
    groups
}

#[cfg(test)]
pub(super) mod tests {
    use umbra_telemetry::{ExitCounts, PhaseStats};

    use super::*;
    use crate::report::Named;
    use crate::report::tests::statistics;

    fn counts(exits: &[(ExitCause, u64)]) -> ExitCounts {
        exits.iter().copied().collect()
    }

    fn phase(id: u32, ops: u64, tsc: u64, exits: &[(ExitCause, u64)]) -> Phase {
        let stats = PhaseStats { id, ops, exits: counts(exits), tsc, ..Default::default() };
        Phase::new(&stats, Some(Exits::from(&stats.exits)), None, true, true)
    }

    /// A result of Umbra.
    pub(in crate::html) fn umbra() -> Named {
        use ExitCause::{Cpuid, HostFaultInstall, Io};
        let statistics = Statistics {
            kernel: "6.1 <x>".into(),
            cmdline: "console=ttyS0 \"a&b\"".into(),
            exits: Some(Exits::from(&counts(&[(Cpuid, 700), (Io, 300), (HostFaultInstall, 101)]))),
            phases: vec![
                phase(0, 0, 4000, &[(Cpuid, 700), (Io, 300)]),
                phase(2, 100, 900, &[(HostFaultInstall, 101)]),
            ],
            ..statistics()
        };
        Named { name: "a.json".into(), statistics }
    }

    /// A result of KVM, which cannot tell all causes apart.
    pub(in crate::html) fn kvm() -> Named {
        let counters = [("pf_guest", 20), ("pf_fixed", 5), ("exits", 100), ("io_exits", 30)];
        let kvm = Kvm(counters.iter().map(|&(name, count)| (name.into(), count)).collect());
        let statistics = Statistics {
            hypervisor: "kvm".into(),
            exits: Some(kvm.exits()),
            kvm: Some(kvm),
            mmu: None,
            phases: vec![Phase { exits: None, mmu: None, ..phase(2, 100, 0, &[]) }],
            ..statistics()
        };
        Named { name: "b.json".into(), statistics }
    }

    #[test]
    fn groups_add_up_to_the_total() {
        let groups = umbra().statistics.groups().unwrap();
        assert_eq!(groups.iter().sum::<u64>(), 1101);
        assert_eq!(groups[group_of(ExitCause::HostFaultInstall)], 101);
        let kvm = kvm().statistics;
        let groups = kvm.groups().unwrap();
        assert_eq!(groups[group_of(ExitCause::GuestFaultNotPresentUser)], 20);
        assert_eq!(groups[group_of(ExitCause::Cr3Write)], 0);
        assert_eq!((groups[GROUPS.len() - 1], groups.iter().sum::<u64>()), (45, 100));
        assert_eq!(kvm.phase("demand").unwrap().groups(), None);
        let phase = Phase { exits: kvm.exits.clone(), kvm: kvm.kvm.clone(), ..phase(2, 1, 0, &[]) };
        assert_eq!(phase.group(group_of(ExitCause::Cr3Write)), None);
        assert_eq!(phase.group(group_of(ExitCause::HostFaultTableWrite)), Some(0));
        assert_eq!(phase.group(GROUPS.len() - 1), Some(45));
    }

    #[test]
    fn absurd_counters_are_no_overflow() {
        let mut absurd = kvm().statistics;
        for name in ["pf_guest", "pf_fixed", "pf_emulate", "irq_exits", "halt_exits"] {
            absurd.kvm.as_mut().unwrap().0.insert(name.into(), u64::MAX);
        }
        let groups = absurd.groups().unwrap();
        assert!(groups.iter().all(|&count| count <= 100) && groups[0] == 100);
    }

    #[test]
    fn every_cause_is_in_one_group() {
        for &cause in ExitCause::ALL {
            let groups = GROUPS.iter().filter(|group| (group.belongs)(cause)).count();
            assert_eq!(groups, 1, "{cause:?}");
        }
    }
}
