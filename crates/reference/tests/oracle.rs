//! The oracle refuses what bare hardware cannot do, and allows what it can.

use std::rc::Rc;

use arrayvec::ArrayVec;
use umbra_paging::{Access, AccessKind, Gfn, Gva, Pfec};
use umbra_reference::hardware::PageFault;
use umbra_reference::memory::{PhysAddr, PhysicalMemory, Ram};
use umbra_reference::oracle::{Change, Observed, Oracle, Piece};
use umbra_reference::registers::{Cpu, Invalidation, Registers};
use umbra_reference::universe::Universe;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const ALL: u64 = P | W | U | A | D;

/// Two pages below the same page table, and one under another PDE.
const PAGE: Gva = Gva::new(0x1000);
const SIBLING: Gva = Gva::new(0x2000);
const COUSIN: Gva = Gva::new(0x20_1000);
/// Where the entries for [`PAGE`] stand, from the PML4E down.
const ENTRIES: [PhysAddr; 4] =
    [PhysAddr::new(0x1000), PhysAddr::new(0x2000), PhysAddr::new(0x3000), PhysAddr::new(0x4008)];

const MODEL: Cpu = Cpu { maxphyaddr: 40, gib_pages: true };

struct World {
    oracle: Oracle,
    registers: Registers,
}

fn world_with(entries: [u64; 4]) -> World {
    let universe = Rc::new(Universe::new(vec![PAGE, SIBLING, COUSIN]));
    let mut memory = Ram::new(64);
    for (at, entry) in ENTRIES.into_iter().zip(entries) {
        memory.write(at, entry);
    }
    let registers = Registers { smap: false, smep: false, ..Registers::long_mode(Gfn::new(1)) };
    World { oracle: Oracle::new(universe, memory, &[registers.control(&MODEL)]), registers }
}

/// 4 KiB tables in frames 1 to 4, the page in frame 16, everything allowed, accessed and dirty.
fn world() -> World {
    world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | ALL])
}

fn done(at: u64) -> Observed {
    Observed::Done([PhysAddr::new(at)].into_iter().collect())
}

fn fault(code: Pfec, gva: Gva) -> Observed {
    Observed::Fault(PageFault { code, gva })
}

impl World {
    fn write(&mut self, at: PhysAddr, value: u64) {
        self.oracle.judge_write(at, &value.to_le_bytes(), &[Change { at, value }]).unwrap();
    }

    fn invalidate(&mut self, invalidation: Invalidation) {
        self.oracle.executed(0, self.registers.control(&MODEL), invalidation);
    }

    fn judge(
        &mut self,
        gva: Gva,
        access: Access,
        seen: Observed,
        changes: &[(PhysAddr, u64)],
    ) -> Result<(), String> {
        let changes: Vec<Change> =
            changes.iter().map(|&(at, value)| Change { at, value }).collect();
        let piece = Piece { gva, bytes: ArrayVec::new() };
        self.oracle.judge_access(0, access, &[piece], &seen, &changes)
    }

    /// Whether a user read of `gva` may be seen to end like this, with nothing else changed.
    fn allows(&self, gva: Gva, seen: Observed) -> bool {
        let mut copy = World { oracle: self.oracle.clone(), registers: self.registers };
        copy.judge(gva, Access::user_read(), seen, &[]).is_ok()
    }
}

#[test]
fn an_old_translation_serves_until_invlpg() {
    let mut world = world();
    world.write(ENTRIES[3], 0x11000 | ALL);
    assert!(world.allows(PAGE, done(0x10000)));
    assert!(world.allows(PAGE, done(0x11000)));
    assert!(!world.allows(PAGE, done(0x12000)));
    world.invalidate(Invalidation::Page(PAGE));
    assert!(!world.allows(PAGE, done(0x10000)), "stale after INVLPG");
    assert!(world.allows(PAGE, done(0x11000)));
}

#[test]
fn invlpg_of_another_page_drops_structures_but_no_translations() {
    let mut world = world();
    // Under the old page table the sibling is not present; under the new one it is.
    world.write(PhysAddr::new(0x5010), 0x12000 | ALL);
    world.write(ENTRIES[2], 0x5000 | ALL);
    assert!(world.allows(SIBLING, fault(Pfec::USER, SIBLING)), "by the old structure");
    assert!(world.allows(SIBLING, done(0x12000)), "by the new one");
    world.invalidate(Invalidation::Page(COUSIN));
    assert!(!world.allows(SIBLING, fault(Pfec::USER, SIBLING)));
    assert!(world.allows(PAGE, done(0x10000)), "the translation of another page stays");
}

#[test]
fn a_fault_is_refused_where_nothing_not_present_was_ever_cached() {
    let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0]);
    assert!(world.allows(PAGE, fault(Pfec::USER, PAGE)));
    world.write(ENTRIES[3], 0x10000 | ALL);
    assert!(!world.allows(PAGE, fault(Pfec::USER, PAGE)), "not-present entries are not cached");
    assert!(world.allows(PAGE, done(0x10000)));
}

