//! An image for the Linux boot protocol, as far as the host cares.

use umbra_bzimage::{HEADER_SPAN, HeaderError, SetupHeader};

/// A Linux kernel, or another program, for the Linux boot protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// What the kernel calls itself, such as `6.1.0-44-amd64 (...) #1 SMP ...` or `Memtest86+
    /// v6.10`.
    pub version: Option<String>,
    /// Whether it has a 64-bit entry point.
    pub entry_64: bool,
    /// Where it wants to run, in guest-physical bytes.
    pub preferred_address: u64,
    /// Bytes of memory that it needs from there on.
    pub memory_size: u64,
    /// Bytes of the longest command line.
    pub command_line_limit: u64,
}

impl BzImage {
    /// Whether it is Linux, as far as its name says.
    pub fn is_linux(&self) -> bool {
        self.version.as_deref().is_none_or(umbra_bzimage::is_linux)
    }

    /// Reads the header; `None` if there is none.
    pub(super) fn parse(file: &[u8]) -> Result<Option<BzImage>, HeaderError> {
        let head = &file[..file.len().min(HEADER_SPAN)];
        let header = SetupHeader::parse(head, file.len() as u64)?;
        Ok(header.map(|header| BzImage {
            version: umbra_bzimage::version(file).map(String::from),
            entry_64: header.entry_64,
            preferred_address: header.preferred_address,
            memory_size: header.memory_size,
            command_line_limit: header.command_line_limit.into(),
        }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::guest::Image;

    /// A kernel with one setup sector, 64 KiB of body and nothing in it.
    pub(crate) fn synthetic() -> Vec<u8> {
        let mut file = vec![0; 2 * 512 + 0x10000];
        for (at, bytes) in [
            (0x1f1, &[1][..]),
            (0x1f4, &[0, 0x10, 0, 0]),
            (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
            (0x202, b"HdrS\x0f\x02"),
            (0x20e, &[0, 1]),
            (0x236, &[1, 0]),
            (0x238, &[0xff, 7, 0, 0]),
            (0x258, &[0, 0, 0, 1, 0, 0, 0, 0]),
            (0x260, &[0, 0, 0, 2]),
            (0x300, b"6.1.0-test (someone) #1\0"),
        ] {
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    #[test]
    fn a_64_bit_kernel() {
        let expected = BzImage {
            version: Some("6.1.0-test (someone) #1".into()),
            entry_64: true,
            preferred_address: 0x100_0000,
            memory_size: 0x200_0000,
            command_line_limit: 2047,
        };
        match Image::classify(&synthetic()) {
            Ok(Image::Linux(linux)) => assert_eq!(linux, expected),
            other => panic!("{other:?}"),
        }
    }
}
