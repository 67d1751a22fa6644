use std::vec;
use std::vec::Vec;

use object::Endianness;
use object::elf::{ELFOSABI_NONE, EM_386, EM_ARM, EM_X86_64, ET_EXEC, PT_LOAD};
use object::write::elf::{FileHeader, ProgramHeader, Writer};

use super::*;
use umbra_paging::Gpa;

const MIB: u64 = 1 << 20;
const TEXT: &[u8] = b"text";

/// (vaddr, paddr, bytes of the file, bytes of memory)
type Part<'a> = (u64, u64, &'a [u8], u64);

const GOOD: &[Part<'_>] = &[
    (0xc010_0000, 0x10_0000, TEXT, 4),
    (0xc020_0000, 0x20_0000, b"data", 9000),
    (0, 0x30_0000, b"", 0),
];

struct Elf<'a> {
    is_64: bool,
    machine: object::elf::Machine,
    entry: u64,
    flags: u32,
    parts: &'a [Part<'a>],
}

const ELF: Elf<'_> =
    Elf { is_64: false, machine: EM_386, entry: 0xc010_0000, flags: 3, parts: GOOD };

fn header(flags: u32) -> [u32; 3] {
    [0x1bad_b002, flags, 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags)]
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Elf<'_> {
    /// The multiboot header first, then each part.
    fn file(&self) -> Vec<u8> {
        let mut elf = Vec::new();
        let mut writer = Writer::new(Endianness::Little, self.is_64, &mut elf);
        writer.reserve_file_header();
        writer.reserve_program_headers(self.parts.len() as u32);
        writer.reserve(12, 4);
        let offsets: Vec<u64> =
            self.parts.iter().map(|part| writer.reserve(part.2.len() as u64, 4)).collect();
        let file_header = FileHeader {
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            e_type: ET_EXEC,
            e_machine: self.machine,
            e_entry: self.entry,
            e_flags: Default::default(),
        };
        writer.write_file_header(&file_header).unwrap();
        for ((p_vaddr, p_paddr, bytes, p_memsz), p_offset) in
            self.parts.iter().copied().zip(offsets)
        {
            let p_filesz = bytes.len() as u64;
            let p_type = PT_LOAD;
            let p_flags = Default::default();
            writer.write_program_header(&ProgramHeader {
                p_type,
                p_flags,
                p_offset,
                p_vaddr,
                p_paddr,
                p_filesz,
                p_memsz,
                p_align: 4,
            });
        }
        writer.write_align(4);
        writer.write(&bytes(&header(self.flags)));
        for part in self.parts {
            writer.write_align(4);
            writer.write(part.2);
        }
        elf
    }

    fn parse(&self) -> Result<Kernel, LoadError> {
        Kernel::parse(self.file().as_slice()).map(|kernel| kernel.expect("there is a header"))
    }
}

/// A file of 256 bytes with a header with address fields at 64.
fn by_addresses(load_end: u32, bss_end: u32, header_address: u32) -> Vec<u8> {
    let mut file = vec![0; 64];
    file.extend(bytes(&header(1 << 16)));
    file.extend(bytes(&[header_address, 0x10_0000, load_end, bss_end, 0x10_0020]));
    file.resize(256, 0xaa);
    file
}

#[test]
fn an_elf_goes_where_its_physical_addresses_say() {
    for is_64 in [false, true] {
        let machine = if is_64 { EM_X86_64 } else { EM_386 };
        let elf = Elf { is_64, machine, ..ELF };
        let (kernel, file) = (elf.parse().unwrap(), elf.file());
        assert_eq!(kernel.entry, 0x10_0000, "the virtual entry point is translated");
        assert_eq!(kernel.end(), 0x20_0000 + 9000);
        let parts: Vec<_> = kernel
            .segments
            .iter()
            .map(|s| (file[s.file.start as usize..s.file.end as usize].to_vec(), s.memory.clone()))
            .collect();
        assert_eq!(
            parts,
            [
                (TEXT.to_vec(), 0x10_0000..0x10_0004),
                (b"data".to_vec(), 0x20_0000..0x20_0000 + 9000)
            ]
        );
    }
    assert_eq!(
        Elf { entry: 0x10_0002, ..ELF }.parse().unwrap().entry,
        0x10_0002,
        "a physical entry point"
    );
}

