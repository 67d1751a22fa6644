//! What the kernel finds at its entry point: a GDT, its command line, a stack; at the 64-bit one
//! page tables, too (boot.rst, "64-bit Boot Protocol", "32-bit Boot Protocol"). All of it lies in
//! conventional memory.

use alloc::vec::Vec;

use umbra_bzimage::SetupHeader;
use umbra_paging::{Gpa, PAGE_SIZE};

use umbra_vcpu::entry::{Entry, Gdt, Mode};

/// __BOOT_CS: a flat code segment.
const CODE_SELECTOR: u16 = 0x10;
/// __BOOT_DS: a flat data segment.
const DATA_SELECTOR: u16 = 0x18;
/// GDTR limit.
const GDT_LIMIT: u16 = 4 * 8 - 1;

/// PML4, PDPT, four page directories.
const TABLES: u64 = 0x10000;
const TABLE_COUNT: u64 = 6;
const GDT: u64 = 0x16000;
const BOOT_PARAMS: u64 = 0x17000;
const STACK_TOP: u64 = 0x20000;
/// Where the command line goes: up to 64 KiB, which is more than a kernel takes.
pub const COMMAND_LINE: Gpa = Gpa::new(0x20000);

/// The 64-bit entry point's distance from the start of the kernel, which is the 32-bit one.
const ENTRY_OFFSET: u64 = 0x200;

const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;

/// Present, writable, accessed.
const TABLE_ENTRY: u64 = 0x23;
/// Present, writable, accessed, dirty, 2 MiB.
const LARGE_ENTRY: u64 = 0xe3;
const LARGE_PAGE: u64 = 2 << 20;

/// The bytes for memory, and the state of the CPU, for a kernel loaded where it prefers.
pub fn build(header: &SetupHeader<'_>, command_line: &str) -> (Vec<(Gpa, Vec<u8>)>, Entry) {
    let kernel = header.preferred_address;
    let code = if header.entry_64 { CODE_64 } else { CODE_32 };
    let mut command_line = command_line.as_bytes().to_vec();
    command_line.push(0);
    let mut writes =
        alloc::vec![(Gpa::new(GDT), words(&[0, 0, code, DATA])), (COMMAND_LINE, command_line)];
    if header.entry_64 {
        writes.push((Gpa::new(TABLES), words(&identity_tables())));
    }
    let entry = Entry {
        mode: if header.entry_64 { Mode::Long { cr3: TABLES } } else { Mode::Protected },
        rip: if header.entry_64 { kernel + ENTRY_OFFSET } else { kernel },
        rsp: STACK_TOP,
        rax: 0,
        rbx: 0,
        rsi: BOOT_PARAMS,
        gdt: Gdt {
            base: Gpa::new(GDT),
            limit: GDT_LIMIT,
            code: CODE_SELECTOR,
            data: DATA_SELECTOR,
        },
    };
    (writes, entry)
}

/// Tables for the first 4 GiB, one to one.
fn identity_tables() -> Vec<u64> {
    let mut tables: Vec<u64> = alloc::vec![0; (TABLE_COUNT * PAGE_SIZE / 8) as usize];
    let (upper, directories) = tables.split_at_mut(2 * 512);
    upper[0] = (TABLES + PAGE_SIZE) | TABLE_ENTRY;
    for (entry, table) in upper[512..].iter_mut().zip(2..TABLE_COUNT) {
        *entry = (TABLES + table * PAGE_SIZE) | TABLE_ENTRY;
    }
    for (entry, page) in directories.iter_mut().zip(0..) {
        *entry = (page * LARGE_PAGE) | LARGE_ENTRY;
    }
    tables
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
