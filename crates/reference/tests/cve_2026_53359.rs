//! CVE-2026-53359, role confusion in child lookup: a shadow page that was built for a guest table
//! at one level, with one set of rights or as an identity map is linked where another is needed.
//!
//! Here a page is found by its whole `ShadowKey` only (`crates/mmu/src/format/key.rs`,
//! `guest/mod.rs`), and identity pages stand in other places than shadows of tables.

mod attack;

use attack::*;
use umbra_paging::AccessKind;
use umbra_reference::registers::Privileged;

/// The frame that is a table of every level at once, in a region that a large page maps too.
const SHARED: u64 = 0x15;

const AS_PDPT: u64 = gva(1, 0, 0, 0);
const AS_PD: u64 = gva(0, 0, 0, 0);
const AS_PT: u64 = gva(0, 1, 0, 0);
/// Of the second entry, which leads to no table, so that only the guest's rights decide.
const AS_PT_READ_ONLY: u64 = gva(0, 2, 0, 1);
const AS_PAGE: u64 = gva(0, 3, 0, 0);

fn confuse() -> Judged {
    let tables = vec![
        (ROOT, 0, 0x14 << 12 | ALL),
        (ROOT, 1, SHARED << 12 | ALL),
        (0x14, 0, SHARED << 12 | ALL),
        (0x14, 1, 0x16 << 12 | ALL),
        (0x14, 2, 0x17 << 12 | (ALL & !W)),
        (0x14, 3, 0x18 << 12 | ALL),
        (0x16, 0, SHARED << 12 | ALL),
        (0x17, 0, SHARED << 12 | ALL),
        (0x18, 0, 0x19 << 12 | ALL),
        (0x19, 0, SHARED << 12 | (ALL & !W)),
        // As a page directory it leads to 0x1a, as a page table it maps it.
        (SHARED, 0, 0x1a << 12 | (ALL & !D)),
        (SHARED, 1, 0x1d << 12 | ALL),
        (0x1a, 0, 0x1b << 12 | (ALL & !D) | NX),
        (0x1b, 0, 0x1c << 12 | ALL),
    ];
    let addresses = [AS_PDPT, AS_PD, AS_PT, AS_PT_READ_ONLY, AS_PAGE];
    let mut guest = Attack::new(&tables, &addresses, 0x14..0x1e);
    let everything = |guest: &mut Attack| {
        for user in [true, false] {
            for address in addresses {
                guest.access(address, AccessKind::Read, user)?;
                guest.access(address, AccessKind::Fetch, user)?;
                guest.store(address + 0x800, &[1], user)?;
            }
        }
        Judged::Ok(())
    };
    for (wp, nxe) in [(true, true), (false, true), (true, false), (false, false), (true, true)] {
        guest.execute(Privileged::Wp(wp))?;
        guest.execute(Privileged::Nxe(nxe))?;
        everything(&mut guest)?;
        // The shared table changes in all its roles at once.
        for entry in [0, 0x1a << 12 | (ALL & !U), 0x1b << 12 | ALL, 0x1a << 12 | ALL] {
            guest.set(SHARED, 0, entry)?;
            addresses.iter().try_for_each(|&address| guest.invlpg(address))?;
            everything(&mut guest)?;
        }
    }
    Ok(())
}

#[test]
fn a_table_of_every_level_and_role_is_shadowed_as_each() {
    confuse().unwrap();
}
