//! The walks of 32-bit and PAE paging against sentences of the SDM. Every combination is tried of
//! the bits that matter in a directory entry, a table entry, the control registers and the access.

use umbra_paging::{
    Access, AccessKind, Features, Gfn, Gpa, Gva, Mode, Paging, Pdptes, Pfec, Tables, bits, walk,
};

const FEATURES: Features = Features::new(36, false);
const GVA: u64 = 0xc12_3456 + 0xc000_0000;
const NX: u64 = bits::NX;

/// A directory in frame 1 and a table in frame 2, with one entry each.
struct Two {
    directory: (u64, u64),
    table: (u64, u64),
    width: u64,
}

impl Tables for Two {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        let (index, entry) = match gpa.gfn().raw() {
            1 => self.directory,
            2 => self.table,
            other => panic!("frame {other} is no table"),
        };
        let at = index * self.width;
        assert_eq!(gpa.page_offset(), at & !7);
        // The other half of the word is noise that must not count.
        if self.width == 8 {
            entry
        } else {
            entry << (8 * (at & 4)) | 0xffff_fff7_u64 << (8 * (4 - (at & 4)))
        }
    }
}

/// The subsets of some bits.
fn subsets(of: &'static [u64]) -> impl Iterator<Item = u64> {
    (0..1u32 << of.len())
        .map(move |n| (0..of.len()).filter(|i| n >> i & 1 != 0).map(|i| of[i]).sum())
}

fn accesses() -> impl Iterator<Item = Access> {
    [AccessKind::Read, AccessKind::Write, AccessKind::Fetch].into_iter().flat_map(|kind| {
        (0..4).map(move |n| Access { kind, user: n & 1 != 0, smap_override: n & 2 != 0 })
    })
}

/// What the SDM says of an access to a page with these entries on its way: the page fault, by the
/// part of its error code that says why, or nothing.
fn refused(entries: &[u64], paging: &Paging, nx: bool, access: Access) -> bool {
    let all = |bit: u64| entries.iter().all(|entry| entry & bit != 0);
    let (writable, user) = (all(bits::W), all(bits::U));
    let no_execute = nx && entries.iter().any(|entry| entry & NX != 0);
    match (access.kind, access.user) {
        (AccessKind::Fetch, true) => !user || no_execute,
        (AccessKind::Fetch, false) => no_execute || user && paging.smep,
        (AccessKind::Read, true) => !user,
        (AccessKind::Write, true) => !user || !writable,
        (kind, false) => {
            user && paging.smap && !access.smap_override
                || kind == AccessKind::Write && !writable && paging.wp
        }
    }
}

fn pagings(mode: Mode) -> impl Iterator<Item = Paging> {
    (0..16).map(move |n| Paging {
        mode,
        root: Gfn::new(1),
        wp: n & 1 != 0,
        smep: n & 2 != 0,
        smap: n & 4 != 0,
        pge: false,
        nxe: n & 8 != 0,
    })
}

fn check(tables: &Two, paging: &Paging, nx: bool, access: Access, expected: Result<u64, Pfec>) {
    // The upper half of the address means nothing outside IA-32e mode.
    let gva = Gva::new(GVA | 0xffff_ffff << 32);
    let found = walk(tables, paging, &FEATURES, gva, access);
    let said = || format!("{:x?} {:x?} {paging:x?} {access:?}", tables.directory, tables.table);
    match (found, expected) {
        (Ok(walk), Ok(place)) => {
            assert_eq!(walk.gpa().raw(), place, "{}", said());
            for step in walk.steps() {
                let dirty = access.kind == AccessKind::Write && step.at == walk.leaf().unwrap().at;
                let wanted = step.entry.raw() | bits::A | if dirty { bits::D } else { 0 };
                let update = (wanted != step.entry.raw()).then_some(wanted);
                assert_eq!(step.update(access), update, "{}", said());
            }
        }
        (Err(fault), Err(mut cause)) => {
            cause.set(Pfec::WRITE, access.kind == AccessKind::Write);
            cause.set(Pfec::USER, access.user);
            cause.set(Pfec::FETCH, access.kind == AccessKind::Fetch && (nx || paging.smep));
            assert_eq!((fault.pfec, fault.gva), (cause, Gva::new(GVA)), "{}", said());
        }
        (found, expected) => panic!("{found:x?}, {expected:x?}: {}", said()),
    }
}