#[test]
fn error_codes_are_exact() {
    let world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | P | A]);
    let right = Pfec::PRESENT | Pfec::USER;
    for code in 0..32 {
        let code = Pfec::from_bits_truncate(code);
        assert_eq!(world.allows(PAGE, fault(code, PAGE)), code == right, "{code:?}");
    }
    assert!(!world.allows(PAGE, fault(right, SIBLING)), "CR2 is exact too");
}

#[test]
fn accessed_bits_must_be_set_and_by_a_success_only_these() {
    let unmarked =
        [0x2000 | P | W | U, 0x3000 | P | W | U, 0x4000 | P | W | U, 0x10000 | P | W | U];
    let marks: Vec<(PhysAddr, u64)> =
        ENTRIES.into_iter().zip(unmarked.map(|entry| entry | A)).collect();
    let read = Access::user_read();
    assert!(world_with(unmarked).judge(PAGE, read, done(0x10000), &marks).is_ok());
    for missing in 0..4 {
        let mut marks = marks.clone();
        marks.remove(missing);
        assert!(
            world_with(unmarked).judge(PAGE, read, done(0x10000), &marks).is_err(),
            "A of {missing}"
        );
    }
    let mut dirty = marks.clone();
    dirty[3].1 |= D;
    assert!(
        world_with(unmarked).judge(PAGE, read, done(0x10000), &dirty).is_err(),
        "a read sets no D"
    );
    let write = read.with_kind(AccessKind::Write);
    assert!(
        world_with(unmarked).judge(PAGE, write, done(0x10000), &marks).is_err(),
        "a write sets D"
    );
    assert!(world_with(unmarked).judge(PAGE, write, done(0x10000), &dirty).is_ok());
    let mut stray = marks.clone();
    stray.push((PhysAddr::new(0x8000), 1));
    assert!(
        world_with(unmarked).judge(PAGE, read, done(0x10000), &stray).is_err(),
        "nothing else changes"
    );
}

#[test]
fn an_unmarked_entry_is_not_cached() {
    let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | P | W | U]);
    world.write(ENTRIES[3], 0);
    assert!(!world.allows(PAGE, done(0x10000)));
    let mut world = world_with([0x2000 | ALL, 0x3000 | P | W | U, 0x4000 | ALL, 0x10000 | ALL]);
    world.write(ENTRIES[3], 0);
    assert!(!world.allows(PAGE, done(0x10000)), "below an unmarked entry nothing is cached either");
}

#[test]
fn a_write_through_a_clean_translation_needs_the_entry_in_memory() {
    let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | P | W | U | A]);
    world.write(ENTRIES[3], 0);
    assert!(world.allows(PAGE, done(0x10000)), "a read needs no D");
    let write = Access::user_read().with_kind(AccessKind::Write);
    assert!(world.judge(PAGE, write, done(0x10000), &[]).is_err());
}

#[test]
fn mov_cr3_spares_global_pages_only() {
    for (global, stays) in [(0, false), (G, true)] {
        let mut world =
            world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | ALL | global]);
        world.write(ENTRIES[3], 0);
        world.invalidate(Invalidation::Context);
        assert_eq!(world.allows(PAGE, done(0x10000)), stays);
        world.invalidate(Invalidation::All);
        assert!(!world.allows(PAGE, done(0x10000)));
    }
}

#[test]
fn a_global_bit_means_nothing_without_pge() {
    let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | ALL | G]);
    world.registers.pge = false;
    world.invalidate(Invalidation::All);
    world.write(ENTRIES[3], 0);
    world.invalidate(Invalidation::Context);
    assert!(!world.allows(PAGE, done(0x10000)));
}

#[test]
fn pcids_keep_apart() {
    let mut world = world();
    world.registers = Registers { pcide: true, pcid: 1, ..world.registers };
    world.invalidate(Invalidation::Nothing);
    world.write(ENTRIES[3], 0);
    world.invalidate(Invalidation::Page(PAGE));
    assert!(!world.allows(PAGE, done(0x10000)), "PCID 1 has flushed it");
    world.registers.pcid = 0;
    world.invalidate(Invalidation::Nothing);
    assert!(world.allows(PAGE, done(0x10000)), "PCID 0 has not");
}

#[test]
fn one_invlpg_drops_a_whole_large_page() {
    let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x20_0000 | PS | ALL, 0]);
    world.write(ENTRIES[2], 0);
    assert!(world.allows(PAGE, done(0x20_1000)) && world.allows(SIBLING, done(0x20_2000)));
    world.invalidate(Invalidation::Page(SIBLING));
    assert!(!world.allows(PAGE, done(0x20_1000)));
}

#[test]
fn a_delivered_fault_does_not_recur() {
    let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | P | A]);
    world.write(ENTRIES[3], 0x10000 | ALL);
    let stale = fault(Pfec::PRESENT | Pfec::USER, PAGE);
    assert!(world.allows(PAGE, stale.clone()));
    world.judge(PAGE, Access::user_read(), stale.clone(), &[]).unwrap();
    assert!(!world.allows(PAGE, stale));
    assert!(world.allows(PAGE, done(0x10000)));
}

