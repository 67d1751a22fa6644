//! Accesses and the page faults that they raise.

use bitflags::bitflags;

use crate::Gva;

bitflags! {
    /// A page-fault error code (SDM, "Page-Fault Exceptions").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Pfec: u32 {
        /// The fault was not caused by a not-present entry.
        const PRESENT = 1 << 0;
        /// The access was a write.
        const WRITE = 1 << 1;
        /// The access was a user-mode access.
        const USER = 1 << 2;
        /// An entry had a reserved bit set.
        const RSVD = 1 << 3;
        /// The access was an instruction fetch. Reported only under CR4.SMEP, or CR4.PAE and
        /// EFER.NXE.
        const FETCH = 1 << 4;
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write, or a read that will be followed by one (read-modify-write).
    Write,
    /// An instruction fetch.
    Fetch,
}

/// An access to a guest-virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What it does.
    pub kind: AccessKind,
    /// A user-mode access: CPL is 3 and it is not implicit (to a descriptor table, the TSS, ...).
    pub user: bool,
    /// An *explicit* supervisor access while RFLAGS.AC is set: SMAP does not hold it back.
    pub smap_override: bool,
}

impl Access {
    /// A data read of user mode.
    pub const fn user_read() -> Access {
        Access { kind: AccessKind::Read, user: true, smap_override: false }
    }

    /// A data read of supervisor mode with RFLAGS.AC clear.
    pub const fn supervisor_read() -> Access {
        Access { kind: AccessKind::Read, user: false, smap_override: false }
    }

    /// What an exit for a page fault says of the access: by its error code, and by RFLAGS.AC of the
    /// guest. Whether it is allowed is not taken from there.
    ///
    /// An exit does not tell explicit accesses from implicit ones: all are taken as explicit. Where
    /// the CPU reports no fetches (with EFER.NXE and CR4.SMEP clear), a fetch comes as a read. Its
    /// rights then differ only under SMAP.
    ///
    /// ```
    /// use umbra_paging::{Access, AccessKind, Pfec};
    ///
    /// let access = Access::of_exit(Pfec::PRESENT | Pfec::WRITE, true);
    /// assert!(access.is_write() && !access.user && access.smap_override);
    /// ```
    pub const fn of_exit(pfec: Pfec, alignment_check: bool) -> Access {
        let user = pfec.contains(Pfec::USER);
        let kind = if pfec.contains(Pfec::FETCH) {
            AccessKind::Fetch
        } else if pfec.contains(Pfec::WRITE) {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        let smap_override = alignment_check && !user && !matches!(kind, AccessKind::Fetch);
        Access { kind, user, smap_override }
    }

    /// The same access with another kind.
    pub const fn with_kind(self, kind: AccessKind) -> Access {
        Access { kind, ..self }
    }

    /// Whether it writes.
    pub const fn is_write(self) -> bool {
        matches!(self.kind, AccessKind::Write)
    }
}

/// A page fault that the guest's own tables raise: to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestFault {
    /// The error code.
    pub pfec: Pfec,
    /// The faulting address, for CR2.
    pub gva: Gva,
}
