//! Puts the guest into memory: kernel, initrd, boot parameters, firmware tables, page tables and
//! GDT, laid out as the hypervisor does it (Linux: Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol" and "32-bit Boot Protocol").

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, ensure};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use umbra_devices::{ACPI_TABLES_GPA, acpi_tables};
use umbra_telemetry::memory::CONVENTIONAL_END;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::cpu::Entry;

/// PML4, PDPT, four page directories.
const TABLES: u64 = 0x10000;
const TABLE_COUNT: u64 = 6;
const GDT: u64 = 0x16000;
const BOOT_PARAMS: u64 = 0x17000;
const STACK_TOP: u64 = 0x20000;
const COMMAND_LINE: u64 = 0x20000;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const MIB: u64 = 1 << 20;

/// The 64-bit entry point's distance from the start of the kernel. The 32-bit one lies at the
/// start.
const ENTRY_64_OFFSET: u64 = 0x200;
/// XLF_KERNEL_64 of `xloadflags`: there is a 64-bit entry point.
const KERNEL_64: u16 = 1 << 0;

/// Flat code segments of 64-bit and of 32-bit mode.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// Present, writable, accessed.
const TABLE_ENTRY: u64 = 0x23;
/// Present, writable, accessed, dirty, 2 MiB.
const LARGE_ENTRY: u64 = 0xe3;

/// A boot loader without an id of its own.
const UNDEFINED_LOADER: u8 = 0xff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Loads the guest and says how it starts.
///
/// # Errors
/// A file that cannot be read, is no bzImage or does not fit.
pub fn load(
    memory: &GuestMemoryMmap,
    size: u64,
    command_line: &str,
    kernel: &str,
    initrd: &str,
) -> Result<Entry> {
    let mut kernel_file = File::open(kernel).context(String::from(kernel))?;
    let header = BzImage::load(memory, None, &mut kernel_file, Some(GuestAddress(MIB)));
    let header = header.ok().and_then(|loaded| loaded.setup_header);
    // Loaded once to learn where it wants to be, and then there: it would copy itself otherwise.
    let preferred = header.with_context(|| format!("{kernel} is no bzImage"))?.pref_address;
    let loaded = BzImage::load(memory, Some(GuestAddress(preferred)), &mut kernel_file, None)
        .with_context(|| format!("loading {kernel}"))?;
    let mut header = loaded.setup_header.with_context(|| format!("{kernel} is no bzImage"))?;
    let is_64 = header.xloadflags & KERNEL_64 != 0;

    let mut initrd_bytes = Vec::new();
    File::open(initrd).context(String::from(initrd))?.read_to_end(&mut initrd_bytes)?;
    let start = size.saturating_sub((initrd_bytes.len() as u64).next_multiple_of(PAGE));
    ensure!(
        start > preferred + u64::from(header.init_size),
        "{initrd} does not fit into {size} bytes of memory"
    );
    memory.write_slice(&initrd_bytes, GuestAddress(start))?;

    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, GuestAddress(COMMAND_LINE))?;
    memory.write_slice(&acpi_tables(ACPI_TABLES_GPA), GuestAddress(ACPI_TABLES_GPA))?;

    header.type_of_loader = UNDEFINED_LOADER;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    header.ramdisk_image = start as u32;
    header.ramdisk_size = initrd_bytes.len() as u32;
    let mut parameters =
        boot_params { hdr: header, acpi_rsdp_addr: ACPI_TABLES_GPA, ..boot_params::default() };
    let regions = [
        (0..CONVENTIONAL_END, E820_RAM),
        (CONVENTIONAL_END..0xa_0000, E820_RESERVED),
        (ACPI_TABLES_GPA..MIB, E820_RESERVED),
        (MIB..size, E820_RAM),
    ];
    let mut table = parameters.e820_table;
    for (entry, (range, kind)) in table.iter_mut().zip(&regions) {
        *entry =
            boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: *kind };
    }
    parameters.e820_table = table;
    parameters.e820_entries = regions.len() as u8;
    memory.write_obj(parameters, GuestAddress(BOOT_PARAMS))?;

    if is_64 {
        write_tables(memory)?;
    }
    let gdt = [0u64, 0, if is_64 { CODE_64 } else { CODE_32 }, DATA];
    memory.write_obj(gdt, GuestAddress(GDT))?;
    Ok(Entry {
        cr3: is_64.then_some(TABLES),
        rip: preferred + if is_64 { ENTRY_64_OFFSET } else { 0 },
        rsp: STACK_TOP,
        rsi: BOOT_PARAMS,
        gdt: GDT,
        gdt_limit: (size_of_val(&gdt) - 1) as u16,
    })
}

/// Identity-maps the first 4 GiB.
fn write_tables(memory: &GuestMemoryMmap) -> Result<()> {
    let entry = |table: u64, index: u64| GuestAddress(TABLES + table * PAGE + 8 * index);
    memory.write_obj((TABLES + PAGE) | TABLE_ENTRY, entry(0, 0))?;
    for directory in 2..TABLE_COUNT {
        memory.write_obj((TABLES + directory * PAGE) | TABLE_ENTRY, entry(1, directory - 2))?;
        for index in 0..512 {
            let page = (directory - 2) * 512 + index;
            memory.write_obj((page * LARGE_PAGE) | LARGE_ENTRY, entry(directory, index))?;
        }
    }
    Ok(())
}