/// GNU ld gives a `.bss` of its own segment an aligned offset, which may lie behind the end of the
/// file.
#[test]
fn a_segment_without_bytes_has_no_place_in_the_file() {
    let parts = [(0x10_0000, 0x10_0000, TEXT, 4), (0x20_0000, 0x20_0000, b"".as_slice(), 9000)];
    let mut file = Elf { entry: 0x10_0000, parts: &parts, ..ELF }.file();
    // `p_offset` of the second program header.
    file[52 + 32 + 4..][..4].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    let kernel = Kernel::parse(file.as_slice()).unwrap().unwrap();
    assert_eq!((kernel.segments[1].file.clone(), kernel.end()), (0..0, 0x20_0000 + 9000));
}

#[test]
fn address_fields_replace_elf_headers() {
    let parse = |file: Vec<u8>| {
        Kernel::parse(file.as_slice()).map(|kernel| kernel.expect("there is a header"))
    };
    // The header is 16 bytes behind the start of the text: the text starts at 48 in the file.
    let whole = parse(by_addresses(0, 0, 0x10_0010)).unwrap();
    assert_eq!(whole.segments, [Segment { file: 48..256, memory: 0x10_0000..0x10_0000 + 208 }]);
    assert_eq!(whole.entry, 0x10_0020);
    let part = parse(by_addresses(0x10_0040, 0x10_1000, 0x10_0010)).unwrap();
    assert_eq!(part.segments, [Segment { file: 48..112, memory: 0x10_0000..0x10_1000 }]);
    assert_eq!(
        parse(by_addresses(0x20_0000, 0x20_0000, 0x10_0010)),
        Err(LoadError::Truncated { have: 256, want: 48 + MIB })
    );
    for contradiction in [
        by_addresses(0, 0, 0xf_ffff),
        by_addresses(0, 0, 0x10_0041),
        by_addresses(0xf_0000, 0, 0x10_0010),
        by_addresses(0x10_0040, 0x10_0030, 0x10_0010),
    ] {
        assert!(matches!(parse(contradiction), Err(LoadError::Damaged(_))));
    }
    let cut = by_addresses(0, 0, 0x10_0010)[..90].to_vec();
    assert!(matches!(parse(cut), Err(LoadError::Damaged(_))));
}

#[test]
fn the_header_must_be_whole_aligned_and_near_the_start() {
    let at = |offset: usize, words: [u32; 3]| {
        let mut file = vec![0; offset];
        file.extend(bytes(&words));
        file.resize(20_000, 0);
        Kernel::parse(file.as_slice())
    };
    let [magic, flags, sum] = header(3);
    assert_eq!(at(8180, [magic, flags, sum]), Err(LoadError::NotElf), "found");
    assert_eq!(at(8184, [magic, flags, sum]), Ok(None), "it would end behind 8 KiB");
    assert_eq!(at(2, [magic, flags, sum]), Ok(None));
    assert_eq!(at(0, [magic, flags, sum + 1]), Ok(None));
    assert_eq!(at(0, header(1 << 3 | 3)), Err(LoadError::UnknownFlags(8)));
    assert_eq!(at(0, header(0b111)), Err(LoadError::NotElf), "a video mode is no reason to refuse");
    assert_eq!(Kernel::parse(&[][..]), Ok(None));
}

