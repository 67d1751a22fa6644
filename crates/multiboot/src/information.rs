//! What the kernel is told (specification, "Boot information format"), and its first descriptor
//! table.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use umbra_paging::Gpa;

/// EAX at the entry point.
pub const MAGIC: u32 = 0x2bad_b002;

/// A flat 32-bit code segment.
pub const CODE_SELECTOR: u16 = 0x08;
/// A flat data segment.
pub const DATA_SELECTOR: u16 = 0x10;
/// GDTR limit.
pub const GDT_LIMIT: u16 = 3 * 8 - 1;
const GDT: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// A kernel may use a stack before it sets up its own, though it should not.
const STACK: u64 = 4096;

const LOADER_NAME: &str = "umbra";

/// Bytes of the information, of a module's entry, and of an entry of the memory map.
const INFORMATION: u64 = 88;
const MODULE: u64 = 16;
const REGION: u64 = 24;

const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Flags: which fields are there.
mod flag {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// An area of guest-physical memory for the memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// From here to there, in bytes.
    pub range: Range<u64>,
    /// RAM that the guest may use; otherwise it is reserved.
    pub usable: bool,
}

/// A file that the kernel gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    /// Its bytes.
    pub size: u64,
    /// Its string.
    pub command_line: &'a str,
}

/// What `build` tells.
pub struct Contents<'a> {
    pub command_line: &'a str,
    /// Each with the place where it is; everything is below 4 GiB.
    pub modules: Vec<(Range<u64>, &'a str)>,
    pub memory: &'a [Region],
}

/// Where the parts of the block are, from its start.
struct Layout {
    gdt: u64,
    information: u64,
    modules: u64,
    memory_map: u64,
    strings: u64,
}

/// The block that a kernel finds in conventional memory: stack, GDT, information.
pub struct Block {
    pub bytes: Vec<u8>,
    pub stack_top: u32,
    pub gdt: Gpa,
    pub information: u32,
}

impl Contents<'_> {
    fn layout(&self) -> Layout {
        let gdt = STACK;
        let information = gdt + 32;
        let modules = information + INFORMATION;
        let memory_map = modules + self.modules.len() as u64 * MODULE;
        Layout {
            gdt,
            information,
            modules,
            memory_map,
            strings: memory_map + self.memory.len() as u64 * REGION,
        }
    }

    /// Strings in the order in which they lie in the block.
    fn strings(&self) -> impl Iterator<Item = &str> {
        [LOADER_NAME, self.command_line]
            .into_iter()
            .chain(self.modules.iter().map(|(_, string)| *string))
    }

    /// Bytes of the block.
    pub fn size(&self) -> u64 {
        self.layout().strings + self.strings().map(|string| string.len() as u64 + 1).sum::<u64>()
    }

    /// KiB of memory from `start` up, without holes.
    fn memory_kib(&self, start: u64) -> u32 {
        let region =
            self.memory.iter().find(|region| region.usable && region.range.contains(&start));
        region.map_or(0, |region| {
            u32::try_from((region.range.end - start) / 1024).unwrap_or(u32::MAX)
        })
    }

    /// The block at `start`. All of it must lie below 4 GiB.
    pub fn build(&self, start: u64) -> Block {
        let layout = self.layout();
        let at = |offset: u64| (start + offset) as u32;
        let mut text: Vec<u8> = Vec::new();
        let places: Vec<u32> = self
            .strings()
            .map(|string| {
                let place = at(layout.strings + text.len() as u64);
                text.extend(String::from(string).into_bytes());
                text.push(0);
                place
            })
            .collect();

        let mut bytes = alloc::vec![0; layout.strings as usize];
        let mut put = |at: u64, words: &[u32]| {
            for (word, slot) in words.iter().zip(bytes[at as usize..].chunks_exact_mut(4)) {
                slot.copy_from_slice(&word.to_le_bytes());
            }
        };
        for (entry, index) in GDT.into_iter().zip(0..) {
            put(layout.gdt + 8 * index, &halves(entry));
        }
        let information = [
            (
                0,
                flag::MEMORY
                    | flag::COMMAND_LINE
                    | flag::MODULES
                    | flag::MEMORY_MAP
                    | flag::LOADER_NAME,
            ),
            (4, self.memory_kib(0)),
            (8, self.memory_kib(1 << 20)),
            (16, places[1]),
            (20, self.modules.len() as u32),
            (24, at(layout.modules)),
            (44, (self.memory.len() as u64 * REGION) as u32),
            (48, at(layout.memory_map)),
            (64, places[0]),
        ];
        information
            .into_iter()
            .for_each(|(field, value)| put(layout.information + field, &[value]));
        for (((range, _), string), index) in self.modules.iter().zip(&places[2..]).zip(0..) {
            put(
                layout.modules + MODULE * index,
                &[range.start as u32, range.end as u32, *string, 0],
            );
        }
        for (region, index) in self.memory.iter().zip(0..) {
            let [start_low, start_high] = halves(region.range.start);
            let [size_low, size_high] = halves(region.range.end - region.range.start);
            let kind = if region.usable { RAM } else { RESERVED };
            // An entry's size does not count itself.
            let entry = [REGION as u32 - 4, start_low, start_high, size_low, size_high, kind];
            put(layout.memory_map + REGION * index, &entry);
        }
        bytes.extend(text);
        Block {
            bytes,
            stack_top: at(layout.gdt),
            gdt: Gpa::new(start + layout.gdt),
            information: at(layout.information),
        }
    }
}

fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}
