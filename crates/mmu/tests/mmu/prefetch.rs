//! Accessed bits set ahead: only where faults come in order, and only in entries like those at
//! fault.

use crate::common::*;
use umbra_mmu::{Config, FaultOutcome, FilterPolicy, Mmu};
use umbra_paging::{Access, bits};

/// A page of a forked process: of user mode, read-only, not accessed since.
const FORKED: u64 = P | U;

fn start(filter: FilterPolicy, fill: impl Fn(u64) -> u64) -> (Machine, Mmu) {
    start_with(|config| config.filter = filter, fill)
}

fn start_with(change: impl FnOnce(&mut Config), fill: impl Fn(u64) -> u64) -> (Machine, Mmu) {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    // The first page of a table links it.
    machine.poke(4, 0, 100 << 12 | P | U | A);
    (1..512).for_each(|n| machine.poke(4, n as usize, fill(n)));
    let mut mmu = Mmu::new(config_with(change), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    (machine, mmu)
}

fn forked(n: u64) -> u64 {
    (100 + n) << 12 | FORKED
}

/// User mode writes these pages in turn: which pages are marked as accessed by that.
fn marked(
    machine: &mut Machine,
    mmu: &mut Mmu,
    access: Access,
    pages: impl IntoIterator<Item = u64>,
) -> Vec<u64> {
    for page in pages {
        let outcome = fault(machine, mmu, page << 12, access);
        assert!(matches!(outcome, FaultOutcome::Guest(_)), "page {page}: {outcome:?}");
    }
    (1..512).filter(|&n| machine.peek(4, n as usize).accessed()).collect()
}

#[test]
fn the_third_fault_in_order_marks_what_follows() {
    let (mut machine, mut mmu) = start(FilterPolicy::Auto, forked);
    assert_eq!(marked(&mut machine, &mut mmu, user_write(), [1, 2]), []);
    let next: Vec<u64> = (4..4 + 32).collect();
    assert_eq!(marked(&mut machine, &mut mmu, user_write(), [3]), next, "and not those at fault");
    for &page in &next {
        let seen = Seen::Page { gfn: 100 + page, user: true, write: false };
        assert_eq!(hardware(&machine, &mmu, page << 12), seen, "the CPU delivers the fault");
    }
    assert_eq!(hardware(&machine, &mmu, 36 << 12), Seen::Reserved);
    // The next fault that exits comes behind them.
    assert_eq!(
        marked(&mut machine, &mut mmu, user_write(), [36]),
        (4..36).chain(37..69).collect::<Vec<_>>()
    );
}

#[test]
fn nothing_is_marked_if_that_is_switched_off() {
    let off = |config: &mut Config| {
        (config.filter, config.prefetch_accessed) = (FilterPolicy::Auto, false)
    };
    let (mut machine, mut mmu) = start_with(off, forked);
    assert_eq!(marked(&mut machine, &mut mmu, user_write(), 1..20), []);
}

#[test]
fn the_end_of_the_table_is_the_end() {
    let (mut machine, mut mmu) = start(FilterPolicy::User, forked);
    assert_eq!(
        marked(&mut machine, &mut mmu, user_write(), [500, 501, 502]),
        (503..512).collect::<Vec<_>>()
    );
    assert_eq!(
        marked(&mut machine, &mut mmu, user_write(), [1, 2]),
        (503..512).collect::<Vec<_>>()
    );
}

#[test]
fn nothing_is_marked_out_of_order() {
    for pages in
        [[1, 3, 5, 7, 9, 11], [9, 8, 7, 6, 5, 4], [1, 2, 1, 2, 1, 2], [5, 6, 9, 10, 20, 21]]
    {
        let (mut machine, mut mmu) = start(FilterPolicy::Auto, forked);
        assert_eq!(marked(&mut machine, &mut mmu, user_write(), pages), [], "{pages:?}");
    }
}

/// Faults of other kinds, and a guest that nothing is to go around the hypervisor for but
/// not-present faults.
#[test]
fn other_faults_mark_nothing() {
    let (mut machine, mut mmu) = start(FilterPolicy::Present, forked);
    assert_eq!(marked(&mut machine, &mut mmu, user_write(), 1..20), []);
    let (mut machine, mut mmu) = start(FilterPolicy::Auto, |n| (100 + n) << 12 | P | U | bits::NX);
    let fetch = Access::user_read().with_kind(umbra_paging::AccessKind::Fetch);
    assert_eq!(marked(&mut machine, &mut mmu, fetch, 1..20), []);
    let (mut machine, mut mmu) = start(FilterPolicy::Auto, forked);
    assert_eq!(marked(&mut machine, &mut mmu, supervisor_write(), 1..20), []);
    let (mut machine, mut mmu) = start(FilterPolicy::Auto, |n| (100 + n) << 12 | P | W);
    assert_eq!(marked(&mut machine, &mut mmu, user_write(), 1..20), []);
    let (mut machine, mut mmu) = start(FilterPolicy::Auto, |n| (100 + n) << 12 | P | U | 1 << 45);
    assert_eq!(marked(&mut machine, &mut mmu, user_write(), 1..20), []);
}

/// Of the entries ahead only those are marked whose page user mode can read, and not write.
#[test]
fn only_entries_of_the_same_kind_are_marked() {
    let kinds = |n: u64| {
        let page = (100 + n) << 12;
        match n {
            5 => page | P | W | U,
            6 => page | P,
            7 => page | U,
            8 => page | FORKED | 1 << 45,
            9 => 0,
            10 => 2000 << 12 | FORKED,
            11 => 77 << 40 | FORKED,
            12 => page | FORKED | bits::NX,
            13 => page | P | W | U | D,
            _ => page | FORKED,
        }
    };
    let (mut machine, mut mmu) = start(FilterPolicy::Auto, kinds);
    mmu.revoke(&mut machine, umbra_paging::Gfn::new(2000)..umbra_paging::Gfn::new(2001));
    machine.holes.push(2000);
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    let before: Vec<u64> = (0..512).map(|n| machine.peek(4, n).raw()).collect();
    let found = marked(&mut machine, &mut mmu, user_write(), [1, 2, 3]);
    assert_eq!(found, [4, 12].into_iter().chain(14..36).collect::<Vec<_>>());
    for (n, before) in before.into_iter().enumerate() {
        let after = machine.peek(4, n).raw();
        assert_eq!(after & !A, before & !A, "entry {n}: nothing but A is set");
    }
}

/// Other entries, or none, by the time the fault comes: what is not tracked is left alone.
#[test]
fn a_table_that_is_not_followed_is_not_marked() {
    let (mut machine, mut mmu) = start(FilterPolicy::Auto, forked);
    mmu.release_frame(&mut machine, umbra_paging::Gfn::new(4));
    for page in 1..4 {
        machine.poke(4, page as usize, forked(page));
    }
    let found = marked(&mut machine, &mut mmu, user_write(), [1, 2]);
    assert_eq!(found, []);
}