#[test]
fn images_that_cannot_be_loaded_are_refused_by_name() {
    let with = |parts: &[Part<'_>]| Elf { parts, ..ELF }.parse();
    assert_eq!(Elf { machine: EM_ARM, ..ELF }.parse(), Err(LoadError::NotElf));
    assert_eq!(Elf { entry: 0x30_0000, ..ELF }.parse(), Err(LoadError::Entry(0x30_0000)));
    assert_eq!(
        Elf { entry: u64::MAX, is_64: true, ..ELF }.parse(),
        Err(LoadError::Entry(u64::MAX))
    );
    assert!(matches!(with(&[]), Err(LoadError::Damaged(_))));
    assert!(matches!(with(&[(0, MIB, TEXT, 3)]), Err(LoadError::Damaged(_))));
    let overlapping: &[Part<'_>] = &[(0, MIB, TEXT, 4), (0, MIB + 3, TEXT, 4)];
    assert_eq!(with(overlapping), Err(LoadError::Overlap(MIB + 3)));
    let many = vec![(0, MIB, TEXT, 4); 65];
    assert_eq!(with(&many), Err(LoadError::TooManySegments { have: 65, limit: 64 }));
    let high = Elf { is_64: true, parts: &[(0, u64::MAX - 5, TEXT, 100)], ..ELF };
    assert_eq!(high.parse(), Err(LoadError::NoMemory { start: u64::MAX - 5, end: u64::MAX }));
    let file = ELF.file();
    assert_eq!(
        Kernel::parse(&file[..file.len() - 1]),
        Err(LoadError::Truncated { have: file.len() as u64 - 1, want: file.len() as u64 })
    );
}

/// Every prefix, and every byte changed to each of a few values: an answer, and if it is a kernel,
/// a sound one.
#[test]
fn no_damage_is_too_much() {
    let sound = |file: &[u8]| {
        let Ok(Some(kernel)) = Kernel::parse(file) else { return false };
        let mut end = 0;
        for segment in &kernel.segments {
            assert!(segment.memory.start >= end && !segment.memory.is_empty());
            assert!(
                segment.file.end <= file.len() as u64 && segment.file.start <= segment.file.end
            );
            assert!(
                segment.file.end - segment.file.start <= segment.memory.end - segment.memory.start
            );
            end = segment.memory.end;
        }
        assert!(end <= 1 << 32);
        // Nor is placing it in too little memory.
        let _ =
            place(&Guest { kernel: &kernel, command_line: "", modules: &[], memory: &memory(2) });
        true
    };
    let (mut good, mut bad) = (0, 0);
    for file in [ELF.file(), Elf { is_64: true, ..ELF }.file(), by_addresses(0, 0, 0x10_0010)] {
        (0..file.len()).for_each(|length| assert!(!sound(&file[..length]) || length >= 80));
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = file.clone();
                file[at] = value;
                if sound(&file) { good += 1 } else { bad += 1 }
            }
        }
    }
    assert!(good > 100 && bad > 100, "{good} {bad}");
}

fn memory(mib: u64) -> [Region; 3] {
    [
        Region { range: 0..0x9_fc00, usable: true },
        Region { range: 0xe_0000..MIB, usable: false },
        Region { range: MIB..mib * MIB, usable: true },
    ]
}

