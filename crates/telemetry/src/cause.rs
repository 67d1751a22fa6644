//! Exit causes: a partition of all exits.

use serde::{Deserialize, Serialize};

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why the guest left to the hypervisor. Every exit counts under exactly one cause; where
        /// several would fit, the one that stands first here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum ExitCause { $($(#[$doc])* $variant,)* }

        impl ExitCause {
            /// All causes, in the order of precedence.
            pub const ALL: &[ExitCause] = &[$(ExitCause::$variant,)*];

            /// The key of this cause in tables and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(ExitCause::$variant => $name,)* }
            }

            /// The cause with this key.
            pub fn from_name(name: &str) -> Option<ExitCause> {
                match name { $($name => Some(ExitCause::$variant),)* _ => None }
            }
        }
    };
}

causes! {
    /// A not-present #PF of user mode, injected back.
    GuestFaultNotPresentUser = "guest_fault_not_present_user",
    /// A not-present #PF of kernel mode, injected back.
    GuestFaultNotPresentKernel = "guest_fault_not_present_kernel",
    /// A protection #PF of user mode, injected back.
    GuestFaultProtectionUser = "guest_fault_protection_user",
    /// A protection #PF of kernel mode, injected back.
    GuestFaultProtectionKernel = "guest_fault_protection_kernel",
    /// A reserved-bit #PF, injected back.
    GuestFaultReserved = "guest_fault_reserved",
    /// An access to emulated device memory (or to no memory at all).
    HostFaultMmio = "host_fault_mmio",
    /// A write to a tracked guest page table.
    HostFaultTableWrite = "host_fault_table_write",
    /// A missing or detached shadow table was built or linked.
    HostFaultLink = "host_fault_link",
    /// A shadow leaf entry was installed.
    HostFaultInstall = "host_fault_install",
    /// A guest dirty bit was set.
    HostFaultDirty = "host_fault_dirty",
    /// A guest accessed bit was set.
    HostFaultAccessed = "host_fault_accessed",
    /// INVLPG or INVPCID.
    Invlpg = "invlpg",
    /// A write to CR0, CLTS or LMSW.
    Cr0 = "cr0",
    /// MOV from CR3.
    Cr3Read = "cr3_read",
    /// MOV to CR3.
    Cr3Write = "cr3_write",
    /// A write to CR4.
    Cr4 = "cr4",
    /// CPUID.
    Cpuid = "cpuid",
    /// RDMSR or WRMSR.
    Msr = "msr",
    /// IN, OUT, INS or OUTS.
    Io = "io",
    /// A physical interrupt, an NMI, or an interrupt or NMI window.
    Interrupt = "interrupt",
    /// HLT.
    Hlt = "hlt",
    /// Anything else.
    Other = "other",
}

/// How many exits each [`ExitCause`] had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounts([u64; ExitCause::ALL.len()]);

impl ExitCounts {
    /// Counts one exit.
    pub fn count(&mut self, cause: ExitCause) {
        self.0[cause as usize] += 1;
    }

    /// The exits of one cause.
    pub fn get(&self, cause: ExitCause) -> u64 {
        self.0[cause as usize]
    }

    /// The exits of all causes.
    pub fn total(&self) -> u64 {
        // Counts that came over the wire may be anything.
        self.0.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// Each cause with its count, in the order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = (ExitCause, u64)> + '_ {
        ExitCause::ALL.iter().map(|&cause| (cause, self.get(cause)))
    }

    /// What was counted since `earlier`, a copy of these counts taken before.
    pub fn since(&self, earlier: &ExitCounts) -> ExitCounts {
        ExitCounts(core::array::from_fn(|i| self.0[i] - earlier.0[i]))
    }

    /// Adds the counts of another stretch of time.
    pub fn add(&mut self, other: &ExitCounts) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}

impl FromIterator<(ExitCause, u64)> for ExitCounts {
    /// Counts that were taken elsewhere; causes that are not named had no exits.
    fn from_iter<I: IntoIterator<Item = (ExitCause, u64)>>(counts: I) -> ExitCounts {
        let mut all = ExitCounts::default();
        counts.into_iter().for_each(|(cause, count)| all.0[cause as usize] = count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for &cause in ExitCause::ALL {
            assert_eq!(ExitCause::from_name(cause.name()), Some(cause));
        }
        assert_eq!(ExitCause::from_name("total"), None);
        let counts: ExitCounts = [(ExitCause::Io, 7)].into_iter().collect();
        assert_eq!((counts.get(ExitCause::Io), counts.total()), (7, 7));
        let absurd: ExitCounts = ExitCause::ALL.iter().map(|&cause| (cause, u64::MAX)).collect();
        assert_eq!(absurd.total(), u64::MAX);
    }

    #[test]
    fn counts_are_a_partition() {
        let mut counts = ExitCounts::default();
        for (times, &cause) in ExitCause::ALL.iter().enumerate() {
            (0..times).for_each(|_| counts.count(cause));
        }
        let earlier = counts.clone();
        counts.count(ExitCause::Hlt);
        assert_eq!(counts.total(), counts.iter().map(|(_, n)| n).sum());
        assert_eq!(counts.since(&earlier).total(), 1);
        assert_eq!(counts.since(&earlier).get(ExitCause::Hlt), 1);
    }
}
