//! Moves the image to its final place, under the final page tables.
//!
//! Virtual addresses do not change, so no pointer has to be adjusted: the image is copied, and
//! loading CR3 turns to the copy.

use core::arch::asm;
use core::ops::Range;

use umbra_machine::memory::{FRAME, Layout};

use crate::hw::image;
use crate::hw::phys::{self, BOOT_MAP_END, DIRECT_MAP, DirectMap, Unused};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE_PAGE: u64 = 2 << 20;

/// Page tables under construction. No entry has NX: EFER.NXE is the guest's while the hypervisor
/// runs.
struct Tables<'a> {
    map: &'a DirectMap,
    free: Range<u64>,
    root: u64,
}

impl Tables<'_> {
    fn frame(&mut self) -> u64 {
        let frame = self.free.start;
        assert!(frame + FRAME <= self.free.end, "the layout leaves room for page tables");
        self.free.start += FRAME;
        // SAFETY: a free frame of the layout.
        unsafe { self.map.zero(frame..frame + FRAME) };
        frame
    }

    fn read(&self, slot: u64) -> u64 {
        // SAFETY: an entry of a table from `frame`.
        unsafe { self.map.read(slot) }
    }

    fn write(&mut self, slot: u64, entry: u64) {
        // SAFETY: an entry of a table from `frame`; the CPU does not use the tables yet.
        unsafe { self.map.write(slot, entry) }
    }

    /// The table below the entry for `va` of `table`, whose entries map `1 << shift` bytes each.
    fn below(&mut self, table: u64, va: u64, shift: u32) -> u64 {
        let slot = table + ((va >> shift) & 511) * 8;
        match self.read(slot) {
            0 => {
                let next = self.frame();
                self.write(slot, next | PRESENT | WRITE);
                next
            }
            entry => entry & ADDRESS,
        }
    }

    fn page_directory(&mut self, va: u64) -> u64 {
        let pdpt = self.below(self.root, va, 39);
        self.below(pdpt, va, 30)
    }

    fn map_large(&mut self, va: u64, hpa: u64) {
        let slot = self.page_directory(va) + ((va >> 21) & 511) * 8;
        self.write(slot, hpa | PRESENT | WRITE | LARGE);
    }

    fn map_small(&mut self, va: u64, hpa: u64, write: u64) {
        let directory = self.page_directory(va);
        let slot = self.below(directory, va, 21) + ((va >> 12) & 511) * 8;
        self.write(slot, hpa | PRESENT | write);
    }
}

/// Moves the image to where the layout has it, with page tables from the start of the heap; returns
/// what is left of the heap. The direct map then reaches to the end of the guest's memory, and to
/// 4 GiB in any case: RAM, and devices below that. Called once.
///
/// The old image is wiped, as the guest gets its memory.
pub fn relocate(map: &DirectMap, layout: &Layout) -> Unused {
    let (to, free, end) = (layout.image(), layout.heap(), layout.above().end);
    let mapped = end.max(BOOT_MAP_END).next_multiple_of(LARGE_PAGE);
    let mut tables = Tables { map, free, root: 0 };
    tables.root = tables.frame();
    (0..mapped)
        .step_by(LARGE_PAGE as usize)
        .for_each(|hpa| tables.map_large(DIRECT_MAP + hpa, hpa));
    let linked = image::virtual_range();
    for va in linked.clone().step_by(FRAME as usize).filter(|va| *va != image::stack_guard()) {
        let write = if image::is_writable(va) { WRITE } else { 0 };
        tables.map_small(va, to.start + (va - linked.start), write);
    }
    let length = linked.end - linked.start;
    let from = image::physical_start()..image::physical_start() + length;
    // SAFETY: `to` is unused memory above the guest (the contract of `Layout`), and the tables map
    // the image's virtual addresses to it. Between copy and switch nothing is written: the copy
    // includes this very stack.
    unsafe {
        asm!(
            "rep movsb",
            "mov cr3, {root}",
            root = in(reg) tables.root,
            inout("rcx") length => _,
            inout("rsi") map.pointer(from.start) => _,
            inout("rdi") map.pointer(to.start) => _,
            options(nostack, preserves_flags),
        );
    }
    image::set_physical_start(to.start);
    // SAFETY: the tables that were just loaded map as much.
    unsafe { phys::set_direct_map_end(mapped) };
    // SAFETY: nothing refers to the old image any more: it was reachable through the old page
    // tables only.
    unsafe { map.zero(from) };
    // SAFETY: the layout gives the heap's memory to nobody else, and the tables took from its
    // start.
    unsafe { Unused::new(tables.free) }
}
