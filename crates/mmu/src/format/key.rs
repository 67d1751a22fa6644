//! What a shadow page is a shadow of.

use umbra_paging::{Access, AccessKind, Gfn, GuestEntry, Gva, Level, Mode, Paging, Rights};

use super::TableFormat;
use crate::VcpuId;

/// Everything beside the guest's table that decides the contents of its shadow. Two shadows of one
/// table with different roles are different pages: a page is only ever found by its whole
/// [`ShadowKey`].
///
/// A role does not contain the rights of the levels above (the hardware combines the levels
/// itself), except while CR0.WP is clear: see [`Wp::Off`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The shadow of a guest paging structure, or of a part of it.
    Guest { level: Level, format: TableFormat, nxe: bool, wp: Wp },
    /// The identity map of guest-physical addresses: for large guest pages that must be mapped by
    /// smaller ones, and for a guest with paging off. `L1` covers 2 MiB, `L2` 1 GiB.
    Direct { level: Level },
    /// The four PDPTE registers of a vCPU that runs on PAE tables: its root while its guest has
    /// paging off, or uses PAE or 32-bit paging. What they reference is known by the vCPU.
    Pdptes { vcpu: VcpuId },
    /// The four PDPTEs in a guest frame, at its start: a root that vCPUs with PAE paging may load
    /// by themselves. It lives for as long as nothing is written to the frame.
    PaeRoot { nxe: bool, wp: Wp },
    /// A page directory that is no memory: all of it is Trapping, and every access through it is
    /// emulated.
    Nowhere,
}

/// The guest's CR0.WP, as far as shadow entries depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wp {
    On,
    /// Supervisor writes ignore W, but the real CR0.WP is always set. A page that user mode may
    /// read but not write is therefore mapped in one of two forms, by the last fault: as it is, or
    /// writable for the supervisor alone. Which pages that concerns depends on the rights above and
    /// on SMEP and SMAP.
    Off {
        above_writes: bool,
        above_user: bool,
        smep: bool,
        smap: bool,
    },
}

/// What a shadow page is built from: its identity in the shadow page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShadowKey {
    pub role: Role,
    /// `Guest`, `PaeRoot`: the frame of the table. `Direct`: the first frame mapped. Others: zero.
    pub gfn: Gfn,
}

impl ShadowKey {
    /// The root for a vCPU in this paging state.
    pub(crate) fn root(paging: &Paging, vcpu: VcpuId) -> ShadowKey {
        match paging.mode {
            Mode::Long4 => ShadowKey::table(paging, Level::L4, TableFormat::LONG4, paging.root),
            Mode::Off | Mode::Legacy32 { .. } | Mode::Pae { .. } => ShadowKey::registers(vcpu),
        }
    }

    /// The page for the PDPTE registers of a vCPU.
    pub(crate) fn registers(vcpu: VcpuId) -> ShadowKey {
        ShadowKey { role: Role::Pdptes { vcpu }, gfn: Gfn::new(0) }
    }

    /// The page for the PDPTEs in a guest frame, for a vCPU in this paging state.
    pub(crate) fn pae_root(paging: &Paging, gfn: Gfn) -> ShadowKey {
        match ShadowKey::table(paging, Level::L2, TableFormat::PAE, gfn).role {
            Role::Guest { nxe, wp, .. } => ShadowKey { role: Role::PaeRoot { nxe, wp }, gfn },
            _ => unreachable!("it is the key of a guest table"),
        }
    }

    /// What the PDPTEs of a vCPU in this paging state reference; nothing if it has none.
    pub(crate) fn directories(paging: &Paging) -> [Option<ShadowKey>; 4] {
        let table = |format, gfn| ShadowKey::table(paging, Level::L2, format, gfn);
        match paging.mode {
            Mode::Long4 => [None; 4],
            Mode::Off => core::array::from_fn(|n| {
                Some(ShadowKey::direct(Level::L2, Gfn::new(n as u64 * Level::L3.pages())))
            }),
            Mode::Legacy32 { pse } => core::array::from_fn(|part| {
                Some(table(TableFormat::legacy32(pse, part), paging.root))
            }),
            Mode::Pae { pdptes } => {
                pdptes.directories().map(|gfn| gfn.map(|gfn| table(TableFormat::PAE, gfn)))
            }
        }
    }

    /// A table that CR3 or a PDPTE register references.
    fn table(paging: &Paging, level: Level, format: TableFormat, gfn: Gfn) -> ShadowKey {
        let wp = if paging.wp {
            Wp::On
        } else {
            Wp::Off { above_writes: true, above_user: true, smep: paging.smep, smap: paging.smap }
        };
        let nxe = paging.nxe && format.format().has_nx();
        ShadowKey { role: Role::Guest { level, format, nxe, wp }, gfn }
    }

