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
        payload_offset: 3 * 512,
        preferred_address: 0x100_0000,
        init_size: 0x200_0000,
        initrd_address_max: 0x7fff_ffff,
        command_line_limit: 2047,
    };
    assert_eq!(parse(&image), Ok(Some(expected)));
    assert_eq!(version(&image), Some("6.1.0-test (someone) #1"));
}

#[test]
fn four_setup_sectors_are_written_as_none() {
    let image = with(field::SETUP_SECTS, &[0]);
    assert_eq!(parse(&image), Err(HeaderError::Truncated { have: 5632, want: 5 * 512 + 4096 }));
    let longer = [image, std::vec![0; 1024]].concat();
    assert_eq!(parse(&longer).unwrap().unwrap().payload_offset, 5 * 512);
}

#[test]
fn what_cannot_boot_is_refused() {
    let refuse = |at, bytes: &[u8]| parse(&with(at, bytes)).unwrap_err();
    assert_eq!(refuse(field::VERSION, &[0x09, 2]), HeaderError::OldProtocol(0x0209));
    assert_eq!(refuse(field::XLOADFLAGS, &[0x3e]), HeaderError::Not64Bit);
    assert_eq!(refuse(field::SYSSIZE, &[1, 1]), HeaderError::Truncated { have: 5632, want: 5648 });
    for (at, bytes) in [
        (field::LENGTH, &[0x20][..]),
        (field::SYSSIZE, &[0; 4]),
        (field::PREF_ADDRESS, &[0xff; 8]),
        (field::PREF_ADDRESS, &[0; 4]),
        (field::PREF_ADDRESS, &[1]),
        (field::INIT_SIZE, &[0; 4]),
    ] {
        assert!(matches!(refuse(at, bytes), HeaderError::Damaged(_)), "{at:#x}");
    }
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
    for length in 0..image.len() {
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
fn sentences() {
    assert_eq!(
        HeaderError::OldProtocol(0x0209).to_string(),
        "uses Linux boot protocol 2.09, and 64-bit entry needs 2.12; give a kernel of version 3.8 or later"
    );
}
