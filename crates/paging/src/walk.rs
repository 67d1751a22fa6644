//! The walk of the guest's own tables.

use crate::{
    Access, AccessKind, Features, Format, Gfn, Gpa, GuestEntry, GuestFault, Gva, Level, Mode,
    Paging, Pfec, bits,
};

/// Reads entries of guest paging structures.
pub trait Tables {
    /// The 8 bytes at `gpa`, which is aligned to 8, read at once. Where no memory is: what the bus
    /// gives. (An entry of 32-bit paging is one half of them: [`Format::read`].)
    fn read_entry(&self, gpa: Gpa) -> u64;
}

/// The access rights of a page: the conjunction over the levels of its walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    /// W at every level.
    pub write: bool,
    /// U at every level.
    pub user: bool,
    /// NX (as far as EFER.NXE enables it) at no level.
    pub execute: bool,
}

impl Rights {
    /// Everything is allowed.
    pub const ALL: Rights = Rights { write: true, user: true, execute: true };

    /// What both allow.
    pub const fn and(self, other: Rights) -> Rights {
        Rights {
            write: self.write && other.write,
            user: self.user && other.user,
            execute: self.execute && other.execute,
        }
    }

    /// Whether these allow nothing that the others do not.
    pub const fn within(self, others: Rights) -> bool {
        (others.write || !self.write)
            && (others.user || !self.user)
            && (others.execute || !self.execute)
    }

    /// What remains of these rights under an entry.
    pub const fn under(self, entry: GuestEntry, nxe: bool) -> Rights {
        Rights {
            write: self.write && entry.writable(),
            user: self.user && entry.user(),
            execute: self.execute && !(nxe && entry.nx()),
        }
    }

    /// Whether `access` may go to a page with these rights (SDM, "Determination of Access Rights").
    pub const fn allow(self, access: Access, paging: &Paging) -> bool {
        if access.user {
            self.user
                && match access.kind {
                    AccessKind::Read => true,
                    AccessKind::Write => self.write,
                    AccessKind::Fetch => self.execute,
                }
        } else {
            match access.kind {
                AccessKind::Fetch => self.execute && !(self.user && paging.smep),
                AccessKind::Read | AccessKind::Write
                    if self.user && paging.smap && !access.smap_override =>
                {
                    false
                }
                AccessKind::Read => true,
                AccessKind::Write => self.write || !paging.wp,
            }
        }
    }
}

/// One entry that a walk went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// The level of the structure it stands in.
    pub level: Level,
    /// Where it stands.
    pub at: Gpa,
    /// Its value when the walk read it.
    pub entry: GuestEntry,
    /// Whether it maps the page.
    pub leaf: bool,
}

impl Step {
    /// What the entry must become for the access to take place (SDM, "Accessed and Dirty Flags"),
    /// or `None` if it is so already.
    pub fn update(&self, access: Access) -> Option<u64> {
        let mut wanted = self.entry.raw() | bits::A;
        if access.is_write() && self.leaf {
            wanted |= bits::D;
        }
        (wanted != self.entry.raw()).then_some(wanted)
    }
}

/// A walk that allows its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    steps: [Step; 4],
    used: u8,
    gpa: Gpa,
    rights: Rights,
}

impl Walk {
    /// The entries in memory from the root down to the leaf; empty if paging is off.
    pub fn steps(&self) -> &[Step] {
        &self.steps[..usize::from(self.used)]
    }

    /// The leaf, `None` if paging is off.
    pub fn leaf(&self) -> Option<&Step> {
        self.steps().last()
    }

    /// Where the access goes.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// The page's rights.
    pub fn rights(&self) -> Rights {
        self.rights
    }
}

