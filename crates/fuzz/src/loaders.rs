//! Kernel images and modules: what the host tool and the hypervisor parse before a guest runs.

use std::ops::Range;

use umbra_bzimage::{HEADER_SPAN, SetupHeader, is_bzimage};
use umbra_machine::{linux, memory};
use umbra_multiboot::{Guest, Kernel, MAX_MODULES, Module, Placement, Region, place};
use umbra_paging::{Gpa, PAGE_SIZE};
use umbra_telemetry::memory::CONVENTIONAL_END;

use crate::input::Input;

const MIB: u64 = 1 << 20;

/// Bytes are a machine, then a kernel file: as it is, or a good file with changes. What is accepted
/// keeps its promises: everything lies in the guest's RAM, and nothing on anything else.
///
/// # Panics
/// One of that is not so.
pub fn loaders(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let memory = (16 + input.below(4096)) * MIB;
    let line: String = std::iter::repeat_n('x', usize::from(input.u16() & 0xfff)).collect();
    let sizes: Vec<u64> = (0..input.below(MAX_MODULES as u64 + 2))
        .map(|_| u64::from(input.u32()) >> (input.u8() % 32))
        .collect();
    let initrd = u64::from(input.u32()) >> (input.u8() % 32);
    // What the file's size pretends to be beyond its bytes, which nobody reads.
    let unread = u64::from(input.u32()) >> (input.u8() % 33).min(31);
    let file = match kind % 4 {
        0 => input.rest().to_vec(),
        1 => changed(bzimage(), &mut input),
        2 => changed(multiboot_elf(), &mut input),
        _ => changed(multiboot_addresses(), &mut input),
    };
    parse_linux(&file, file.len() as u64 + unread, memory, initrd, &line);
    parse_multiboot(&file, memory, &sizes, &line);
}

/// Overwrites bytes, and cuts.
fn changed(mut file: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    while !input.is_empty() {
        let at = usize::from(input.u16()) % (file.len() + 1);
        let length = usize::from(input.u8() % 9);
        let bytes = input.take(length);
        match file.get_mut(at..at + bytes.len()) {
            Some(place) if length > 0 => place.copy_from_slice(bytes),
            _ => file.truncate(at.max(1)),
        }
    }
    file
}

fn put(file: &mut [u8], parts: &[(usize, &[u8])]) {
    for (at, bytes) in parts {
        file[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
}

/// boot.rst, "The Real-Mode Kernel Header".
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 3 * 512 + 4096];
    put(
        &mut file,
        &[
            (0x1f1, &[2]),
            (0x1f4, &[0, 1]),
            (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
            (0x202, b"HdrS\x0f\x02"),
            (0x20e, &[0, 1]),
            (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
            (0x236, &[1, 0]),
            (0x238, &[0xff, 7]),
            (0x258, &[0, 0, 0, 1]),
            (0x260, &[0, 0, 0, 2]),
            (0x300, b"6.1.0 (fuzz)\0"),
        ],
    );
    file
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// An ELF32 with two segments and a multiboot header.
fn multiboot_elf() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    let segment = |offset: u32, at: u32, size: u32, memory: u32| {
        words(&[1, offset, at, at, size, memory, 7, 4096])
    };
    put(
        &mut file,
        &[
            (0, b"\x7fELF\x01\x01\x01"),
            (16, &[2, 0, 3, 0, 1, 0, 0, 0]),
            (24, &words(&[0x10_0010, 52])),
            (40, &[52, 0, 32, 0, 2]),
            (52, &segment(0x100, 0x10_0000, 0x100, 0x100)),
            (84, &segment(0x200, 0x20_0000, 0x80, 0x3000)),
            (0x100, &words(&[0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)])),
        ],
    );
    file
}

/// Nothing but a multiboot header with address fields.
fn multiboot_addresses() -> Vec<u8> {
    const FLAGS: u32 = 1 << 16;
    const START: u32 = 1 << 20;
    let mut file = words(&[
        0x1bad_b002,
        FLAGS,
        0u32.wrapping_sub(0x1bad_b002 + FLAGS),
        START,
        START,
        0,
        0,
        START,
    ]);
    file.resize(0x400, 0);
    file
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Ranges that are in RAM, and apart from each other.
fn assert_placed(ranges: &[Range<u64>], ram: &[Range<u64>]) {
    for (index, range) in ranges.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
        assert!(
            ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end),
            "{range:x?} is no RAM"
        );
        assert!(
            !ranges[..index].iter().any(|other| overlap(range, other)),
            "{range:x?} in {ranges:x?}"
        );
    }
}

fn range(at: Gpa, size: u64) -> Range<u64> {
    at.raw()..at.raw() + size
}

