//! The walk of 32-bit and of PAE paging, as the manual has it (SDM, "32-Bit Paging" and "PAE
//! Paging"): the judge of this kernel's accesses.

/// Bits of entries.
pub mod bit {
    pub const P: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const NX: u64 = 1 << 63;
}

/// Bits of a page fault's error code.
pub mod code {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// What the tables look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Bits32,
    Pae,
}

/// What shapes a walk.
#[derive(Clone, Copy, Debug)]
pub struct Controls {
    pub format: Format,
    /// The frame of the page directory of 32-bit paging.
    pub directory: u32,
    /// The PDPTEs of the last load.
    pub pdptes: [u64; 4],
    pub wp: bool,
    pub pse: bool,
    pub nxe: bool,
    pub maxphyaddr: u32,
}

/// One access.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub linear: u32,
    pub write: bool,
    pub fetch: bool,
    pub user: bool,
}

/// One entry on the way: where it is, how wide, and what it becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub at: u64,
    pub bytes: u64,
    pub old: u64,
    pub new: u64,
}

/// What came of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The physical address.
    Page(u64),
    /// The error code.
    Fault(u32),
    /// The way leads where there is no memory.
    Nowhere,
}

/// A walk, with the entries on its way.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    pub outcome: Outcome,
    pub entries: [Option<Entry>; 2],
}

/// Walks; `read` reads 4 or 8 bytes of physical memory, if there is some.
pub fn walk(controls: &Controls, access: Access, read: impl Fn(u64, u64) -> Option<u64>) -> Walk {
    let mut entries = [None; 2];
    let outcome = outcome(controls, access, &read, &mut entries);
    let permitted = matches!(outcome, Outcome::Page(_));
    let last = entries.iter().flatten().count().saturating_sub(1);
    for (index, entry) in entries.iter_mut().flatten().enumerate() {
        if permitted {
            entry.new |= bit::A | if access.write && index == last { bit::D } else { 0 };
        }
    }
    // One entry may serve at both levels.
    if let [Some(upper), Some(leaf)] = &mut entries
        && upper.at == leaf.at
    {
        upper.new |= leaf.new;
    }
    Walk { outcome, entries }
}

fn outcome(
    controls: &Controls,
    access: Access,
    read: &impl Fn(u64, u64) -> Option<u64>,
    entries: &mut [Option<Entry>; 2],
) -> Outcome {
    let mut error = 0;
    if access.write {
        error |= code::W;
    }
    if access.user {
        error |= code::U;
    }
    // Without NX there is nothing to tell a fetch by (SDM, "Page-Fault Exceptions").
    let pae = controls.format == Format::Pae;
    if access.fetch && pae && controls.nxe {
        error |= code::FETCH;
    }
    let linear = u64::from(access.linear);
    let (mut table, width, shifts) = match controls.format {
        Format::Bits32 => (u64::from(controls.directory), 4, [22, 12]),
        Format::Pae => {
            let pdpte = controls.pdptes[(linear >> 30) as usize];
            if pdpte & bit::P == 0 {
                return Outcome::Fault(error);
            }
            (pdpte & address_bits(controls) & !0xfff, 8, [21, 12])
        }
    };
    let mut rights = bit::W | bit::U;
    let mut no_execute = false;
    for (level, shift) in shifts.into_iter().enumerate() {
        let count = 0x1000 / width;
        let at = table + width * ((linear >> shift) % count);
        let Some(old) = read(at, width) else { return Outcome::Nowhere };
        if old & bit::P == 0 {
            return Outcome::Fault(error);
        }
        let large = level == 0 && old & bit::PS != 0 && (pae || controls.pse);
        if old & reserved(controls, large) != 0 {
            return Outcome::Fault(error | code::P | code::RSVD);
        }
        entries[level] = Some(Entry { at, bytes: width, old, new: old });
        rights &= old;
        no_execute |= pae && controls.nxe && old & bit::NX != 0;
        table = old & address_bits(controls) & !0xfff;
        if large || level == 1 {
            let refused = access.user && rights & bit::U == 0
                || access.write && rights & bit::W == 0 && (access.user || controls.wp)
                || access.fetch && no_execute;
            if refused {
                return Outcome::Fault(error | code::P);
            }
            let offset = (1u64 << shift) - 1;
            let base = match (large, pae) {
                // PSE-36: bits 20:13 are bits 39:32 of the address.
                (true, false) => old & 0xffc0_0000 | (old >> 13 & 0xff) << 32,
                (true, true) => table & !offset,
                (false, _) => table,
            };
            return Outcome::Page(base | linear & offset);
        }
    }
    unreachable!("the second level ends every walk")
}

/// The bits of an entry that may be an address.
fn address_bits(controls: &Controls) -> u64 {
    match controls.format {
        Format::Bits32 => 0xffff_ffff,
        Format::Pae => (1 << controls.maxphyaddr) - 1,
    }
}

