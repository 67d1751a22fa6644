//! Rules that the tests can break on purpose, to see that the reference machine or the auditor
//! catches it.
//!
//! Which sentence of the design has which switch (`cargo xtask sabotage` breaks them all):
//!
//! | the design says | switches |
//! |---|---|
//! | I1: Absent only if the guest's entry is not present; every write is seen | `FollowPresent`, `FollowInEveryShadow`, `FollowEveryEntry` |
//! | I1: tables behind Absent entries are tracked | `ProtectTables`, `FlushAfterProtect`, `SplitAroundTables` |
//! | I1: tables that cannot be tracked have Pending children only | `NoAbsentInLoose`, `RefreshLoose`, `TightenAtFlush`, `TightenAtFault`, `TrapWhileLoose` |
//! | I2: no memory that is not this guest's | `RevokeSmall`, `RevokeLarge`, `FlushAfterRevoke`, `KeepReadOnlyBacking` |
//! | I2: not wider than the guest's rights | `KeepUser`, `KeepWrite`, `KeepNx`, `RefuseReserved`, `OverrideIsSafe` |
//! | I2: at the role that it was built for | `RoleHasNxe`, `RoleHasWp`, `RoleHasLevel`, `RoleHasKind`, `RoleHasRightsAbove`, `FlushAfterRoleChange` |
//! | I2: A at every level, D in the leaf | `AccessedInLeaf`, `AccessedAbove`, `DirtyBeforeWrite` |
//! | I3: error codes come from our own walk | `CodeFromWalk` |
//! | I4: what the filter `user` covers is never narrower | `NoNarrowEntries` |
//! | I4: turning it on is followed by a full flush | `FlushBeforeUserFilter` |
//! | I5: no reuse, no lost protection before the flush | `Limbo`, `FlushBeforeUnprotect`, `UnlinkParents`, `SpareRoots` |
//! | I5, section 6: INVLPG without exit, and pages of two sizes | `FlushAfterSplitChange`, `FlushAfterLarge` |
//! | I6: progress | `ReclaimOldest`, `SparePath`, `DetachOnce` |
//! | section 6: detach: all parents Pending, flush, drop the protection | `UnlinkDetached`, `FlushBeforeDetach` |
//! | section 6: the first access attaches again | `AttachBeforeLink`, `RefillAttached`, `CopiesFollowStores` |
//! | section 6: only listed roots are loaded, one role per address, delisted before unprotecting | `WithdrawAtRoleChange`, `WithdrawBeforeDetach`, `WithdrawWhileLoose`, `OfferFollowed` |
//! | section 6: an identity root lies at its guest frame's place, which gives way | `UnmapBeforeExchange`, `FlushBeforeExchange`, `HomeBeforeRevoke` |
//! | order: Pending, write, install; protect, flush, read, link | `PendingBeforeWrite`, `ReadAfterProtect`, `ReadAfterAttach` |
//! | 4: PDPTEs are never Pending | `PdptesMapped` |
//! | 4: MMIO entries have a generation | `MmioGeneration` |
//! | 4: L1TF | `HideMmio` |
//!
//! Without a switch: the reserved bits of Pending entries and MAXPHYADDR = 52 (tested for all
//! widths in `format/entry.rs`); and what the embedder does: real control bits, the door for its
//! own writes, which values of CR3 it lists under which PCID (tested where it is done: `targets.rs`
//! of the reference machine and of the hypervisor).
//!
//! Without the feature `sabotage` every rule is kept, and the compiler sees that.

#[cfg(all(feature = "sabotage", not(debug_assertions)))]
compile_error!("the feature `sabotage` breaks the MMU on purpose: it cannot be in a release build");

