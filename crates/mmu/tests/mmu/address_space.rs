//! Address spaces that no vCPU runs in, and those that have just come into use.

use crate::common::*;
use umbra_mmu::{FaultOutcome, Mmu, Work};
use umbra_paging::{Access, bits};

const ALL: u64 = P | W | U | A | D;
/// The root of another address space; its tables are in the frames behind.
const OTHER: u64 = 20;
/// Where the other space's page table shows to the kernel of the first.
const SHOWN: u64 = 65 << 12;

/// Two address spaces that share what lies from table 2 on in their upper halves; the second was in
/// use, the first is.
fn two_spaces() -> (Machine, Mmu) {
    let mut machine = Machine::new(2048, 128);
    machine.chain();
    machine.poke(1, 256, 2 << 12 | ALL);
    (OTHER..OTHER + 3).for_each(|table| machine.poke(table, 0, (table + 1) << 12 | ALL));
    machine.poke(OTHER + 3, 0, 100 << 12 | ALL);
    machine.poke(OTHER, 256, 2 << 12 | ALL);
    machine.poke(4, 0, 99 << 12 | ALL);
    machine.poke(4, 65, (OTHER + 3) << 12 | ALL & !U);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    for root in [OTHER, 1] {
        mmu.load_paging(&mut machine, VCPU, paging(root));
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        settle(&mut machine, &mut mmu, 0xffff_8000_0000_0000, Access::user_read());
    }
    (machine, mmu)
}

#[test]
fn the_tables_of_a_space_that_is_thrown_away_are_detached_together() {
    let (mut machine, mut mmu) = two_spaces();
    let outcome = fault_by(&mut machine, &mut mmu, 0x1000, SHOWN, supervisor_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    // Root, two levels, page table; not what the space in use has, too.
    assert_eq!(mmu.counters().detached, 4);
    assert!(matches!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 99, .. }));

    // It was not thrown away: the guest goes on in it.
    machine.poke(OTHER + 3, 0, 101 << 12 | ALL);
    mmu.load_paging(&mut machine, VCPU, paging(OTHER));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    assert!(matches!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 101, .. }));
    mmu.audit(&machine).unwrap();
}

#[test]
fn tables_that_only_the_space_leads_to_go_with_it() {
    let (mut machine, mut mmu) = two_spaces();
    mmu.load_paging(&mut machine, VCPU, paging(OTHER));
    // Two of its own, one that the other space has, and a large page that is split.
    for (index, entry) in (1..).zip([40 << 12, 41 << 12, 4 << 12, bits::PS]) {
        store(&mut machine, &mut mmu, OTHER + 2, index, entry | ALL);
    }
    [40, 41].into_iter().for_each(|table| machine.poke(table, 0, 102 << 12 | ALL));
    (1..5).for_each(|n| settle(&mut machine, &mut mmu, n << 21, Access::user_read()));
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let outcome = fault_by(&mut machine, &mut mmu, 0x1000, SHOWN, supervisor_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    // Root, two levels, three page tables.
    assert_eq!(mmu.counters().detached, 6);
    assert!(matches!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 99, .. }));
}

#[test]
fn a_table_that_the_space_in_use_leads_to_is_not_idle() {
    let (mut machine, mut mmu) = two_spaces();
    machine.poke(4, 66, 4 << 12 | ALL & !U);
    settle(&mut machine, &mut mmu, 66 << 12, Access::supervisor_read());
    let outcome = fault_by(&mut machine, &mut mmu, 0x1000, 66 << 12, supervisor_write());
    assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
    assert_eq!(mmu.counters().detached, 0);
}

/// With page-table isolation the kernel runs on one root and its process on the next frame's.
#[test]
fn the_twin_of_the_root_in_use_is_in_use() {
    let (mut machine, mut mmu) = two_spaces();
    store(&mut machine, &mut mmu, OTHER ^ 1, 1, 2 << 12 | ALL);
    mmu.load_paging(&mut machine, VCPU, paging(OTHER ^ 1));
    let shown = 1 << 39 | SHOWN;
    settle(&mut machine, &mut mmu, shown, Access::supervisor_read());
    let outcome = fault_by(&mut machine, &mut mmu, 0x1000, shown, supervisor_write());
    assert!(!matches!(outcome, FaultOutcome::Resume(Work::Detach)), "{outcome:?}");
    assert_eq!(mmu.counters().detached, 0);
}

/// The same where the root in use is the even one, and that of another process beside.
#[test]
fn the_twin_of_the_even_root_in_use_is_in_use() {
    for (root, is_twin) in [(30, true), (40, false)] {
        let mut machine = Machine::new(2048, 128);
        machine.chain();
        (31..34).for_each(|table| machine.poke(table, 0, (table + 1) << 12 | ALL));
        machine.poke(34, 0, 100 << 12 | ALL);
        machine.poke(root, 0, 2 << 12 | ALL);
        machine.poke(4, 65, 34 << 12 | ALL & !U);
        let mut mmu = Mmu::new(config(), &mut machine).unwrap();
        mmu.load_paging(&mut machine, VCPU, paging(31));
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        mmu.load_paging(&mut machine, VCPU, paging(root));
        settle(&mut machine, &mut mmu, SHOWN, Access::supervisor_read());
        let outcome = fault_by(&mut machine, &mut mmu, 0x1000, SHOWN, supervisor_write());
        let is_detached = outcome == FaultOutcome::Resume(Work::Detach);
        assert_eq!(is_detached, !is_twin, "{root}: {outcome:?}");
    }
}

