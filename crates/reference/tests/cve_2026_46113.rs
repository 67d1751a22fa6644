//! CVE-2026-46113, use after free by a stale or invalid role: a shadow page is zapped, or its role
//! is no longer valid, and something still leads to its frame when that holds another page.
//!
//! Here a role is never changed: another role is another page. A zapped page is unlinked from all
//! its parents, and its frame waits in quarantine for a flush (`crates/mmu/src/lifecycle/zap.rs`,
//! `tables/pool.rs`); handles carry a generation, and a root in use is pinned (`tables/pool.rs`,
//! `roots/mod.rs`).

mod attack;

use attack::*;
use umbra_paging::Gfn;
use umbra_reference::program::HostEvent;
use umbra_reference::registers::Privileged;

/// Page tables, one for each 2 MiB from 0 up, more than the pool has frames.
const TABLES: u64 = 64;
const FIRST: u64 = 0x40;
/// The page that all of them map, and another one.
const PAGES: [u64; 2] = [0x1b, 0x1c];

fn reuse() -> Judged {
    let mut tables = vec![(ROOT, 0, 0x14 << 12 | ALL), (0x14, 0, 0x15 << 12 | ALL)];
    for n in 0..TABLES {
        tables.push((0x15, n as usize, (FIRST + n) << 12 | ALL));
        tables.push((FIRST + n, 0, PAGES[0] << 12 | ALL));
    }
    tables.push((FIRST + 1, 0, PAGES[0] << 12 | (ALL & !W)));
    // A second root with the same tables and the window.
    tables.push((0x20, 0, 0x14 << 12 | ALL));
    tables.push((0x20, 256, (ROOT + 1) << 12 | P | W | A));
    let at = |n: u64| gva(0, 0, n, 0);
    let addresses: Vec<u64> = (0..TABLES).map(at).collect();
    let mut guest = Attack::new(&tables, &addresses, [0x14, 0x15, 0x1b, 0x1c, FIRST, FIRST + 1]);
    for round in 0..3 {
        let crowd = |guest: &mut Attack| (2..TABLES).try_for_each(|n| guest.read(at(n), true));
        // Shadows of the first table in two roles, of which one is then out of use.
        guest.read(at(0), true)?;
        guest.execute(Privileged::Wp(false))?;
        guest.read(at(0), true)?;
        // Only WP = 0 allows it: the role is invalid as soon as WP is set again.
        guest.store(at(1), &[1], false)?;
        guest.execute(Privileged::Wp(true))?;
        guest.store(at(1), &[2], false)?;
        // Freed while it may be cached, its frame is data at once, and other pages need shadow
        // frames.
        guest.set(0x15, 0, 0)?;
        guest.poke(FIRST << 12, &(PAGES[1] << 12 | ALL).to_le_bytes())?;
        crowd(&mut guest)?;
        guest.read(at(0), true)?;
        // It is a table again, in the roles that it had.
        guest.set(0x15, 0, FIRST << 12 | ALL)?;
        guest.read(at(0), true)?;
        guest.execute(Privileged::Wp(false))?;
        guest.read(at(0), true)?;
        // The root that was in use is left, and so is what it led to.
        guest.load_root(if round == 0 { 0x20 } else { ROOT })?;
        crowd(&mut guest)?;
        guest.execute(Privileged::Wp(true))?;
        guest.host(HostEvent::ZapAll)?;
        guest.host(HostEvent::Remap(Gfn::new(PAGES[1])))?;
        guest.read(at(0), true)?;
        guest.execute(Privileged::Paging(false))?;
        guest.execute(Privileged::Paging(true))?;
        guest.set(FIRST, 0, PAGES[0] << 12 | ALL)?;
        guest.invlpg(at(0))?;
    }
    assert!(guest.met("mmu: shadow pages reclaimed") > 100, "without reclaim nothing is reused");
    Ok(())
}

#[test]
fn shadows_of_freed_tables_and_unused_roles_lead_nowhere() {
    reuse().unwrap();
}