fn placed(kernel: &Kernel, modules: &[Module<'_>], mib: u64) -> Result<Placement, LoadError> {
    place(&Guest { kernel, command_line: "k one", modules, memory: &memory(mib) })
}

#[test]
fn the_kernel_is_told_everything() {
    let kernel = ELF.parse().unwrap();
    let modules =
        [Module { size: 5000, command_line: "m 0" }, Module { size: 0, command_line: "m 1" }];
    let plan = placed(&kernel, &modules, 16).unwrap();
    assert_eq!(plan.zeros.as_slice(), core::slice::from_ref(&(0x20_0004..0x20_0000 + 9000)));
    assert_eq!(plan.modules, [Gpa::new(0x20_3000), Gpa::new(0x20_5000)]);
    let [(start, block)] = plan.writes.as_slice() else { panic!("one block") };
    assert_eq!(start.raw(), 0x1_0000);
    let word =
        |at: u32| u32::from_le_bytes(*block[(at - 0x1_0000) as usize..].first_chunk().unwrap());
    let string = |at: u32| {
        let text = &block[(at - 0x1_0000) as usize..];
        core::str::from_utf8(text.split(|byte| *byte == 0).next().unwrap()).unwrap()
    };
    let Entry { eip, ebx, esp, gdt } = plan.entry;
    assert_eq!(eip, 0x10_0000);
    let gdt = gdt.raw() as u32;
    assert!(esp == gdt && esp > 0x1_0000, "the stack is below the table");
    // Code and data: base 0, limit 4 GiB, ring 0, 32-bit, present.
    assert_eq!([word(gdt + 8), word(gdt + 12)], [0xffff, 0xcf9b00]);
    assert_eq!([word(gdt + 16), word(gdt + 20)], [0xffff, 0xcf9300]);

    assert_eq!(word(ebx), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((word(ebx + 4), word(ebx + 8)), (639, 15 * 1024));
    assert_eq!((string(word(ebx + 16)), string(word(ebx + 64))), ("k one", "umbra"));
    let list = word(ebx + 24);
    assert_eq!((word(ebx + 20), list % 4), (2, 0));
    assert_eq!((word(list), word(list + 4), string(word(list + 8))), (0x20_3000, 0x20_4388, "m 0"));
    assert_eq!(
        (word(list + 16), word(list + 20), string(word(list + 24))),
        (0x20_5000, 0x20_5000, "m 1")
    );
    let map = word(ebx + 48);
    assert_eq!(word(ebx + 44), 3 * 24);
    let entry = |index: u32| {
        core::array::from_fn::<_, 6, _>(|field| word(map + 24 * index + 4 * field as u32))
    };
    assert_eq!(entry(0), [20, 0, 0, 0x9_fc00, 0, 1]);
    assert_eq!(entry(1), [20, 0xe_0000, 0, 0x2_0000, 0, 2]);
    assert_eq!(entry(2), [20, 0x10_0000, 0, 0xf0_0000, 0, 1]);
}

#[test]
fn the_information_makes_way_for_the_kernel() {
    let low: &[Part<'_>] = &[(0x8000, 0x8000, TEXT, 0xa000), (0x1_5000, 0x1_5000, TEXT, 0x1001)];
    let kernel = Elf { entry: 0x8000, parts: low, ..ELF }.parse().unwrap();
    assert_eq!(
        placed(&kernel, &[], 16).unwrap().writes[0].0,
        Gpa::new(0x1_2000),
        "it fits between"
    );
    let line = &*std::string::String::from_utf8(vec![b'x'; 20_000]).unwrap();
    let guest = Guest { kernel: &kernel, command_line: line, modules: &[], memory: &memory(16) };
    assert_eq!(place(&guest).unwrap().writes[0].0, Gpa::new(0x1_7000), "it does not");
    let module = Module { size: 1, command_line: "" };
    assert_eq!(placed(&kernel, &[module], 16).unwrap().modules, [Gpa::new(MIB)]);
    let wide: &[Part<'_>] = &[(0, 0x1000, TEXT, 0x9_e000)];
    let kernel = Elf { entry: 0x10, parts: wide, ..ELF }.parse().unwrap();
    assert!(matches!(placed(&kernel, &[], 16), Err(LoadError::NoRoomForInformation { .. })));
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = ELF.parse().unwrap();
    let module = |size| Module { size, command_line: "" };
    let too_little = |need, have| Err(LoadError::TooLittleMemory { need, have });
    assert_eq!(placed(&kernel, &[], 2), too_little(3, 2));
    placed(&kernel, &[module(16 * MIB - 0x20_3000)], 16).unwrap();
    assert_eq!(placed(&kernel, &[module(16 * MIB - 0x20_2fff)], 16), too_little(17, 16));
    assert!(matches!(
        placed(&kernel, &[module(u64::MAX), module(u64::MAX)], 16),
        Err(LoadError::TooLittleMemory { .. })
    ));
    assert_eq!(
        placed(&kernel, &[module(1); 65], 16),
        Err(LoadError::TooManyModules { have: 65, limit: 64 })
    );
    for (start, size) in [(0xb_8000, 4), (0x9_f000, 0x1000), (0xf_f000, 0x2000)] {
        let parts: &[Part<'_>] = &[(start, start, TEXT, size)];
        let kernel = Elf { entry: start, parts, ..ELF }.parse().unwrap();
        assert_eq!(placed(&kernel, &[], 16), Err(LoadError::NoMemory { start, end: start + size }));
    }
}