#[test]
fn rights_are_those_of_the_whole_way() {
    let write = Access::user_read().with_kind(AccessKind::Write);
    for level in 0..4 {
        let mut entries = [0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | ALL];
        entries[level] &= !W;
        let mut world = world_with(entries);
        assert!(world.judge(PAGE, write, done(0x10000), &[]).is_err());
        let refused = fault(Pfec::PRESENT | Pfec::WRITE | Pfec::USER, PAGE);
        assert!(world.judge(PAGE, write, refused, &[]).is_ok());
    }
}

#[test]
fn what_is_written_is_what_changes() {
    let bytes: ArrayVec<u8, 8> = [1, 2, 3].into_iter().collect();
    let piece = Piece { gva: Gva::new(PAGE.raw() + 6), bytes };
    let write = Access::user_read().with_kind(AccessKind::Write);
    let at = |at, value| Change { at: PhysAddr::new(at), value };
    let judge = |changes: &[Change]| {
        world()
            .oracle
            .judge_access(0, write, std::slice::from_ref(&piece), &done(0x10006), changes)
            .is_ok()
    };
    assert!(judge(&[at(0x10000, 0x0201 << 48), at(0x10008, 3)]));
    assert!(!judge(&[at(0x10000, 0x0201 << 48)]), "half a write");
    assert!(!judge(&[at(0x10000, 0x0202 << 48), at(0x10008, 3)]));
    assert!(!judge(&[at(0x10000, 0x0201 << 48), at(0x10008, 3), at(0x10010, 3)]));
}

#[test]
fn a_store_over_its_own_entry_may_leave_the_old_one_cached() {
    // The page is its own page table, and the entry is neither accessed nor dirty before.
    let old = 0x4000 | P | W | U;
    let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, old]);
    let bytes: ArrayVec<u8, 8> = [0x21].into_iter().collect();
    let piece = Piece { gva: Gva::new(PAGE.raw() + 0xb), bytes };
    let write = Access::user_read().with_kind(AccessKind::Write);
    let change = Change { at: ENTRIES[3], value: 0x2100_0000 | old | A | D };
    world.oracle.judge_access(0, write, &[piece], &done(0x400b), &[change]).unwrap();
    assert!(world.allows(PAGE, done(0x4000)), "cached with A and D before the store");
    assert!(world.allows(PAGE, done(0x2100_4000)));
    world.invalidate(Invalidation::Page(PAGE));
    assert!(!world.allows(PAGE, done(0x4000)));
}

/// Whether the oracle takes it that A was set in this entry, with no access that goes there.
fn may_be_marked(entries: [u64; 4], at: PhysAddr, bits: u64) -> bool {
    let mut world = world_with(entries);
    // Nobody accesses this page.
    world.write(PhysAddr::new(0x4800), 0x13000 | P | W | U);
    let old = world.oracle.memory().read(at);
    let change = Change { at, value: old | bits };
    world.oracle.judge_write(PhysAddr::new(0), &[], &[change]).is_ok()
}

#[test]
fn a_cpu_may_speculate_and_set_accessed_bits_on_the_way() {
    let marked = [0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | ALL];
    let stranger = PhysAddr::new(0x4800);
    assert!(may_be_marked(marked, stranger, A));
    assert!(!may_be_marked(marked, stranger, D), "D is set by writes alone");
    assert!(!may_be_marked(marked, stranger, A | D));
    assert!(!may_be_marked(marked, PhysAddr::new(0x4900), A), "an entry that is not present");
    assert!(!may_be_marked(marked, PhysAddr::new(0x9000), A), "a frame that is no table");
    let unmarked = [0x2000 | ALL, 0x3000 | P | W | U, 0x4000 | ALL, 0x10000 | ALL];
    assert!(!may_be_marked(unmarked, stranger, A), "flags are set from the root down");
    assert!(may_be_marked(unmarked, ENTRIES[1], A));
}

#[test]
fn invpcid_drops_one_address_one_context_or_all_but_globals() {
    for (invalidation, stays) in [
        (Invalidation::Address(0, PAGE), false),
        (Invalidation::Address(0, SIBLING), true),
        (Invalidation::Address(1, PAGE), true),
        (Invalidation::Pcid(0), false),
        (Invalidation::Pcid(1), true),
        (Invalidation::AllButGlobals, false),
    ] {
        let mut world = world();
        world.write(ENTRIES[3], 0);
        world.invalidate(invalidation);
        assert_eq!(world.allows(PAGE, done(0x10000)), stays, "{invalidation:?}");
        // A global translation outlives all of them.
        let mut world = world_with([0x2000 | ALL, 0x3000 | ALL, 0x4000 | ALL, 0x10000 | ALL | G]);
        world.write(ENTRIES[3], 0);
        world.invalidate(invalidation);
        assert!(world.allows(PAGE, done(0x10000)), "{invalidation:?}");
    }
}