/// Walks the guest's tables for `access` to `gva`. In IA-32e mode that must be canonical: other
/// addresses raise #GP or #SS before paging is asked. Outside, only its 32 low bits count. Reads
/// only: accessed and dirty bits are set by whoever carries the access out ([`Step::update`]), and
/// only for a walk that allows it.
///
/// # Errors
/// The page fault that the access raises.
pub fn walk(
    tables: &impl Tables,
    paging: &Paging,
    features: &Features,
    gva: Gva,
    access: Access,
) -> Result<Walk, GuestFault> {
    match paging.mode {
        Mode::Off => {
            // Linear addresses have 32 bits outside IA-32e mode.
            let gpa = Gpa::new(gva.raw() & 0xffff_ffff);
            Ok(Walk { steps: [UNUSED; 4], used: 0, gpa, rights: Rights::ALL })
        }
        Mode::Legacy32 { pse } => {
            let format = Format::Legacy32 { pse };
            walk_from(
                tables,
                paging,
                features,
                format,
                Some(paging.root),
                format.linear(gva),
                access,
            )
        }
        Mode::Pae { pdptes } => {
            let (format, table) = (Format::Pae, pdptes.directory_for(gva));
            walk_from(tables, paging, features, format, table, format.linear(gva), access)
        }
        Mode::Long4 => {
            walk_from(tables, paging, features, Format::Long4, Some(paging.root), gva, access)
        }
    }
}

const UNUSED: Step =
    Step { level: Level::L1, at: Gpa::new(0), entry: GuestEntry::new(0), leaf: false };

/// The walk from the topmost structure in memory, of all formats: inlined, so that each has one of
/// its own.
#[inline(always)]
fn walk_from(
    tables: &impl Tables,
    paging: &Paging,
    features: &Features,
    format: Format,
    root: Option<Gfn>,
    gva: Gva,
    access: Access,
) -> Result<Walk, GuestFault> {
    let nxe = paging.nxe && format.has_nx();
    let fault = |cause| GuestFault { pfec: cause | access_bits(access, nxe || paging.smep), gva };
    let mut walk = Walk { steps: [UNUSED; 4], used: 0, gpa: Gpa::new(0), rights: Rights::ALL };
    let Some(mut table) = root else { return Err(fault(Pfec::empty())) };
    let mut level = format.top();
    let (page, shift) = loop {
        let at = format.entry_at(table, format.index(gva, level));
        let entry = format.read(tables, at);
        if !entry.present() {
            return Err(fault(Pfec::empty()));
        }
        if format.reserved(entry, level, nxe, features) != 0 {
            return Err(fault(Pfec::PRESENT | Pfec::RSVD));
        }
        let leaf = format.is_leaf(entry, level);
        walk.steps[usize::from(walk.used)] = Step { level, at, entry, leaf };
        walk.used += 1;
        walk.rights = walk.rights.under(entry, nxe);
        match level.below() {
            Some(below) if !leaf => (table, level) = (entry.frame(), below),
            _ => break (format.leaf_frame(entry, level), format.shift(level)),
        }
    };
    if !walk.rights.allow(access, paging) {
        return Err(fault(Pfec::PRESENT));
    }
    walk.gpa = Gpa::new(page.base().raw() + (gva.raw() & ((1 << shift) - 1)));
    Ok(walk)
}