macro_rules! rules {
    ($($(#[doc = $doc:literal])* $rule:ident,)*) => {
        /// A rule of the MMU, by what happens if it is broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Rule { $($(#[doc = $doc])* $rule,)* }

        #[cfg(feature = "sabotage")]
        impl Rule {
            /// All rules.
            pub const ALL: &[Rule] = &[$(Rule::$rule,)*];

            /// What the rule says.
            pub const fn says(self) -> &'static str {
                match self { $(Rule::$rule => concat!($($doc),*).trim_ascii(),)* }
            }
        }
    };
}

rules! {
    /// I1: a frame is write-protected when it becomes tracked.
    ProtectTables,
    /// I1, I5: taking the right to write away is followed by a flush.
    FlushAfterProtect,
    /// I1: a write that makes an entry present is followed.
    FollowPresent,
    /// I1: a write is followed in every shadow of the frame.
    FollowInEveryShadow,
    /// I1: a write is followed in every entry that its bytes touch.
    FollowEveryEntry,
    /// I1: large pages do not map tracked frames.
    SplitAroundTables,
    /// I1: a table whose writes are not seen has no Absent entries.
    NoAbsentInLoose,
    /// I2: shadows of loose frames are refreshed before a new reference leads to them.
    RefreshLoose,
    /// I1: loose frames are tracked again at the guest's flush.
    TightenAtFlush,
    /// I2: a leaf is Mapped only if its A is set.
    AccessedInLeaf,
    /// I2: a table is linked only if A is set in what references it.
    AccessedAbove,
    /// I2: a leaf is writable only if its D is set.
    DirtyBeforeWrite,
    /// I2: U of an entry is kept.
    KeepUser,
    /// I2: W of an entry is kept.
    KeepWrite,
    /// I2: NX of an entry is kept.
    KeepNx,
    /// I2, I3: entries with reserved bits are not mapped.
    RefuseReserved,
    /// I2: the role has EFER.NXE.
    RoleHasNxe,
    /// I2: the role has CR0.WP.
    RoleHasWp,
    /// I2: the role has the level.
    RoleHasLevel,
    /// I2, I5: a change of the control bits is followed by a flush.
    FlushAfterRoleChange,
    /// I2: a page that is read-only to the embedder is read-only in the shadow.
    KeepReadOnlyBacking,
    /// I5: a zapped page's frame waits for a flush before it is used again.
    Limbo,
    /// I5: a frame's protection is dropped only after what is cached of its shadows is flushed.
    FlushBeforeUnprotect,
    /// I5: parents of a zapped page are unlinked.
    UnlinkParents,
    /// I5: a change of a large entry that is mapped by smaller pages is followed by a full flush.
    FlushAfterSplitChange,
    /// I5: revocation is followed by a flush.
    FlushAfterRevoke,
    /// I5: revocation finds large pages.
    RevokeLarge,
    /// I5: revocation finds small pages.
    RevokeSmall,
    /// I5: MMIO entries of an older gpa->hpa map do not count.
    MmioGeneration,
    /// I6: the page linked longest ago is reclaimed first.
    ReclaimOldest,
    /// I5, I6: the pages on the way to the one that is built are not reclaimed for it.
    SparePath,
    /// I5: a root in use is not reclaimed.
    SpareRoots,
    /// I5: a large page that is installed is followed by a flush.
    FlushAfterLarge,
    /// I2: a shadow of a guest table is not confused with an identity page.
    RoleHasKind,
    /// I2: while CR0.WP is clear, the role has the rights of the levels above.
    RoleHasRightsAbove,
    /// I2: while CR0.WP is clear, a supervisor's write is emulated where SMEP or SMAP would be
    /// lost.
    OverrideIsSafe,
    /// I3: error codes come from the walk of the guest's tables.
    CodeFromWalk,
    /// I1: while a table is loose all faults exit.
    TrapWhileLoose,
    /// I1: loose frames are tracked again at a fault of the guest.
    TightenAtFault,
    /// The PDPTEs of a root in use stay Mapped.
    PdptesMapped,
    /// L1TF: no entry that is not Mapped names memory.
    HideMmio,
    /// I1: nothing leads to a table that is detached.
    UnlinkDetached,
    /// I1: a detached table is attached before anything leads to it.
    AttachBeforeLink,
    /// I1: a table that is attached is brought up to date.
    RefillAttached,
    /// I1, I5: what is cached of a table is flushed before it loses its protection by a detach.
    FlushBeforeDetach,
    /// Order: a table that is attached is protected before it is read.
    ReadAfterAttach,
    /// I1, I2: a copy of a guest's table says nothing of a shadow entry that was stored since.
    CopiesFollowStores,
    /// I6: what an instruction has detached is not detached for it again.
    DetachOnce,
    /// I2: roots that a vCPU may load are withdrawn when its control bits change.
    WithdrawAtRoleChange,
    /// I1, I5: a root that a vCPU may load is withdrawn before its frame is detached or zapped.
    WithdrawBeforeDetach,
    /// I1: roots that a vCPU may load are withdrawn when a table becomes loose: every flush must
    /// exit then.
    WithdrawWhileLoose,
    /// I1: a root may be loaded without an exit only while it is tracked and no table is loose.
    OfferFollowed,
    /// I5: a root in use is moved home before what is behind its frame changes.
    HomeBeforeRevoke,
    /// I5: nothing maps a guest frame any more when it changes places with a shadow page.
    UnmapBeforeExchange,
    /// I5: what is cached is flushed before a guest frame changes places with a shadow page.
    FlushBeforeExchange,
    /// I4: while user protection faults go around the hypervisor no entry of user mode is narrower
    /// than the guest's.
    NoNarrowEntries,
    /// I4: the filter that lets them through is turned on with a flush.
    FlushBeforeUserFilter,
    /// Order: a guest's table is read after it is protected and flushed.
    ReadAfterProtect,
    /// Order: entries are Pending while what they follow is written.
    PendingBeforeWrite,
}

/// Which rule is broken on purpose, if one is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rules {
    #[cfg(feature = "sabotage")]
    broken: Option<Rule>,
}

impl Rules {
    /// This one is.
    #[cfg(feature = "sabotage")]
    pub(crate) const fn broken(rule: Rule) -> Rules {
        Rules { broken: Some(rule) }
    }

    /// Whether `rule` is kept.
    pub(crate) const fn keeps(&self, rule: Rule) -> bool {
        #[cfg(feature = "sabotage")]
        return !matches!(self.broken, Some(broken) if broken as u32 == rule as u32);
        #[cfg(not(feature = "sabotage"))]
        {
            let _ = rule;
            true
        }
    }

    /// Whether any rule is broken: then the short ways, which know of no rules, are not taken.
    pub(crate) const fn is_sabotaged(&self) -> bool {
        #[cfg(feature = "sabotage")]
        return self.broken.is_some();
        #[cfg(not(feature = "sabotage"))]
        false
    }
}
