//! The general way: what a shadow entry should be, and how it is encoded.

use umbra_paging::{Gfn, GuestEntry, Hfn, Level, Rights};

use super::View;
use crate::format::{Held, Role, ShadowEntry, ShadowKey, TableFormat, Wp};
use crate::guest::{REGION, RegionBacking};
use crate::tables::{List, Slot};
use crate::{Backing, Env, ShadowFrame};

/// What a shadow entry should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The guest's entry is not present.
    NotPresent,
    /// The hypervisor must look: nothing that could be mapped now.
    Trap,
    /// This page is not built yet.
    Missing(ShadowKey),
    /// No memory: the first frame and this level's rights.
    Mmio(Gfn, Rights),
    /// A shadow page, by its frame in the pool.
    Link(ShadowFrame, Rights),
    /// A page.
    Page { level: Level, gfn: Gfn, hfn: Hfn, rights: Rights, global: bool, held: Held },
}

/// What a guest entry says of a page.
#[derive(Clone, Copy)]
struct Page {
    /// Its first frame.
    gfn: Gfn,
    /// This level's rights; W only with D.
    rights: Rights,
    global: bool,
    /// Whether the entry itself has W.
    writes: bool,
}

impl Page {
    fn identity(gfn: Gfn) -> Page {
        Page { gfn, rights: Rights::ALL, global: false, writes: true }
    }
}

