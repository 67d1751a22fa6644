//! Where everything goes in guest memory.

use alloc::vec::Vec;
use core::ops::Range;

use umbra_paging::{Gpa, PAGE_SIZE};

use super::LoadError;
use super::information::{Contents, Module, Region};
use super::kernel::Kernel;

/// Modules of a guest at most.
pub const MAX_MODULES: usize = 64;

/// Where the boot information may be: page 0 and what follows is the kernel's for real-mode code,
/// and it ends below what a PC's BIOS takes.
const INFORMATION: Range<u64> = 0x1_0000..0x9_f000;

const MIB: u64 = 1 << 20;

/// The guest that [`place`] is to load.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its command line, as it gets it: by custom the kernel's own name comes first.
    pub command_line: &'a str,
    /// Its modules, in order.
    pub modules: &'a [Module<'a>],
    /// The memory map: ascending, apart from each other, everything below 4 GiB.
    pub memory: &'a [Region],
}

/// The CPU at the first instruction (specification, "Machine state"): 32-bit protected mode without
/// paging, with the selectors [`CODE_SELECTOR`](crate::CODE_SELECTOR) and
/// [`DATA_SELECTOR`](crate::DATA_SELECTOR), EAX at [`MAGIC`](crate::MAGIC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction.
    pub eip: u32,
    /// The boot information.
    pub ebx: u32,
    /// A small stack.
    pub esp: u32,
    /// GDTR base; the limit is [`GDT_LIMIT`](crate::GDT_LIMIT).
    pub gdt: Gpa,
}

/// What goes where, beside the kernel's segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where each module goes: at a page boundary, above the kernel, in the order in which they
    /// were given.
    pub modules: Vec<Gpa>,
    /// What becomes zero once the segments' bytes of the file are in place.
    pub zeros: Vec<Range<u64>>,
    /// What else goes into memory, after everything else.
    pub writes: Vec<(Gpa, Vec<u8>)>,
    /// How the guest starts.
    pub entry: Entry,
}

/// Places a guest.
///
/// # Errors
/// Guest memory does not hold it. See [`LoadError`].
pub fn place(guest: &Guest<'_>) -> Result<Placement, LoadError> {
    if guest.modules.len() > MAX_MODULES {
        return Err(LoadError::TooManyModules { have: guest.modules.len(), limit: MAX_MODULES });
    }
    let high = usable_at(guest.memory, MIB).ok_or(LoadError::NoMemory { start: MIB, end: MIB })?;
    let modules = place_modules(guest);
    let need = modules.last().map_or(guest.kernel.end(), |last| last.end.max(guest.kernel.end()));
    if need > high.end {
        return Err(LoadError::TooLittleMemory { need: need.div_ceil(MIB), have: high.end / MIB });
    }
    for segment in &guest.kernel.segments {
        let Range { start, end } = segment.memory;
        if usable_at(guest.memory, start).is_none_or(|region| end > region.end) {
            return Err(LoadError::NoMemory { start, end });
        }
    }
    let contents = Contents {
        command_line: guest.command_line,
        modules: modules
            .iter()
            .cloned()
            .zip(guest.modules.iter().map(|module| module.command_line))
            .collect(),
        memory: guest.memory,
    };
    let block = place_information(guest, contents.size())?;
    let block_start = Gpa::new(block);
    let block = contents.build(block);
    let entry = Entry {
        eip: guest.kernel.entry,
        ebx: block.information,
        esp: block.stack_top,
        gdt: block.gdt,
    };
    let zeros = guest.kernel.segments.iter().filter_map(|segment| {
        let start = segment.memory.start + (segment.file.end - segment.file.start);
        (start < segment.memory.end).then_some(start..segment.memory.end)
    });
    Ok(Placement {
        modules: modules.iter().map(|module| Gpa::new(module.start)).collect(),
        zeros: zeros.collect(),
        writes: alloc::vec![(block_start, block.bytes)],
        entry,
    })
}

fn usable_at(memory: &[Region], gpa: u64) -> Option<&Range<u64>> {
    memory
        .iter()
        .find(|region| region.usable && region.range.contains(&gpa))
        .map(|region| &region.range)
}

/// Each module's range: behind the kernel, and above 1 MiB in any case. What has no room ends
/// beyond all memory.
fn place_modules(guest: &Guest<'_>) -> Vec<Range<u64>> {
    let mut free = guest.kernel.end().max(MIB);
    let place = |module: &Module<'_>| {
        let start = free.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
        free = start.saturating_add(module.size);
        start..free
    };
    guest.modules.iter().map(place).collect()
}

/// The lowest place for `size` bytes that no segment takes.
fn place_information(guest: &Guest<'_>, size: u64) -> Result<u64, LoadError> {
    let segments = &guest.kernel.segments;
    let ends = segments
        .iter()
        .filter_map(|segment| segment.memory.end.checked_next_multiple_of(PAGE_SIZE));
    let free = |start: u64| {
        let end = start.checked_add(size).filter(|end| *end <= INFORMATION.end)?;
        let taken =
            segments.iter().any(|segment| segment.memory.start < end && start < segment.memory.end);
        let usable = usable_at(guest.memory, start).is_some_and(|region| end <= region.end);
        (start >= INFORMATION.start && usable && !taken).then_some(start)
    };
    [INFORMATION.start]
        .into_iter()
        .chain(ends)
        .find_map(free)
        .ok_or(LoadError::NoRoomForInformation { need: size })
}
