use umbra_bzimage::HEADER_SPAN;
use umbra_vcpu::entry::Mode;

use super::*;

const MIB: u64 = 1 << 20;

/// A synthetic bzImage: `setup_sects` 2, then a payload of 4 KiB.
fn image() -> Vec<u8> {
    let mut image = alloc::vec![0; 3 * 512 + 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[2]);
    put(0x1f4, &256u32.to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &0x3fu16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &(16 * MIB).to_le_bytes());
    put(0x260, &(30u32 << 20).to_le_bytes());
    image
}

fn guest<'a>(image: &'a [u8], command_line: &'a str) -> Guest<'a> {
    Guest {
        kernel_head: &image[..image.len().min(HEADER_SPAN)],
        kernel_size: image.len() as u64,
        initrd_size: 5000,
        command_line,
        ram: [0..0x9fc00, MIB..64 * MIB],
        above: 0..0,
        rsdp: Gpa::new(0xe0000),
    }
}

fn with(at: usize, bytes: &[u8]) -> Result<Plan, LoadError> {
    let mut image = image();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    plan(&guest(&image, ""))
}

#[test]
fn a_good_image_is_placed() {
    let image = image();
    let plan = plan(&guest(&image, "console=ttyS0")).unwrap();
    assert_eq!(plan.payload, 1536..1536 + 4096);
    assert_eq!(plan.kernel, Gpa::new(16 * MIB));
    assert_eq!(plan.initrd, Some(Gpa::new(64 * MIB - 8192)));
    assert_eq!(plan.entry.rip, 16 * MIB + 0x200);

    let (_, zero_page) = plan.writes.iter().find(|(at, _)| at.raw() == plan.entry.rsi).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(*zero_page[at..].first_chunk().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(*zero_page[at..].first_chunk().unwrap());
    assert_eq!(zero_page[0x1ef], 0, "the sentinel must stay zero");
    assert_eq!(&zero_page[0x202..0x206], b"HdrS");
    assert_eq!(u32_at(0x260), 30 << 20, "the last field of the header is there");
    assert_eq!(u64_at(0x070), 0xe0000);
    assert_eq!((u32_at(0x218), u32_at(0x21c)), (64 * MIB as u32 - 8192, 5000));
    assert_eq!(zero_page[0x1e8], 4);
    let e820: Vec<_> = (0..4)
        .map(|i| 0x2d0 + i * 20)
        .map(|at| (u64_at(at), u64_at(at + 8), u32_at(at + 16)))
        .collect();
    assert_eq!(
        e820,
        [(0, 0x9fc00, 1), (0x9fc00, 0x400, 2), (0xe0000, 0x20000, 2), (MIB, 63 * MIB, 1)]
    );
    let (_, line) = plan.writes.iter().find(|(at, _)| at.raw() == u32_at(0x228).into()).unwrap();
    assert_eq!(line, b"console=ttyS0\0");
}

#[test]
fn a_32_bit_kernel_starts_in_protected_mode() {
    let plan = with(0x236, &[0x3e]).unwrap();
    assert_eq!((plan.entry.mode, plan.entry.rip), (Mode::Protected, 16 * MIB));
    let (_, gdt) = plan.writes.iter().find(|(at, _)| *at == plan.entry.gdt.base).unwrap();
    // boot.rst: __BOOT_CS is 0x10, flat, 4 GiB, of 32 bits.
    assert_eq!(gdt[0x10..0x18], 0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    assert_eq!((plan.entry.gdt.code, plan.entry.gdt.data, plan.entry.rbx), (0x10, 0x18, 0));
    assert!(plan.writes.iter().any(|(at, _)| at.raw() == plan.entry.rsi));
}

#[test]
fn nothing_overlaps() {
    let image = image();
    let line = "x".repeat(2047);
    let plan = plan(&guest(&image, &line)).unwrap();
    let mut ranges: Vec<_> =
        plan.writes.iter().map(|(at, bytes)| (at.raw(), at.raw() + bytes.len() as u64)).collect();
    ranges.sort();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
    assert!(ranges.last().unwrap().1 <= 0x9fc00);
}

/// Walks the initial page tables as the CPU would.
#[test]
fn the_first_4_gib_are_mapped_one_to_one() {
    let image = image();
    let plan = plan(&guest(&image, "")).unwrap();
    let read = |at: u64| {
        let (start, bytes) = plan
            .writes
            .iter()
            .find(|(start, bytes)| (start.raw()..start.raw() + bytes.len() as u64).contains(&at))
            .unwrap();
        u64::from_le_bytes(*bytes[(at - start.raw()) as usize..].first_chunk().unwrap())
    };
    for gpa in [0, MIB, 0x3fff_ffff, 0x4000_0000, 0xfee0_0020, 0xffff_ffff] {
        let mut table = cr3(&plan.entry);
        for shift in [39, 30] {
            let entry = read(table + (gpa >> shift & 511) * 8);
            assert_eq!(entry & 0x81, 1);
            table = entry & !0xfff;
        }
        let entry = read(table + (gpa >> 21 & 511) * 8);
        assert_eq!(entry & 0x83, 0x83);
        assert_eq!((entry & !0x1f_ffff) + (gpa & 0x1f_ffff), gpa);
    }
    assert_eq!(read(cr3(&plan.entry) + 8), 0);
}

#[test]
fn bad_images_are_refused() {
    assert_eq!(plan(&guest(b"\x1f\x8bgzip", "")), Err(LoadError::NotBzImage));
    assert_eq!(plan(&guest(b"", "")), Err(LoadError::NotBzImage));
    assert_eq!(with(0x202, b"MZ!!"), Err(LoadError::NotBzImage));
    assert_eq!(
        with(0x206, &[0x09, 0x02]),
        Err(LoadError::Header(HeaderError::OldProtocol(0x0209)))
    );
}

#[test]
fn a_short_last_paragraph_is_padded() {
    let image = image();
    let plan = plan(&guest(&image[..image.len() - 8], "")).unwrap();
    assert_eq!(plan.payload, 1536..1536 + 4088);
    assert_eq!(plan.padding, 16 * MIB + 4088..16 * MIB + 4096);
}

#[test]
fn every_cut_is_refused_without_a_panic() {
    let image = image();
    for length in 0..image.len() - 15 {
        assert!(plan(&guest(&image[..length], "")).is_err(), "{length}");
    }
}

#[test]
fn limits_are_named() {
    let image = image();
    let line = "x".repeat(2048);
    assert_eq!(
        plan(&guest(&image, &line)),
        Err(LoadError::CommandLineTooLong { have: 2048, limit: 2047 })
    );
    let small = Guest { ram: [0..0x9fc00, MIB..40 * MIB], ..guest(&image, "") };
    assert_eq!(plan(&small), Err(LoadError::TooLittleMemory { need: 47, have: 40 }));
    let huge = Guest { initrd_size: u64::MAX - 4096, ..guest(&image, "") };
    assert!(matches!(plan(&huge), Err(LoadError::TooLittleMemory { .. })));
    assert_eq!(
        with(0x22c, &(40 * MIB as u32).to_le_bytes()),
        Err(LoadError::InitrdTooLarge(40 * MIB))
    );
}

fn cr3(entry: &Entry) -> u64 {
    match entry.mode {
        Mode::Long { cr3 } => cr3,
        Mode::Protected => panic!("a 64-bit kernel starts in long mode"),
    }
}

#[test]
fn memory_above_4_gib_is_in_the_map_and_holds_no_files() {
    let image = image();
    let above = 4096 * MIB..6144 * MIB;
    let plan = plan(&Guest { above: above.clone(), ..guest(&image, "") }).unwrap();
    let (_, page) = plan.writes.last().unwrap();
    let entries = usize::from(page[0x1e8]);
    let at = 0x2d0 + 20 * (entries - 1);
    let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    assert_eq!((word(at), word(at + 8), page[at + 16]), (above.start, above.end - above.start, 1));
    assert!(plan.initrd.is_none_or(|initrd| initrd.raw() < 64 * MIB));
}