impl<E: Env> View<'_, E> {
    /// What the entry at `slot` should be now. `supervisor_writes` chooses the form of a page while
    /// CR0.WP is clear: see [`Wp::Off`].
    pub(crate) fn target(self, slot: Slot, supervisor_writes: bool) -> Target {
        match self.guest_entry(slot) {
            Some(entry) => self.target_of(slot, entry, supervisor_writes),
            None => self.direct_target(slot),
        }
    }

    /// Whether a walk that sets A first ends at the guest's entry of `slot`, as it is now.
    pub(crate) fn stops_walks(self, slot: Slot) -> bool {
        let Role::Guest { level, format, nxe, .. } = self.basis.tables.key(slot.frame()).role
        else {
            return false;
        };
        let features = &self.basis.config.features;
        self.guest_entry(slot).is_some_and(|entry| {
            let walkable = entry.present() && entry.accessed();
            !walkable || format.reserved(entry, level, nxe, features) != 0
        })
    }

    fn target_of(self, slot: Slot, entry: GuestEntry, supervisor_writes: bool) -> Target {
        let key = self.basis.tables.key(slot.frame());
        let Role::Guest { level, format, nxe, wp } = key.role else {
            unreachable!("only shadows of guest tables have guest entries");
        };
        if !entry.present() {
            // Only a table whose writes are seen can promise that an entry is not present (I1).
            let seen = self.basis.guest.is_seen(self.env, key);
            return if seen { Target::NotPresent } else { Target::Trap };
        }
        if format.reserved(entry, level, nxe, &self.basis.config.features) != 0 {
            return Target::Trap;
        }
        if !entry.accessed() {
            return Target::Trap;
        }
        if !entry.is_leaf(level) {
            return self.table_target(entry, level, format.below(slot.index()), nxe, wp);
        }
        let page = Page {
            gfn: entry.leaf_frame(level),
            rights: wp.page_rights(entry, nxe, supervisor_writes),
            global: entry.global(),
            // While CR0.WP is clear nothing depends on knowing.
            writes: wp == Wp::On && entry.writable(),
        };
        let Page { gfn, rights, .. } = page;
        match level {
            Level::L1 => self.page_target(page),
            Level::L2 => self.region_target(page),
            _ if self.basis.guest.knows(gfn) => {
                self.found(ShadowKey::direct(Level::L2, gfn), rights)
            }
            _ => Target::Mmio(gfn, rights),
        }
    }

    /// `format` is that of the table, or of its part.
    fn table_target(
        self,
        entry: GuestEntry,
        level: Level,
        format: TableFormat,
        nxe: bool,
        wp: Wp,
    ) -> Target {
        let level = level.below().expect("an entry of a page table is a leaf");
        let gfn = entry.frame();
        if !self.basis.guest.can_hold_table(self.env, gfn) {
            return Target::Trap;
        }
        let key = ShadowKey { role: Role::Guest { level, format, nxe, wp: wp.below(entry) }, gfn };
        let rights = wp.link_rights(entry, nxe);
        self.found(key, rights)
    }

    fn found(self, key: ShadowKey, rights: Rights) -> Target {
        match self.find(key) {
            // Nothing may lead to a page that is out of date.
            Some(_) if self.basis.guest.is_detached(key) => Target::Missing(key),
            Some(frame) => Target::Link(frame, rights),
            None => Target::Missing(key),
        }
    }

    fn page_target(self, page: Page) -> Target {
        let Page { gfn, rights, global, writes } = page;
        match self.env.backing(gfn) {
            Backing::Ram { hfn, writable } => {
                let untracked = rights.write && writable;
                let write = untracked && !self.basis.guest.is_tracked(gfn);
                let held = match writes && !write {
                    false => Held::Nothing,
                    true if untracked => Held::TrackedWrite,
                    true => Held::Write,
                };
                Target::Page {
                    level: Level::L1,
                    gfn,
                    hfn,
                    rights: Rights { write, ..rights },
                    global,
                    held,
                }
            }
            Backing::None => Target::Mmio(gfn, rights),
        }
    }

    /// A 2 MiB page, guest-large or of the identity map.
    fn region_target(self, page: Page) -> Target {
        let Page { gfn, rights, global, writes } = page;
        let Some(region) = self.basis.guest.region(gfn) else { return Target::Mmio(gfn, rights) };
        match self.basis.guest.region_backing(self.env, region) {
            RegionBacking::Empty => Target::Mmio(gfn, rights),
            RegionBacking::Whole { hfn, writable }
                if !self.basis.guest.region_is_tracked(region) =>
            {
                let write = rights.write && writable;
                let held = if writes && !write { Held::Write } else { Held::Nothing };
                Target::Page {
                    level: Level::L2,
                    gfn,
                    hfn,
                    rights: Rights { write, ..rights },
                    global,
                    held,
                }
            }
            // The rights of the large page stand in the link; the pages of the identity map allow
            // all.
            RegionBacking::Whole { .. } | RegionBacking::Pieces => {
                self.found(ShadowKey::direct(Level::L1, gfn), rights)
            }
        }
    }

    fn direct_target(self, slot: Slot) -> Target {
        let ShadowKey { role, gfn } = self.basis.tables.key(slot.frame());
        let index = slot.index() as u64;
        match role {
            Role::Direct { level: Level::L1 } => self.page_target(Page::identity(gfn + index)),
            Role::Direct { .. } => self.region_target(Page::identity(gfn + index * REGION)),
            Role::Pdptes { vcpu } => match self.basis.guest.directory(vcpu, slot.index()) {
                Some(directory) => self.found(directory, Rights::ALL),
                None => Target::NotPresent,
            },
            Role::PaeRoot { nxe, wp } => self.pdpte_target(slot, nxe, wp),
            Role::Nowhere => Target::Trap,
            Role::Guest { .. } => unreachable!("a shadow of a guest table has guest entries"),
        }
    }

    /// A PDPTE in guest memory, which is right if it may be loaded at all.
    fn pdpte_target(self, slot: Slot, nxe: bool, wp: Wp) -> Target {
        let root = self.basis.tables.key(slot.frame()).gfn;
        let pdpte = match slot.index() {
            index @ 0..4 => GuestEntry::new(self.env.read_entry(root.entry(index))),
            _ => return Target::NotPresent,
        };
        if !pdpte.present() {
            return Target::NotPresent;
        }
        let role = Role::Guest { level: Level::L2, format: TableFormat::PAE, nxe, wp };
        self.found(ShadowKey { role, gfn: pdpte.frame() }, Rights::ALL)
    }

    /// The entry that carries a target out, and the list it belongs to.
    pub(crate) fn encode(self, slot: Slot, target: Target) -> (ShadowEntry, Option<List>) {
        let encodings = self.basis.tables.encodings();
        match target {
            Target::NotPresent => (encodings.not_present_entry(), None),
            Target::Trap | Target::Missing(_) => (encodings.trap_entry(), None),
            Target::Mmio(gfn, rights) if encodings.can_hide(gfn) => {
                (encodings.mmio(gfn, rights, self.basis.guest.generation()), None)
            }
            // It is found out by a walk each time.
            Target::Mmio(..) => (encodings.trap_entry(), None),
            Target::Link(child, rights) => {
                let entry = match self.basis.tables.key(slot.frame()).role {
                    role if role.is_pdptes() => ShadowEntry::pdpte(self.env.hpa(child)),
                    _ => ShadowEntry::link(self.env.hpa(child), rights),
                };
                (entry, Some(List::Parents(child)))
            }
            Target::Page { level, gfn, hfn, rights, global, held } => {
                let list = match level {
                    Level::L1 => List::Gfn(gfn.raw() as u32),
                    _ => List::Region((gfn.raw() / REGION) as u32),
                };
                (ShadowEntry::page(level, hfn.base(), rights, global, held), Some(list))
            }
        }
    }
}
