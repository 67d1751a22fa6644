//! Causes of exits in few groups, which a picture can tell apart.

use umbra_telemetry::ExitCause;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_in_one_group() {
        for &cause in ExitCause::ALL {
            let groups = GROUPS.iter().filter(|group| (group.belongs)(cause)).count();
            assert_eq!(groups, 1, "{cause:?}");
        }
    }
}
