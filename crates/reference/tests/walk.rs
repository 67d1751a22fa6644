//! The judge's walk and `umbra_paging`'s were written apart. Here they are compared.

use proptest::prelude::*;
use umbra_paging::{Access, AccessKind, Features, Gfn, Gpa, Gva, Mode, Paging, Pdptes, Tables};
use umbra_reference::hardware::{Control, PagingMode, PagingUnit, Temper};
use umbra_reference::memory::{PhysAddr, PhysicalMemory, Ram};
use umbra_reference::registers::{Cpu, Registers};

/// Both see the same four tables, in frames 1 to 4.
struct Guest<'a>(&'a Ram);

impl Tables for Guest<'_> {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        self.0.read(PhysAddr::new(gpa.raw()))
    }
}

/// An entry that leads on, more or less: at most a few of its bits are out of the ordinary.
fn entry(table: u64) -> impl Strategy<Value = u64> {
    let flips = proptest::collection::vec(0u32..64, 0..3);
    (flips, any::<bool>()).prop_map(move |(flips, marked)| {
        let base = table << 12 | 7 | if marked { 0x60 } else { 0 };
        flips.into_iter().fold(base, |entry, bit| entry ^ 1 << bit)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_two_walks_agree(
        entries in (entry(2), entry(3), entry(4), entry(5)),
        bits in any::<u16>(),
        width in 36u8..=52,
        offset in 0u64..4089,
    ) {
        let bit = |n: u32| bits >> n & 1 != 0;
        let gva = Gva::new(1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | offset);
        let mut ram = Ram::new(6);
        for (table, index, entry) in [(1, 1, entries.0), (2, 2, entries.1), (3, 3, entries.2), (4, 4, entries.3)] {
            ram.write(PhysAddr::new(table << 12 | index << 3), entry);
        }
        let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch, AccessKind::Read][usize::from(bits & 3)];
        let access = Access { kind, user: bit(2), smap_override: bit(3) };
        let (wp, smep, smap, nxe, gib_pages) = (bit(4), bit(5), bit(6), bit(7), bit(8));
        let paging = Paging { mode: Mode::Long4, root: Gfn::new(1), wp, smep, smap, pge: false, nxe };
        let theirs = umbra_paging::walk(&Guest(&ram), &paging, &Features::new(width, gib_pages), gva, access);

        let registers = Registers { wp, smep, smap, nxe, ..Registers::long_mode(Gfn::new(1)) };
        let control = registers.control(&Cpu { maxphyaddr: width, gib_pages });
        let mut after = ram.clone();
        let mut unit = PagingUnit::new(0, Temper { mark: 0, ..Temper::STICKY });
        match (theirs, unit.translate(&mut after, &control, gva, access)) {
            (Ok(walk), Ok(reached)) => {
                prop_assert_eq!(walk.gpa().raw(), reached.at.raw());
                for step in walk.steps() {
                    if let Some(new) = step.update(access) {
                        ram.write(PhysAddr::new(step.at.raw()), new);
                    }
                }
            }
            (Err(theirs), Err(ours)) => {
                prop_assert_eq!((theirs.pfec, theirs.gva), (ours.code, ours.gva));
            }
            (theirs, ours) => prop_assert!(false, "{theirs:x?} against {ours:x?}"),
        }
        for word in (0..6 * 4096).step_by(8).map(PhysAddr::new) {
            prop_assert_eq!(ram.read(word), after.read(word), "accessed and dirty bits at {:?}", word);
        }
    }
}

/// Both walk from a directory in frame 1 and a table in frame 2, of 4-byte entries or of 8-byte
/// ones.
fn two_levels(
    words: [u64; 2],
    legacy32: bool,
    bits: u32,
    width: u8,
    offset: u64,
) -> Result<(), TestCaseError> {
    let bit = |n: u32| bits >> n & 1 != 0;
    // Above bit 31 an address means nothing here.
    let gva = Gva::new(0xdead_0000_0000 | 3 << 30 | 0x2b << 22 | 0x35 << 12 | offset);
    let mut ram = Ram::new(6);
    for (table, word) in (1..).zip(words) {
        let index = match (legacy32, table) {
            (true, 1) => 3 << 8 | 0x2b,
            (true, _) => 0x35,
            (false, 1) => 0x2b << 1,
            (false, _) => 0x35,
        };
        let size = if legacy32 { 4 } else { 8 };
        ram.write(
            PhysAddr::new(table << 12 | (index * size) & !7),
            if legacy32 { word << 32 | word & 0xffff_ffff } else { word },
        );
    }
    let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch, AccessKind::Write]
        [bits as usize & 3];
    let access = Access { kind, user: bit(2), smap_override: bit(3) };
    let (wp, smep, smap, nxe, pse) = (bit(4), bit(5), bit(6), bit(7), bit(8));
    let features = Features::new(width, false);
    let pdptes = [0, 0, 0, 0x1000 | u64::from(bits >> 9 & 7 != 0)];
    let (mode, paging_mode) = match legacy32 {
        true => (Mode::Legacy32 { pse }, PagingMode::Legacy32 { root: PhysAddr::new(0x1000), pse }),
        false => {
            let registers = Pdptes::checked(pdptes, &features).unwrap();
            (Mode::Pae { pdptes: registers }, PagingMode::Pae { pdptes })
        }
    };
    let paging = Paging { mode, root: Gfn::new(1), wp, smep, smap, pge: false, nxe };
    let theirs = umbra_paging::walk(&Guest(&ram), &paging, &features, gva, access);
    let control = Control {
        mode: paging_mode,
        pcid: 0,
        wp,
        smep,
        smap,
        pge: false,
        nxe,
        maxphyaddr: width,
        gib_pages: false,
    };
    let mut after = ram.clone();
    let mut unit = PagingUnit::new(0, Temper { mark: 0, ..Temper::STICKY });
    match (theirs, unit.translate(&mut after, &control, control.linear(gva), access)) {
        (Ok(walk), Ok(reached)) => {
            prop_assert_eq!(walk.gpa().raw(), reached.at.raw());
            for step in walk.steps() {
                if let Some(new) = step.update(access) {
                    let (word, shift) =
                        (PhysAddr::new(step.at.raw()).word(), step.at.raw() % 8 * 8);
                    ram.write(word, ram.read(word) | new << shift);
                }
            }
        }
        (Err(theirs), Err(ours)) => {
            prop_assert_eq!((theirs.pfec, theirs.gva), (ours.code, ours.gva))
        }
        (theirs, ours) => prop_assert!(false, "{theirs:x?} against {ours:x?}"),
    }
    for word in (0..6 * 4096).step_by(8).map(PhysAddr::new) {
        prop_assert_eq!(ram.read(word), after.read(word), "accessed and dirty bits at {:?}", word);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_two_walks_agree_about_32_bit_and_pae_paging(
        entries in (entry(2), entry(5)),
        bits in any::<u32>(),
        width in 32u8..=52,
        offset in 0u64..4089,
    ) {
        let words = [entries.0, entries.1];
        two_levels(words, false, bits, width, offset)?;
        two_levels(words.map(|word| word & 0xffff_ffff), true, bits, width, offset)?;
    }
}