const RSVD: Pfec = Pfec::PRESENT.union(Pfec::RSVD);

#[test]
fn every_combination_of_32_bit_paging() {
    // Bits 13 to 16 are address bits 32 to 35, bits 17 to 20 would be the next ones.
    const PDE: &[u64] = &[bits::P, bits::W, bits::U, bits::PS, bits::D, 1 << 16, 1 << 17, 1 << 21];
    const PTE: &[u64] = &[bits::P, bits::W, bits::U, bits::PS, bits::D];
    for pse in [false, true] {
        for (pde, pte) in subsets(PDE).flat_map(|pde| subsets(PTE).map(move |pte| (pde, pte))) {
            let large = pse && pde & bits::PS != 0;
            // In a reference the address bits would name another table.
            if !large && pde & (1 << 16 | 1 << 17 | 1 << 21) != 0 || large && pte != 0 {
                continue;
            }
            let directory = if large { pde | 0x4440_0000 } else { pde | 0x2000 };
            let tables = Two {
                directory: (GVA >> 22, directory),
                table: (GVA >> 12 & 0x3ff, pte | 0x8765_4000),
                width: 4,
            };
            for paging in pagings(Mode::Legacy32 { pse }) {
                for access in accesses() {
                    let way = [pde, pte];
                    let way = if large { &way[..1] } else { &way };
                    let place = match large {
                        true => (pde >> 16 & 1) << 35 | 0x4440_0000 | GVA & 0x3f_ffff,
                        false => 0x8765_4000 | GVA & 0xfff,
                    };
                    let expected = if pde & 1 == 0 {
                        Err(Pfec::empty())
                    } else if large && pde & (1 << 17 | 1 << 21) != 0 {
                        Err(RSVD)
                    } else if !large && pte & 1 == 0 {
                        Err(Pfec::empty())
                    } else if refused(way, &paging, false, access) {
                        Err(Pfec::PRESENT)
                    } else {
                        Ok(place)
                    };
                    check(&tables, &paging, false, access, expected);
                }
            }
        }
    }
}

#[test]
fn every_combination_of_pae_paging() {
    const PDE: &[u64] = &[bits::P, bits::W, bits::U, bits::PS, 1 << 13, 1 << 36, 1 << 52, NX];
    const PTE: &[u64] = &[bits::P, bits::W, bits::U, bits::PS, bits::D, 1 << 62, NX];
    for present in [false, true] {
        let pdptes = Pdptes::checked([0, 0, 0, 0x1000 | u64::from(present)], &FEATURES).unwrap();
        for (pde, pte) in subsets(PDE).flat_map(|pde| subsets(PTE).map(move |pte| (pde, pte))) {
            let large = pde & bits::PS != 0;
            if !large && pde & 1 << 13 != 0
                || large && pte != 0
                || !present && (pde | pte) & !1 != 0
            {
                continue;
            }
            let directory = if large { pde | 0x4_4460_0000 } else { pde | 0x2000 };
            let tables = Two {
                directory: (GVA >> 21 & 0x1ff, directory),
                table: (GVA >> 12 & 0x1ff, pte | 0x8_8765_4000),
                width: 8,
            };
            for paging in pagings(Mode::Pae { pdptes }) {
                for access in accesses() {
                    let bad = |entry: u64, more: u64| {
                        entry & (1 << 36 | 1 << 52 | 1 << 62 | more) != 0
                            || entry & NX != 0 && !paging.nxe
                    };
                    let way = [pde, pte];
                    let way = if large { &way[..1] } else { &way };
                    let expected = if !present || pde & 1 == 0 {
                        Err(Pfec::empty())
                    } else if bad(pde, if large { 1 << 13 } else { 0 }) {
                        Err(RSVD)
                    } else if !large && pte & 1 == 0 {
                        Err(Pfec::empty())
                    } else if !large && bad(pte, 0) {
                        Err(RSVD)
                    } else if refused(way, &paging, paging.nxe, access) {
                        Err(Pfec::PRESENT)
                    } else if large {
                        Ok(0x4_4460_0000 | GVA & 0x1f_ffff)
                    } else {
                        Ok(0x8_8765_4000 | GVA & 0xfff)
                    };
                    check(&tables, &paging, paging.nxe, access, expected);
                }
            }
        }
    }
}
