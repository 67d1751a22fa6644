use std::string::ToString;
use std::vec::Vec;

use super::header::field;
use super::*;

/// A kernel with two setup sectors, 4 KiB of body and nothing in it.
fn image() -> Vec<u8> {
    let mut image = std::vec![0; 3 * 512 + 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::SETUP_SECTS, &[2]);
    put(field::SYSSIZE, &256_u32.to_le_bytes());
    put(field::BOOT_FLAG, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(field::MAGIC, b"HdrS");
    put(field::VERSION, &[0x0f, 2]);
    put(field::KERNEL_VERSION, &0x100_u16.to_le_bytes());
    put(0x300, b"6.1.0-test (someone) #1\0");
    put(field::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
    put(field::XLOADFLAGS, &[0x3f, 0]);
    put(field::CMDLINE_SIZE, &2047_u32.to_le_bytes());
    put(field::PREF_ADDRESS, &0x100_0000_u64.to_le_bytes());
    put(field::INIT_SIZE, &0x200_0000_u32.to_le_bytes());
    image
}

fn parse(image: &[u8]) -> Result<Option<SetupHeader<'_>>, HeaderError> {
    SetupHeader::parse(&image[..image.len().min(HEADER_SPAN)], image.len() as u64)
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn a_64_bit_kernel() {
    let image = image();
    let expected = SetupHeader {
        bytes: &image[HEADER_START..0x202 + 0x6a],
        entry_64: true,
        payload_offset: 3 * 512,
        padding: 0,
        preferred_address: 0x100_0000,
        memory_size: 0x200_0000,
        initrd_address_max: 0x7fff_ffff,
        command_line_limit: 2047,
    };
    assert_eq!(parse(&image), Ok(Some(expected)));
    assert_eq!(version(&image), Some("6.1.0-test (someone) #1"));
}

#[test]
fn a_32_bit_kernel() {
    let image = with(field::XLOADFLAGS, &[0x3e]);
    let header = parse(&image).unwrap().unwrap();
    assert!(!header.entry_64);
    assert_eq!(header.preferred_address, 0x100_0000);
}

#[test]
fn four_setup_sectors_are_written_as_none() {
    let image = with(field::SETUP_SECTS, &[0]);
    assert_eq!(
        parse(&image),
        Err(HeaderError::Truncated { have: 5632, want: 5 * 512 + 4096 - 15 })
    );
    let longer = [image, std::vec![0; 1024]].concat();
    assert_eq!(parse(&longer).unwrap().unwrap().payload_offset, 5 * 512);
}

#[test]
fn what_cannot_boot_is_refused() {
    let refuse = |at, bytes: &[u8]| parse(&with(at, bytes)).unwrap_err();
    assert_eq!(refuse(field::VERSION, &[0x09, 2]), HeaderError::OldProtocol(0x0209));
    assert_eq!(refuse(field::SYSSIZE, &[1, 1]), HeaderError::Truncated { have: 5632, want: 5633 });
    for place in [0xffff_u64, 1 << 32, u64::MAX] {
        assert_eq!(refuse(field::PREF_ADDRESS, &place.to_le_bytes()), HeaderError::Place(place));
    }
    for (at, bytes) in [(field::LENGTH, &[0x20][..]), (field::SYSSIZE, &[0; 4])] {
        assert!(matches!(refuse(at, bytes), HeaderError::Damaged(_)), "{at:#x}");
    }
}

/// Debian's memtest86+ 6.10: `syssize` is rounded up to paragraphs, and the file ends 8 bytes
/// before that.
#[test]
fn the_last_paragraph_may_be_short() {
    let image = image();
    for short in 0..16 {
        let header = parse(&image[..image.len() - short]).unwrap().unwrap();
        assert_eq!(header.padding, short as u64);
    }
    let error = parse(&image[..image.len() - 16]).unwrap_err();
    assert_eq!(error, HeaderError::Truncated { have: 5616, want: 5617 });
}

/// boot.rst: a preferred address of zero is none, alignment is the kernel's business, and
/// `init_size` is what the kernel needs, whatever is appended to its file.
#[test]
fn what_the_protocol_leaves_open_is_taken() {
    let address =
        |bytes: &[u8]| parse(&with(field::PREF_ADDRESS, bytes)).unwrap().unwrap().preferred_address;
    assert_eq!(address(&[0; 8]), 1 << 20);
    assert_eq!(address(&[0x10]), 0x100_0010);
    let small = with(field::INIT_SIZE, &[0; 4]);
    assert_eq!(parse(&small).unwrap().unwrap().memory_size, 4096);
    let signed = [small, std::vec![0; 100]].concat();
    assert_eq!(parse(&signed).unwrap().unwrap().memory_size, 4196);
}

#[test]
fn what_is_none_is_nothing() {
    assert_eq!(parse(b"\x1f\x8bgzip"), Ok(None));
    assert_eq!(parse(b""), Ok(None));
    assert_eq!(parse(&with(field::MAGIC, b"MZ!!")), Ok(None));
    assert_eq!(parse(&with(field::BOOT_FLAG, b"\0")), Ok(None));
}

#[test]
fn every_truncation_is_seen() {
    let image = image();
    for length in 0..image.len() - 15 {
        match parse(&image[..length]) {
            Ok(None) => assert!(length < field::VERSION),
            Err(HeaderError::Truncated { have, want }) => {
                assert_eq!(have, length as u64);
                assert!(want > have && length >= field::VERSION);
            }
            other => panic!("{length}: {other:?}"),
        }
    }
}

#[test]
fn no_version_text_is_no_error() {
    for pointer in [0_u16, 0xffff] {
        let image = with(field::KERNEL_VERSION, &pointer.to_le_bytes());
        assert_eq!(version(&image), None);
        parse(&image).unwrap().unwrap();
    }
    assert_eq!(version(&with(0x300, b"a\x1b[2J")), None);
    assert_eq!(version(&with(0x300, &[0xff])), None);
    assert_eq!(version(&with(0x300, b"  \0")), None);
}

#[test]
fn linux_is_told_from_other_images() {
    for (text, linux) in [
        ("6.1.0-44-amd64 (debian-kernel@lists.debian.org) #1 SMP", true),
        ("2.6.18", true),
        ("Memtest86+ v6.10", false),
        ("iPXE 1.21.1 -- Open Source Network Boot Firmware", false),
        ("MEMDISK 6.04", false),
    ] {
        assert_eq!(is_linux(text), linux, "{text}");
    }
}

#[test]
fn sentences() {
    assert_eq!(
        HeaderError::OldProtocol(0x0209).to_string(),
        "uses Linux boot protocol 2.09, and at least 2.12 is needed; give a kernel of version 3.8 or later"
    );
}