/// The bits of the error code that describe the access (SDM, "Page-Fault Exceptions").
fn access_bits(access: Access, reports_fetches: bool) -> Pfec {
    let mut pfec = Pfec::empty();
    pfec.set(Pfec::WRITE, access.is_write());
    pfec.set(Pfec::USER, access.user);
    pfec.set(Pfec::FETCH, access.kind == AccessKind::Fetch && reports_fetches);
    pfec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gfn;

    /// A chain of four tables in frames 1 to 4, each with the same entry everywhere.
    struct Chain([u64; 4]);

    impl Tables for Chain {
        fn read_entry(&self, gpa: Gpa) -> u64 {
            self.0[gpa.gfn().raw() as usize - 1]
        }
    }

    const ALL: u64 = bits::P | bits::W | bits::U;
    const FEATURES: Features = Features::new(40, true);

    fn paging() -> Paging {
        Paging {
            mode: Mode::Long4,
            root: Gfn::new(1),
            wp: true,
            smep: true,
            smap: true,
            pge: true,
            nxe: true,
        }
    }

    fn chain() -> Chain {
        Chain([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x5000 | ALL])
    }

    #[test]
    fn a_reserved_bit_counts_before_a_missing_entry_below_it() {
        let mut tables = chain();
        (tables.0[1], tables.0[2]) = (tables.0[1] | 1 << 50, 0);
        let fault =
            walk(&tables, &paging(), &FEATURES, Gva::new(0), Access::user_read()).unwrap_err();
        assert_eq!(fault.pfec, Pfec::PRESENT | Pfec::RSVD | Pfec::USER);
        tables.0[0] = 1 << 50;
        let fault =
            walk(&tables, &paging(), &FEATURES, Gva::new(0), Access::user_read()).unwrap_err();
        assert_eq!(fault.pfec, Pfec::USER);
    }

    #[test]
    fn without_paging_there_are_no_entries_and_32_bits_of_address() {
        let paging = Paging { mode: Mode::Off, ..paging() };
        let found =
            walk(&chain(), &paging, &FEATURES, Gva::new(1 << 32 | 0x1234), Access::user_read())
                .unwrap();
        assert_eq!(
            (found.gpa(), found.leaf(), found.rights()),
            (Gpa::new(0x1234), None, Rights::ALL)
        );
    }

    #[test]
    fn one_level_takes_a_right_away() {
        for level in 0..4 {
            let mut tables = chain();
            tables.0[level] &= !bits::W;
            let write = Access::user_read().with_kind(AccessKind::Write);
            let fault = walk(&tables, &paging(), &FEATURES, Gva::new(0), write).unwrap_err();
            assert_eq!(fault.pfec, Pfec::PRESENT | Pfec::WRITE | Pfec::USER);
            let supervisor = Access { user: false, smap_override: true, ..write };
            let wp_clear = Paging { wp: false, ..paging() };
            assert!(walk(&tables, &paging(), &FEATURES, Gva::new(0), supervisor).is_err());
            assert!(walk(&tables, &wp_clear, &FEATURES, Gva::new(0), supervisor).is_ok());
        }
    }

    #[test]
    fn large_pages_keep_the_low_address_bits() {
        let mut tables = chain();
        tables.0[2] = 0x4020_0000 | ALL | bits::PS;
        let gva = Gva::new(0x12_3456);
        let found = walk(&tables, &paging(), &FEATURES, gva, Access::user_read()).unwrap();
        assert_eq!((found.gpa(), found.steps().len()), (Gpa::new(0x4032_3456), 3));
        assert_eq!(found.leaf().map(|step| step.level), Some(Level::L2));
        tables.0[1] = 0x8000_0000 | ALL | bits::PS;
        let found = walk(&tables, &paging(), &FEATURES, gva, Access::user_read()).unwrap();
        assert_eq!((found.gpa(), found.steps().len()), (Gpa::new(0x8012_3456), 2));
    }

    #[test]
    fn updates_set_dirty_only_in_the_leaf_of_a_write() {
        let found = walk(&chain(), &paging(), &FEATURES, Gva::new(0), Access::user_read()).unwrap();
        let write = Access::user_read().with_kind(AccessKind::Write);
        for step in found.steps() {
            let leaf = step.level == Level::L1;
            assert_eq!(step.update(Access::user_read()), Some(step.entry.raw() | bits::A));
            let dirty = if leaf { bits::D } else { 0 };
            assert_eq!(step.update(write), Some(step.entry.raw() | bits::A | dirty));
        }
    }

    #[test]
    fn rights_match_the_sdm_for_every_combination() {
        for n in 0u32..1 << 11 {
            let bit = |i: u32| n >> i & 1 != 0;
            let kind = match n >> 9 {
                0 => AccessKind::Read,
                1 => AccessKind::Write,
                2 => AccessKind::Fetch,
                _ => continue,
            };
            let rights = Rights { write: bit(0), user: bit(1), execute: bit(2) };
            let paging = Paging { wp: bit(3), smep: bit(4), smap: bit(5), ..paging() };
            let access = Access { kind, user: bit(6), smap_override: bit(7) };
            let data = kind != AccessKind::Fetch;
            // The sentences of "Determination of Access Rights", each as a reason to refuse.
            let refused = (access.user && !rights.user)
                || (kind == AccessKind::Fetch && !rights.execute)
                || (kind == AccessKind::Fetch && !access.user && rights.user && paging.smep)
                || (data && !access.user && rights.user && paging.smap && !access.smap_override)
                || (kind == AccessKind::Write && !rights.write && (access.user || paging.wp));
            assert_eq!(rights.allow(access, &paging), !refused, "{rights:?} {paging:?} {access:?}");
        }
    }
}
