//! What the MMU answers.

use umbra_paging::{Gfn, Gpa, GuestFault, Hpa};

use crate::{GuestFaults, VcpuId};

/// The paging format of a shadow root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootFormat {
    /// A PML4 table of 4-level paging.
    Long4,
    /// Four PAE PDPTEs, 32-byte aligned: EFER.LMA must be clear, and CR4.PAE set. A guest with
    /// paging off, PAE paging or 32-bit paging runs on them. EFER.NXE must be set only if the
    /// guest's NXE and PAE are, or fetches are reported where they should not be.
    Pae,
}

/// What the real CR3 must hold (the PCID aside) when a vCPU runs.
///
/// Only the MMU makes one, so whoever has one may rest on its contract: a CPU that translates
/// through it, with CR0.WP set and as long as no later answer of the MMU says otherwise, reaches
/// the memory that the embedder's [`Env`](crate::Env) backs the guest with, and no other (invariant
/// I2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    hpa: Hpa,
    format: RootFormat,
}

impl Root {
    pub(crate) fn new(hpa: Hpa, format: RootFormat) -> Root {
        Root { hpa, format }
    }

    /// Where the root structure lies.
    pub fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// Its format.
    pub fn format(&self) -> RootFormat {
        self.format
    }
}

/// A root that a vCPU may load by itself: the guest's own address of it is the right one for the
/// real CR3. Only the MMU makes one ([`Mmu::loadable`](crate::Mmu::loadable)); [`Root`] says what
/// that means. It counts until [`EntryState::loadable_epoch`] changes, or the root is withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadableRoot(Gfn);

impl LoadableRoot {
    pub(crate) fn new(root: Gfn) -> LoadableRoot {
        LoadableRoot(root)
    }

    /// Where it lies for guest and CPU alike.
    pub fn gfn(self) -> Gfn {
        self.0
    }
}

/// What a vCPU enters the guest with. It stays in force until the vCPU leaves the guest: see
/// [`Tlb`](crate::Tlb) for several vCPUs.
#[must_use = "a CPU that enters with something else lets the guest see what it must not"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryState {
    /// What the real CR3 must hold.
    pub root: Root,
    /// Which page faults must exit.
    pub guest_faults: GuestFaults,
    /// Whether the guest's flushes must exit: INVLPG, INVPCID, MOV to CR3 and the rest.
    pub flushes_exit: bool,
    /// Changes whenever the MMU has withdrawn a root that a vCPU may load without an exit, or moved
    /// it: then the CPU's list of them must be looked through
    /// ([`Mmu::is_loadable`](crate::Mmu::is_loadable)).
    pub loadable_epoch: u64,
}

/// Why [`Mmu::translate`](crate::Mmu::translate) does not say where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslateError {
    /// The access raises this fault.
    Fault(GuestFault),
    /// Others change the guest's entries all the time: let the guest execute the instruction again.
    Raced,
}

/// The work that a host fault made necessary. Where several apply, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// A table was detached, or is unsync, for a write to it: let the guest execute that again, it
    /// will not be seen.
    Detach,
    /// A shadow table was built, attached or linked.
    Link,
    /// A guest dirty bit was set.
    Dirty,
    /// A guest accessed bit was set.
    Accessed,
    /// A shadow leaf entry was installed, or found installed already.
    Install,
    /// None: others changed the guest's entries again and again. Let the guest execute the
    /// instruction again, and do not count this exit as one without progress.
    Raced,
}

/// The write of an instruction to a tracked page table: on which vCPU, to which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableTicket {
    vcpu: VcpuId,
    gfn: Gfn,
}

impl TableTicket {
    pub(crate) fn new(vcpu: VcpuId, gfn: Gfn) -> TableTicket {
        TableTicket { vcpu, gfn }
    }

    pub(crate) fn vcpu(self) -> VcpuId {
        self.vcpu
    }

    pub(crate) fn gfn(self) -> Gfn {
        self.gfn
    }
}

/// What a page-fault exit turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// A host fault, dealt with: let the guest execute the instruction again.
    Resume(Work),
    /// A guest fault: inject it.
    Guest(GuestFault),
    /// The access goes to no memory, or it writes memory that is not writable: emulate the
    /// instruction.
    Mmio {
        /// Where it goes.
        gpa: Gpa,
    },
    /// The access writes a tracked guest page table: emulate the instruction, writing through
    /// [`Mmu::write_guest`](crate::Mmu::write_guest). If that is not possible, give the frame up
    /// with [`Mmu::release`](crate::Mmu::release) and let the guest execute it again.
    TableWrite {
        /// Where it goes.
        gpa: Gpa,
        /// What [`Mmu::release`](crate::Mmu::release) takes.
        ticket: TableTicket,
    },
    /// An access that the guest's tables allow, but that no shadow entry can allow: a supervisor
    /// write that only CR0.WP = 0 permits, where allowing it would allow more, or a walk through
    /// tables that are no memory. Emulate the instruction.
    Override {
        /// Where it goes.
        gpa: Gpa,
    },
}