/// The bits that must be clear in a present entry.
fn reserved(controls: &Controls, large: bool) -> u64 {
    match controls.format {
        Format::Bits32 if large => {
            let address = controls.maxphyaddr.clamp(32, 40) - 32;
            1 << 21 | (0xff << (13 + address) & 0x1f_e000)
        }
        Format::Bits32 => 0,
        Format::Pae => {
            let execute = if controls.nxe { 0 } else { bit::NX };
            let page = if large { 0x1f_e000 } else { 0 };
            (bit::NX - 1) & !((1 << controls.maxphyaddr) - 1) | execute | page
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = bit::P | bit::W | bit::U;

    fn controls(format: Format) -> Controls {
        Controls {
            format,
            directory: 0x1000,
            pdptes: [0x1000 | bit::P, 0, 0, 0],
            wp: true,
            pse: true,
            nxe: true,
            maxphyaddr: 40,
        }
    }

    fn access(linear: u32) -> Access {
        Access { linear, write: false, fetch: false, user: true }
    }

    /// The walk of a directory at 0x1000 whose entry is this, with a table at 0x2000 whose entry is
    /// that.
    fn walked(controls: &Controls, access: Access, directory: u64, table: u64) -> Walk {
        walk(controls, access, |at, _| match at & !0xfff {
            0x1000 => Some(directory),
            0x2000 => Some(table),
            _ => None,
        })
    }

    #[test]
    fn a_page_of_either_format() {
        for format in [Format::Bits32, Format::Pae] {
            let write = Access { write: true, ..access(0x5678) };
            let walk = walked(&controls(format), write, 0x2000 | PAGE, 0x9000 | PAGE);
            assert_eq!(walk.outcome, Outcome::Page(0x9678));
            let [upper, leaf] = walk.entries.map(|entry| entry.unwrap().new);
            assert_eq!((upper, leaf), (0x2000 | PAGE | bit::A, 0x9000 | PAGE | bit::A | bit::D));
        }
    }

    #[test]
    fn an_entry_that_is_its_own_table_is_dirty_at_both_levels() {
        let write = Access { write: true, ..access(0) };
        let walk = walk(&controls(Format::Pae), write, |_, _| Some(0x1000 | PAGE));
        assert_eq!(walk.outcome, Outcome::Page(0x1000));
        assert!(
            walk.entries.iter().all(|entry| entry.unwrap().new == 0x1000 | PAGE | bit::A | bit::D)
        );
    }

    #[test]
    fn what_is_reserved_depends_on_the_format() {
        let fault = |format, directory, table| {
            walked(&controls(format), access(0), directory, table).outcome
        };
        let reserved = Outcome::Fault(code::P | code::RSVD | code::U);
        assert_eq!(fault(Format::Bits32, PAGE | bit::PS | 1 << 21, 0), reserved);
        assert_eq!(fault(Format::Pae, PAGE | bit::PS | 1 << 20, 0), reserved);
        assert_eq!(fault(Format::Pae, 0x2000 | PAGE | 1 << 52, 0), reserved);
        assert_eq!(fault(Format::Pae, 0x2000 | PAGE, PAGE | 1 << 40), reserved);
        // PSE-36.
        assert_eq!(fault(Format::Bits32, PAGE | bit::PS | 3 << 13, 0), Outcome::Page(3 << 32));
        let few_bits = Controls { maxphyaddr: 36, ..controls(Format::Bits32) };
        assert_eq!(walked(&few_bits, access(0), PAGE | bit::PS | 1 << 17, 0).outcome, reserved);
        // Without PSE the bit is ignored.
        let plain = Controls { pse: false, ..controls(Format::Bits32) };
        assert_eq!(
            walked(&plain, access(0), 0x2000 | PAGE | bit::PS, PAGE).outcome,
            Outcome::Page(0)
        );
    }

    #[test]
    fn a_fetch_is_told_by_pae_with_nx_only() {
        let fetch = Access { fetch: true, ..access(0) };
        let fault =
            |controls: &Controls, table| walked(controls, fetch, 0x2000 | PAGE, table).outcome;
        assert_eq!(fault(&controls(Format::Bits32), 0), Outcome::Fault(code::U));
        assert_eq!(fault(&controls(Format::Pae), 0), Outcome::Fault(code::U | code::FETCH));
        assert_eq!(
            fault(&controls(Format::Pae), PAGE | bit::NX),
            Outcome::Fault(code::P | code::U | code::FETCH)
        );
        let no_nxe = Controls { nxe: false, ..controls(Format::Pae) };
        assert_eq!(fault(&no_nxe, PAGE | bit::NX), Outcome::Fault(code::P | code::U | code::RSVD));
    }

    #[test]
    fn rights_are_those_of_both_levels() {
        for format in [Format::Bits32, Format::Pae] {
            let write = |user, wp, directory, table| {
                let controls = Controls { wp, ..controls(format) };
                let access = Access { write: true, user, ..access(0) };
                walked(&controls, access, 0x2000 | directory, table).outcome
            };
            let read_only = bit::P | bit::U;
            assert_eq!(
                write(true, false, read_only, PAGE),
                Outcome::Fault(code::P | code::W | code::U)
            );
            assert_eq!(write(false, true, PAGE, read_only), Outcome::Fault(code::P | code::W));
            assert_eq!(write(false, false, read_only, read_only), Outcome::Page(0));
            assert_eq!(
                write(true, true, PAGE, bit::P | bit::W),
                Outcome::Fault(code::P | code::W | code::U)
            );
        }
    }
}