#[test]
fn tables_of_a_space_that_comes_into_use_are_linked_ahead() {
    let exits = |ahead| {
        let mut machine = Machine::new(2048, 128);
        machine.chain();
        machine.poke(4, 0, 99 << 12 | ALL);
        machine.poke(1, 3, OTHER << 12 | ALL);
        machine.poke(OTHER, 7, (OTHER + 1) << 12 | ALL);
        machine.poke(OTHER + 1, 9, (OTHER + 2) << 12 | ALL);
        machine.poke(OTHER + 2, 0, 100 << 12 | ALL);
        machine.poke(1, 300, OTHER << 12 | ALL);
        let mut mmu =
            Mmu::new(config_with(|config| config.prefetch_tables = ahead), &mut machine).unwrap();
        mmu.load_paging(&mut machine, VCPU, paging(1));
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        mmu.audit(&machine).unwrap();
        let gva = 3 << 39 | 7 << 30 | 9 << 21;
        // The upper half is the kernel's, and not touched.
        assert_eq!(
            hardware(&machine, &mmu, 0xffff << 48 | 300 << 39 | 7 << 30 | 9 << 21),
            Seen::Reserved
        );
        hardware(&machine, &mmu, gva)
    };
    assert!(matches!(exits(true), Seen::Page { gfn: 100, .. }));
    assert_eq!(exits(false), Seen::Reserved);
}

#[test]
fn nothing_is_linked_ahead_in_a_space_that_is_in_use() {
    let mut machine = Machine::new(2048, 128);
    machine.chain();
    machine.poke(4, 0, 99 << 12 | ALL);
    machine.poke(4, 1, 98 << 12 | ALL & !A);
    let mut mmu =
        Mmu::new(config_with(|config| config.prefetch_tables = true), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    store(&mut machine, &mut mmu, 1, 3, OTHER << 12 | ALL);
    let built = mmu.counters().built;
    settle(&mut machine, &mut mmu, 0x1000, Access::user_read());
    assert_eq!(mmu.counters().built, built, "no table was linked, but a page mapped");
}

#[test]
fn nothing_is_reclaimed_for_tables_linked_ahead() {
    let pool = umbra_mmu::MIN_FRAMES_PER_VCPU as usize;
    let mut machine = Machine::new(2048, pool);
    machine.chain();
    machine.poke(4, 0, 99 << 12 | ALL);
    for n in 0..200 {
        machine.poke(1, 1 + n, OTHER << 12 | ALL);
        machine.poke(OTHER, n, (300 + n as u64) << 12 | ALL);
    }
    let mut mmu =
        Mmu::new(config_with(|config| config.prefetch_tables = true), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    assert_eq!(mmu.counters().reclaimed, 0);
    mmu.audit(&machine).unwrap();
}

/// A guest can make every entry that there is lead to one table: neither the table's references nor
/// what lies below them is followed without end.
#[test]
fn a_table_that_thousands_of_entries_reference_is_not_searched_for() {
    let mut machine = Machine::new(2048, 128);
    machine.chain();
    machine.poke(4, 0, 60 << 12 | ALL);
    machine.poke(4, 1, 61 << 12 | ALL);
    machine.poke(OTHER, 0, (OTHER + 1) << 12 | ALL);
    for n in 0..20 {
        machine.poke(OTHER + 1, n as usize, (30 + n) << 12 | ALL);
        (0..511).for_each(|index| machine.poke(30 + n, index, 60 << 12 | ALL));
        machine.poke(30 + n, 511, 61 << 12 | ALL);
    }
    machine.poke(60, 0, 9 << 12 | ALL);
    machine.poke(61, 0, 9 << 12 | ALL);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(OTHER));
    for n in 0..20 {
        settle(&mut machine, &mut mmu, n << 30, Access::user_read());
        settle(&mut machine, &mut mmu, n << 30 | 511 << 21, Access::user_read());
    }
    mmu.load_paging(&mut machine, VCPU, paging(1));
    for gva in [0, 1 << 12] {
        settle(&mut machine, &mut mmu, gva, Access::user_read());
    }
    // Table 60 has ten thousand references, so it counts as in use.
    let outcome = fault_by(&mut machine, &mut mmu, 0x1000, 0, user_write());
    assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
    // Table 61 has twenty, and goes with the 22 above it; but not table 60, which is below them,
    // too.
    let outcome = fault_by(&mut machine, &mut mmu, 0x2000, 1 << 12, user_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    assert_eq!(mmu.counters().detached, 23);
}
