//! What the hardware can reach: everything below the loaded roots, and everything that is cached.
//! An auditor that knows nothing of the MMU's bookkeeping, only of formats, and of who owns which
//! host frame. It also looks at what the hardware can reach only speculatively.

use std::collections::BTreeSet;

use super::host::Host;
use crate::hardware::{Control, PagingMode, Rights, Start, Visit, step_at};
use crate::memory::{PhysAddr, PhysicalMemory};

/// Checks that every table which the CPU can reach is a shadow frame, and every page memory of the
/// guest.
///
/// # Errors
/// One that is not.
pub(super) fn check(host: &Host, cpu: usize, control: &Control) -> Result<(), String> {
    let (mut pages, mut seen) = (Vec::new(), BTreeSet::new());
    let mut tables = roots(control);
    // What is cached counts as well, unless a flush comes before the CPU's next instruction.
    if !host.cpu(cpu).owed {
        let caches = host.cpu(cpu).unit.caches();
        tables.extend(caches.structures().iter().map(|entry| entry.next));
        pages.extend(caches.translations().iter().map(|entry| entry.page));
    }
    while let Some(start) = tables.pop() {
        if !seen.insert((start.table, start.level, start.rights.writable)) {
            continue;
        }
        if !host.is_shadow(start.table) {
            return Err(format!(
                "a table of level {} at {:?} is no shadow frame",
                start.level, start.table
            ));
        }
        for index in 0..512 {
            let Ok(visit) = step_at(host.ram(), control, index, start) else {
                not_memory(host, control, start, index)?;
                continue;
            };
            write_back(&visit)?;
            match visit.page() {
                Some(page) => pages.push(page),
                None => tables.push(visit.next()),
            }
        }
    }
    for page in pages {
        let frames = 1 << (9 * (u32::from(page.level) - 1));
        let base = page.base.raw();
        for at in (0..frames).map(|n| PhysAddr::new(base + n * 4096)) {
            host.guest_address(at, page.rights.writable)
                .map_err(|why| format!("within reach, page of level {}: {why}", page.level))?;
        }
    }
    Ok(())
}

/// Checks that an entry chooses the memory type write-back, whatever the guest's says: all of its
/// memory is that (SDM, "Memory Type Range Registers and Page Attribute Table").
fn write_back(visit: &Visit) -> Result<(), String> {
    const PWT_PCD: u64 = 0b11 << 3;
    let pat = match (visit.level, visit.page()) {
        (1, _) => 1 << 7,
        (_, Some(_)) => 1 << 12,
        _ => 0,
    };
    if visit.entry & (PWT_PCD | pat) == 0 {
        return Ok(());
    }
    Err(format!("the entry {:#x} of level {} chooses a memory type", visit.entry, visit.level))
}

/// Checks that an entry which ends a walk names no memory of the host: a terminal fault may load
/// from there all the same (L1TF).
fn not_memory(host: &Host, control: &Control, start: Start, index: u64) -> Result<(), String> {
    let entry = host.ram().read(PhysAddr::new(start.table.raw() + 8 * index));
    let named = PhysAddr::new(entry & 0x000f_ffff_ffff_f000 & ((1 << control.maxphyaddr) - 1));
    if !host.ram().contains(named) {
        return Ok(());
    }
    Err(format!("the entry {entry:#x}, which maps nothing, names memory of the host (L1TF)"))
}

fn roots(control: &Control) -> Vec<Start> {
    match control.mode {
        PagingMode::Off => Vec::new(),
        PagingMode::Long4 { root } => vec![Start { table: root, level: 4, rights: Rights::FULL }],
        PagingMode::Legacy32 { .. } => unreachable!("shadow tables have entries of 8 bytes"),
        PagingMode::Pae { pdptes } => pdptes
            .iter()
            .filter(|&pdpte| pdpte & 1 != 0)
            .map(|pdpte| {
                let table = PhysAddr::new(pdpte & 0x000f_ffff_ffff_f000);
                Start { table, level: 2, rights: Rights::FULL }
            })
            .collect(),
    }
}
