//! Memory above 4 GiB: whether it is there, and holds what is written to it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::sys::mapping::{Mapping, PAGE_SIZE};

/// Pages that are touched: 8 MiB.
const PAGES: usize = 2048;
/// Page frames below 4 GiB.
const LOW_FRAMES: u64 = (4 << 30) / PAGE_SIZE as u64;

/// Touches fresh pages, most of which Linux takes from above 4 GiB if there is memory, and checks
/// what they hold.
///
/// # Errors
/// No page lies above 4 GiB, or one does not hold what was written.
pub fn touch() -> Result<()> {
    let mut fresh = Mapping::anonymous(PAGES)?;
    (0..PAGES).for_each(|page| fresh.write(page, value(page)));
    let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let first = fresh.address() / PAGE_SIZE;
    let mut high = 0;
    for page in 0..PAGES {
        high += usize::from(frame(&pagemap, first + page)? >= LOW_FRAMES);
        let found = fresh.read(page);
        ensure!(found == value(page), "page {page} holds {found:#x} instead of {:#x}", value(page));
    }
    ensure!(high > 0, "none of {PAGES} fresh pages lies above 4 GiB; give the machine more memory");
    println!("umbra-init: fresh pages above 4 GiB hold what was written");
    Ok(())
}

fn value(page: usize) -> u8 {
    (page % 251) as u8 + 1
}

/// The page frame number of a virtual page (Linux, Documentation/admin-guide/mm/pagemap.rst).
fn frame(pagemap: &File, page: usize) -> Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, page as u64 * 8).context("reading /proc/self/pagemap")?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry & PRESENT != 0, "a page that was just written is not present");
    Ok(entry & FRAME)
}
