//! The setup header of a bzImage, as far as the host cares (Linux, Documentation/arch/x86/boot.rst, "The Real-Mode
//! Kernel Header"). The hypervisor reads it again and for itself.

use super::ImageError;

/// Offsets of fields in the file.
mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const LENGTH: usize = 0x201;
    pub const HEADER: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20e;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const END: usize = 0x264;
}

const SECTOR: u64 = 512;

const PAGE: u64 = 4096;

/// The protocol that brought `xloadflags`.
const PROTOCOL_64: u16 = 0x020c;

/// `XLF_KERNEL_64`: there is a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;

/// A kernel version is a line; one that is longer is noise.
const VERSION_LIMIT: usize = 256;

/// A Linux kernel for the 64-bit boot protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// What the kernel calls itself, such as `6.1.0-44-amd64 (...) #1 SMP ...`.
    pub version: Option<String>,
    /// Where it wants to run, in guest-physical bytes.
    pub preferred_address: u64,
    /// Bytes of memory that it needs from there on.
    pub init_size: u64,
    /// Bytes of the longest command line.
    pub command_line_limit: u64,
}

impl BzImage {
    /// Reads the header; `None` if there is none.
    pub(super) fn parse(file: &[u8]) -> Result<Option<BzImage>, ImageError> {
        if u16_at(file, field::BOOT_FLAG) != Some(0xaa55)
            || bytes_at::<4>(file, field::HEADER) != Some(*b"HdrS")
        {
            return Ok(None);
        }
        let found = file.len() as u64;
        let truncated = |expected| ImageError::Truncated { found, expected };
        let version = u16_at(file, field::VERSION).ok_or(truncated(field::END as u64))?;
        if version < PROTOCOL_64 {
            return Err(ImageError::OldProtocol { version });
        }
        if file.len() < field::END {
            return Err(truncated(field::END as u64));
        }
        // A count of 0 means 4 ("Details of Header Fields", setup_sects).
        let setup_sectors = match file[field::SETUP_SECTS] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let body = u64::from(u32_at(file, field::SYSSIZE).unwrap_or(0)) * 16;
        let payload = (setup_sectors + 1) * SECTOR;
        // Without a body there is no kernel, whatever the header says.
        let expected = payload + body.max(1);
        if found < expected {
            return Err(truncated(expected));
        }
        if u16_at(file, field::XLOADFLAGS).unwrap_or(0) & XLF_KERNEL_64 == 0 {
            return Err(ImageError::Not64Bit);
        }
        // The second byte of a jump over the header ("Details of Header Fields", jump).
        if field::HEADER + usize::from(file[field::LENGTH]) < field::END {
            return Err(ImageError::Damaged("it ends before its last field"));
        }
        let preferred_address = bytes_at(file, field::PREF_ADDRESS).map_or(0, u64::from_le_bytes);
        if !(1 << 20..1 << 32).contains(&preferred_address) || !preferred_address.is_multiple_of(PAGE) {
            return Err(ImageError::Damaged("its preferred load address is none"));
        }
        let init_size = u32_at(file, field::INIT_SIZE).map_or(0, u64::from);
        if init_size < found - payload {
            return Err(ImageError::Damaged("it asks for less memory than the image has bytes"));
        }
        Ok(Some(BzImage {
            version: version_text(file),
            preferred_address,
            init_size,
            command_line_limit: u32_at(file, field::CMDLINE_SIZE).map_or(0, u64::from),
        }))
    }
}

/// The zero-terminated text at `kernel_version` + 0x200.
fn version_text(file: &[u8]) -> Option<String> {
    let start = match u16_at(file, field::KERNEL_VERSION)? {
        0 => return None,
        pointer => usize::from(pointer) + 0x200,
    };
    let text = file.get(start..)?;
    let end = text.iter().take(VERSION_LIMIT).position(|&byte| byte == 0)?;
    let text = std::str::from_utf8(&text[..end]).ok()?.trim();
    (!text.is_empty() && !text.contains(char::is_control)).then(|| String::from(text))
}

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk().copied()
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    bytes_at(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    bytes_at(file, at).map(u32::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::guest::Image;

    /// A kernel with one setup sector, 64 KiB of body and nothing in it.
    pub(crate) fn synthetic() -> Vec<u8> {
        let mut file = vec![0; 2 * 512 + 0x10000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(field::SETUP_SECTS, &[1]);
        put(field::SYSSIZE, &0x1000_u32.to_le_bytes());
        put(field::BOOT_FLAG, &[0x55, 0xaa]);
        put(field::LENGTH, &[0x62]);
        put(field::HEADER, b"HdrS");
        put(field::VERSION, &0x020f_u16.to_le_bytes());
        put(field::KERNEL_VERSION, &0x100_u16.to_le_bytes());
        put(0x300, b"6.1.0-test (someone) #1\0");
        put(field::XLOADFLAGS, &1_u16.to_le_bytes());
        put(field::CMDLINE_SIZE, &2047_u32.to_le_bytes());
        put(field::PREF_ADDRESS, &0x100_0000_u64.to_le_bytes());
        put(field::INIT_SIZE, &0x200_0000_u32.to_le_bytes());
        file
    }

    fn linux(file: &[u8]) -> BzImage {
        match Image::classify(file) {
            Ok(Image::Linux(linux)) => linux,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_64_bit_kernel() {
        let linux = linux(&synthetic());
        assert_eq!(
            linux,
            BzImage {
                version: Some("6.1.0-test (someone) #1".into()),
                preferred_address: 0x100_0000,
                init_size: 0x200_0000,
                command_line_limit: 2047,
            }
        );
    }

    #[test]
    fn what_cannot_boot_is_refused() {
        let refuse = |at: usize, bytes: &[u8]| {
            let mut file = synthetic();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            Image::classify(&file).unwrap_err()
        };
        assert_eq!(refuse(field::XLOADFLAGS, &[0]), ImageError::Not64Bit);
        assert_eq!(refuse(field::VERSION, &[0x0b, 2]), ImageError::OldProtocol { version: 0x20b });
        assert_eq!(refuse(field::HEADER, b"none"), ImageError::Unknown(None));
        for (at, bytes) in [
            (field::LENGTH, &[0x61][..]),
            (field::PREF_ADDRESS, &[1]),
            (field::PREF_ADDRESS, &[0, 0, 0, 0]),
            (field::PREF_ADDRESS + 4, &[1]),
            (field::INIT_SIZE, &[0xff, 0xff, 0, 0]),
        ] {
            assert!(matches!(refuse(at, bytes), ImageError::Damaged(_)), "{at:#x}");
        }
        let header_only = &synthetic()[..1024];
        let mut file = header_only.to_vec();
        file[field::SYSSIZE..][..4].fill(0);
        assert_eq!(Image::classify(&file), Err(ImageError::Truncated { found: 1024, expected: 1025 }));
    }

    #[test]
    fn every_truncation_is_seen() {
        let file = synthetic();
        for length in 0..file.len() {
            let error = Image::classify(&file[..length]).unwrap_err();
            match error {
                ImageError::Unknown(_) => assert!(length < 0x206),
                ImageError::Truncated { found, .. } => assert_eq!(found, length as u64),
                other => panic!("{length}: {other:?}"),
            }
        }
    }

    #[test]
    fn no_version_string_is_no_error() {
        for pointer in [0_u16, 0xffff] {
            let mut file = synthetic();
            file[field::KERNEL_VERSION..][..2].copy_from_slice(&pointer.to_le_bytes());
            assert_eq!(linux(&file).version, None);
        }
    }
}