    /// What stands in for a page directory that is no memory.
    pub(crate) const NOWHERE: ShadowKey = ShadowKey { role: Role::Nowhere, gfn: Gfn::new(0) };

    /// Whether this is the same, or another part of the same table in the same role.
    pub(crate) fn is_sibling(self, other: ShadowKey) -> bool {
        let (Role::Guest { format, .. }, Role::Guest { format: others, level, nxe, wp }) =
            (self.role, other.role)
        else {
            return self == other;
        };
        format.is_sibling(others)
            && self == ShadowKey { role: Role::Guest { level, format, nxe, wp }, ..other }
    }

    pub(crate) fn direct(level: Level, gfn: Gfn) -> ShadowKey {
        let size = level.pages() * 512;
        ShadowKey { role: Role::Direct { level }, gfn: Gfn::new(gfn.raw() & !(size - 1)) }
    }
}

impl Role {
    /// Whether a page of this role is listed under a guest frame, whose writes must be seen.
    pub(crate) fn is_of_frame(self) -> bool {
        matches!(self, Role::Guest { .. } | Role::PaeRoot { .. })
    }

    /// Whether a page of this role holds the PDPTEs of vCPUs: never Trapping while one may load
    /// them.
    pub(crate) fn is_pdptes(self) -> bool {
        matches!(self, Role::Pdptes { .. } | Role::PaeRoot { .. })
    }

    /// The index of the entry for a gva in a page of this role is taken at this level.
    pub(crate) fn level(self) -> Level {
        match self {
            Role::Guest { level, .. } | Role::Direct { level } => level,
            Role::Pdptes { .. } | Role::PaeRoot { .. } => Level::L3,
            Role::Nowhere => Level::L2,
        }
    }
}

impl Wp {
    /// The role part of the tables below `entry`.
    pub(crate) fn below(self, entry: GuestEntry) -> Wp {
        match self {
            Wp::On => Wp::On,
            Wp::Off { above_writes, above_user, smep, smap } => Wp::Off {
                above_writes: above_writes && entry.writable(),
                above_user: above_user && entry.user(),
                smep,
                smap,
            },
        }
    }

    /// The rights of the shadow entry that references the shadow of `entry`'s table.
    pub(crate) fn link_rights(self, entry: GuestEntry, nxe: bool) -> Rights {
        let rights = Rights::ALL.under(entry, nxe);
        match self {
            Wp::On => rights,
            Wp::Off { .. } => Rights { write: true, ..rights },
        }
    }

    /// The rights of the shadow entry for the page that `entry` maps, tracking aside.
    /// `supervisor_writes` asks for the form in which the supervisor may write it despite W.
    pub(crate) fn page_rights(
        self,
        entry: GuestEntry,
        nxe: bool,
        supervisor_writes: bool,
    ) -> Rights {
        let own = Rights::ALL.under(entry, nxe);
        let Wp::Off { above_writes, above_user, smep, .. } = self else {
            return Rights { write: own.write && entry.dirty(), ..own };
        };
        let user = own.user && above_user;
        let write = own.write && above_writes;
        if write || !user {
            return Rights { write: entry.dirty(), ..own };
        }
        if !supervisor_writes {
            return Rights { write: false, ..own };
        }
        // No longer a user page to the CPU, so SMEP must be made up for.
        Rights { write: entry.dirty(), user: false, execute: own.execute && !smep }
    }

    /// Whether an access that the guest's tables allow needs the form in which only the supervisor
    /// may write.
    pub(crate) fn overrides(self, rights: Rights, access: Access) -> bool {
        self != Wp::On
            && access.kind == AccessKind::Write
            && !access.user
            && rights.user
            && !rights.write
    }

    /// Whether that form would let accesses pass that the guest's SMEP or SMAP refuse: then such a
    /// write must be emulated.
    pub(crate) fn override_is_unsafe(self, nxe: bool) -> bool {
        matches!(self, Wp::Off { smep, smap, .. } if smap || (smep && !nxe))
    }
}

/// The index of the entry for `gva` in a page of this role.
pub(crate) fn index(role: Role, gva: Gva) -> usize {
    match role {
        // Linear addresses have 32 bits while PDPTEs are in use.
        Role::Pdptes { .. } | Role::PaeRoot { .. } => (gva.raw() >> 30) as usize & 3,
        _ => gva.index(role.level()),
    }
}
