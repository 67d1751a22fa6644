//! What a shadow page is a shadow of.

use umbra_paging::{Access, AccessKind, Gfn, GuestEntry, Gva, Level, Mode, Paging, Rights};

/// Everything beside the guest's table that decides the contents of its shadow. Two shadows of one
/// table with different roles are different pages: a page is only ever found by its whole
/// [`Source`].
///
/// A role does not contain the rights of the levels above (the hardware combines the levels
/// itself), except while CR0.WP is clear: see [`Wp::Off`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The shadow of a guest paging structure.
    Guest { level: Level, nxe: bool, wp: Wp },
    /// The identity map of guest-physical addresses: for large guest pages that must be mapped by
    /// smaller ones, and for a guest with paging off. `L1` covers 2 MiB, `L2` 1 GiB.
    Direct { level: Level },
    /// Four PAE PDPTEs over `Direct` pages: the root of a guest with paging off.
    PaeRoot,
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
pub(crate) struct Source {
    pub role: Role,
    /// `Guest`: the frame of the table. `Direct`: the first frame mapped. `PaeRoot`: zero.
    pub gfn: Gfn,
}

impl Source {
    /// The root for a vCPU in this paging state.
    pub(crate) fn root(paging: &Paging) -> Source {
        if paging.mode == Mode::Off {
            return Source { role: Role::PaeRoot, gfn: Gfn::new(0) };
        }
        let wp = if paging.wp {
            Wp::On
        } else {
            Wp::Off { above_writes: true, above_user: true, smep: paging.smep, smap: paging.smap }
        };
        Source { role: Role::Guest { level: Level::L4, nxe: paging.nxe, wp }, gfn: paging.root }
    }

    pub(crate) fn direct(level: Level, gfn: Gfn) -> Source {
        let size = level.pages() * 512;
        Source { role: Role::Direct { level }, gfn: Gfn::new(gfn.raw() & !(size - 1)) }
    }
}

impl Role {
    /// The index of the entry for a gva in a page of this role is taken at this level.
    pub(crate) fn level(self) -> Level {
        match self {
            Role::Guest { level, .. } | Role::Direct { level } => level,
            Role::PaeRoot => Level::L3,
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
    pub(crate) fn page_rights(self, entry: GuestEntry, nxe: bool, supervisor_writes: bool) -> Rights {
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
        self != Wp::On && access.kind == AccessKind::Write && !access.user && rights.user && !rights.write
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
        // Linear addresses have 32 bits while a PAE root is in use.
        Role::PaeRoot => (gva.raw() >> 30) as usize & 3,
        _ => gva.index(role.level()),
    }
}
