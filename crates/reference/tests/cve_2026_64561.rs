//! CVE-2026-64561, stale check before quota reclaim: a page is looked up and found valid, then
//! pages are reclaimed to make room, and what was found is used although it is gone.
//!
//! Here what a fault has gone through is made the newest before anything is reclaimed for it, and
//! the entry's target is computed again afterwards (`crates/mmu/src/fault/map.rs`); roots are
//! pinned before their children are built (`lifecycle/load.rs`).

mod attack;

use attack::*;

/// More page tables than the pool has frames.
const TABLES: u64 = 60;
const FIRST: u64 = 0x40;

fn crowd() -> Judged {
    let mut tables = vec![(ROOT, 0, 0x14 << 12 | ALL), (0x14, 0, 0x15 << 12 | ALL)];
    for n in 0..TABLES {
        tables.push((0x15, n as usize, (FIRST + n) << 12 | ALL));
        tables.push((FIRST + n, 0, (0x80 + n) << 12 | ALL));
    }
    let addresses: Vec<u64> = (0..TABLES).map(|n| gva(0, 0, n, 0)).collect();
    let mut guest = Attack::new(&tables, &addresses, [0x14, 0x15]);
    // The tables on the way down were linked first and are not linked again, so they are the oldest
    // when the pool is full: the next page table is built at their expense, if anything is.
    for _ in 0..3 {
        for &address in &addresses {
            guest.read(address, true)?;
            guest.store(address, &[1], true)?;
        }
    }
    assert!(guest.met("mmu: reclaims in page_fault") > 20, "the pool must be too small");
    Ok(())
}

#[test]
fn what_a_fault_went_through_is_not_reclaimed_for_it() {
    crowd().unwrap();
}