fn parse_linux(file: &[u8], size: u64, memory: u64, initrd_size: u64, command_line: &str) {
    let head = &file[..file.len().min(HEADER_SPAN)];
    let size = if file.len() < HEADER_SPAN { file.len() as u64 } else { size };
    let version = umbra_bzimage::version(file);
    assert!(
        version.is_none_or(|version| !version.is_empty() && !version.contains(char::is_control))
    );
    let header = match SetupHeader::parse(head, size) {
        Ok(Some(header)) => header,
        Ok(None) => return assert!(!is_bzimage(head)),
        Err(_) => return assert!(is_bzimage(head)),
    };
    assert!(is_bzimage(head));
    assert!(header.payload_offset < size && header.padding < 16);
    assert!(header.memory_size >= size + header.padding - header.payload_offset);
    let preferred = u64::from_le_bytes(*head[0x258..].first_chunk().unwrap());
    assert!([preferred, MIB].contains(&header.preferred_address));
    assert_eq!(
        header.command_line_limit,
        u32::from_le_bytes(*head[0x238..].first_chunk().unwrap())
    );
    assert_eq!(header.bytes.as_ptr_range().start, head[0x1f1..].as_ptr());

    let ram = [0..CONVENTIONAL_END, MIB..memory];
    let guest = linux::Guest {
        kernel_head: head,
        kernel_size: size,
        initrd_size,
        command_line,
        ram: ram.clone(),
        above: 4096 * MIB..4096 * MIB + memory,
        rsdp: Gpa::new(memory::FIRMWARE.start),
    };
    let Ok(plan) = linux::plan(&guest) else { return };
    let kernel = range(plan.kernel, header.memory_size);
    let mut ranges: Vec<_> =
        plan.writes.iter().map(|(at, bytes)| range(*at, bytes.len() as u64)).collect();
    ranges.push(kernel.clone());
    ranges.extend(plan.initrd.map(|at| range(at, initrd_size)));
    assert_placed(&ranges, &ram);
    assert_eq!(plan.initrd.is_some(), initrd_size > 0);
    assert_eq!(plan.payload, header.payload_offset..size);
    let payload_end = plan.kernel.raw() + (size - header.payload_offset);
    assert_eq!(plan.padding, payload_end..payload_end + header.padding);
    assert!(
        kernel.contains(&plan.entry.rip) && plan.initrd.is_none_or(|at| at.raw() % PAGE_SIZE == 0)
    );
}

fn parse_multiboot(file: &[u8], memory: u64, sizes: &[u64], command_line: &str) {
    let Ok(Some(kernel)) = Kernel::parse(file) else { return };
    assert!(!kernel.segments.is_empty());
    assert!(kernel.segments.iter().any(|segment| segment.memory.contains(&kernel.entry.into())));
    for segment in &kernel.segments {
        assert!(segment.file.start <= segment.file.end && segment.file.end <= file.len() as u64);
        assert!(segment.memory.end <= 1 << 32 && !segment.memory.is_empty());
        assert!(segment.file.end - segment.file.start <= segment.memory.end - segment.memory.start);
    }
    let modules: Vec<_> =
        sizes.iter().map(|&size| Module { size, command_line: "module" }).collect();
    let memory = memory.min(1 << 32);
    let above = memory.max(1 << 32)..memory.saturating_mul(2).max(1 << 32);
    let regions: Vec<_> = memory::memory_map(&[0..CONVENTIONAL_END, MIB..memory], &above)
        .into_iter()
        .map(|(range, usable)| Region { range, usable })
        .collect();
    let guest = Guest { kernel: &kernel, command_line, modules: &modules, memory: &regions };
    let Ok(Placement { modules, zeros, writes, entry }) = place(&guest) else { return };
    assert_eq!(modules.len(), sizes.len());
    assert!(modules.iter().all(|at| at.raw() % PAGE_SIZE == 0));
    let mut ranges: Vec<_> = kernel.segments.iter().map(|segment| segment.memory.clone()).collect();
    for zero in zeros {
        assert!(
            ranges.iter().any(|segment| segment.start <= zero.start && zero.end <= segment.end)
        );
    }
    ranges.extend(modules.iter().zip(sizes).map(|(at, size)| range(*at, *size)));
    ranges.extend(writes.iter().map(|(at, bytes)| range(*at, bytes.len() as u64)));
    assert_placed(&ranges, &[0..CONVENTIONAL_END, MIB..memory]);
    let written = |at: u32| {
        writes.iter().any(|(start, bytes)| range(*start, bytes.len() as u64).contains(&at.into()))
    };
    assert!(written(entry.ebx) && written(entry.esp - 1) && entry.eip == kernel.entry);
}
