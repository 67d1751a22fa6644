//! The boot parameters, "zero page" (Linux, Documentation/arch/x86/zero-page.rst).

use alloc::vec::Vec;

use umbra_bzimage::{HEADER_START, SetupHeader};
use umbra_paging::{Gpa, PAGE_SIZE};

use super::Guest;
use crate::memory::memory_map;

/// Places of fields, from the start of the page.
mod field {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const E820_TABLE: usize = 0x2d0;
}

/// A boot loader without an id of its own.
const UNDEFINED_LOADER: u8 = 0xff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Builds the page.
pub fn build(
    header: &SetupHeader<'_>,
    guest: &Guest<'_>,
    initrd: Option<Gpa>,
    command_line: Gpa,
) -> Vec<u8> {
    let mut page = alloc::vec![0; PAGE_SIZE as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(HEADER_START, header.bytes);
    put(field::TYPE_OF_LOADER, &[UNDEFINED_LOADER]);
    // All addresses lie below 4 GiB: they are within guest RAM below the hole.
    put(field::CMD_LINE_PTR, &(command_line.raw() as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        put(field::RAMDISK_IMAGE, &(initrd.raw() as u32).to_le_bytes());
        put(field::RAMDISK_SIZE, &(guest.initrd_size as u32).to_le_bytes());
    }
    put(field::ACPI_RSDP_ADDR, &guest.rsdp.raw().to_le_bytes());

    let regions = memory_map(&guest.ram, &guest.above);
    put(field::E820_ENTRIES, &[regions.len() as u8]);
    for (index, (range, usable)) in regions.into_iter().enumerate() {
        let at = field::E820_TABLE + index * 20;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &(range.end - range.start).to_le_bytes());
        let kind = if usable { E820_RAM } else { E820_RESERVED };
        put(at + 16, &kind.to_le_bytes());
    }
    page
}
