//! Which kind of guest a file is.

use std::fmt;

use umbra_bzimage::HeaderError;
use umbra_multiboot::{Kernel, LoadError};

use super::BzImage;

/// A guest that the hypervisor can boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A Linux kernel, or another program, for the 64-bit boot protocol.
    Linux(BzImage),
    /// A small kernel for the Multiboot specification, version 0.6.96.
    Multiboot(Kernel),
}

/// Why a file is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// No format that is known here; what it looks like instead, if that is known.
    Unknown(Option<&'static str>),
    /// A Linux kernel that cannot be booted.
    Linux(HeaderError),
    /// An image for Linux's boot protocol that cannot be booted, and that calls itself something
    /// else.
    Foreign(String, HeaderError),
    /// A multiboot kernel that cannot be loaded.
    Multiboot(LoadError),
}

impl Image {
    /// Looks at a whole file.
    ///
    /// # Errors
    /// It is nothing that boots here.
    pub fn classify(file: &[u8]) -> Result<Image, ImageError> {
        let refuse = |error| match umbra_bzimage::version(file) {
            Some(name) if !umbra_bzimage::is_linux(name) => ImageError::Foreign(name.into(), error),
            _ => ImageError::Linux(error),
        };
        if let Some(linux) = BzImage::parse(file).map_err(refuse)? {
            return Ok(Image::Linux(linux));
        }
        match Kernel::parse(file).map_err(ImageError::Multiboot)? {
            Some(kernel) => Ok(Image::Multiboot(kernel)),
            None => Err(ImageError::Unknown(looks_like(file))),
        }
    }
}

/// What users give by mistake.
fn looks_like(file: &[u8]) -> Option<&'static str> {
    const KNOWN: &[(&[u8], &str)] = &[
        (b"\x7fELF", "an ELF file without a multiboot header (perhaps a vmlinux)"),
        (b"\x1f\x8b", "a gzip file (perhaps an initrd)"),
        (b"\x28\xb5\x2f\xfd", "a zstd file (perhaps an initrd)"),
        (b"\xfd7zXZ", "an xz file (perhaps an initrd)"),
        (b"0707", "a cpio archive (perhaps an initrd)"),
        (b"!<arch>", "a package or archive"),
        (b"MZ", "an EFI program or one for DOS"),
    ];
    const BOOT_SECTOR: (usize, &[u8]) = (0x1fe, b"\x55\xaa");
    if file.is_empty() {
        return Some("an empty file");
    }
    let known = KNOWN.iter().find(|(magic, _)| file.starts_with(magic)).map(|(_, name)| *name);
    let (at, magic) = BOOT_SECTOR;
    let is_boot_sector = file.get(at..).is_some_and(|rest| rest.starts_with(magic));
    known.or(is_boot_sector.then_some("a disk image or boot sector, which only firmware starts"))
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::Unknown(looks_like) => {
                f.write_str("is neither a Linux bzImage nor a multiboot kernel")?;
                if let Some(name) = looks_like {
                    write!(f, " but {name}")?;
                }
                f.write_str(
                    "; give a kernel such as /boot/vmlinuz-*, or an ELF32 file with a multiboot header",
                )
            }
            ImageError::Linux(error) => error.fmt(f),
            ImageError::Foreign(name, error) => {
                write!(f, "is {name}, which is no Linux kernel but ")?;
                match error {
                    HeaderError::OldProtocol(version) => write!(
                        f,
                        "uses Linux boot protocol {}.{:02} all the same, and at least 2.12 is needed; give a \
                         build of it that has it",
                        version >> 8,
                        version & 0xff
                    ),
                    error => error.fmt(f),
                }
            }
            ImageError::Multiboot(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::guest::bzimage::tests::synthetic;

    /// A kernel of one page at 1 MiB that is nothing but a multiboot header with address fields.
    pub(crate) fn multiboot() -> Vec<u8> {
        const FLAGS: u32 = 1 << 16;
        const START: u32 = 1 << 20;
        let header =
            [0x1bad_b002, FLAGS, 0u32.wrapping_sub(0x1bad_b002 + FLAGS), START, START, 0, 0, START];
        let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.resize(4096, 0);
        file
    }

    #[test]
    fn a_multiboot_kernel() {
        assert!(matches!(Image::classify(&multiboot()), Ok(Image::Multiboot(_))));
        let sentence = Image::classify(&multiboot()[..0x1c]).unwrap_err().to_string();
        assert!(sentence.starts_with("is damaged"), "{sentence}");
    }

    /// Memory testers and boot loaders follow the protocol, too; a newer Linux is no way out for
    /// their users.
    #[test]
    fn an_image_that_is_no_linux_is_named() {
        let named = |name: &[u8], at: usize, bytes: &[u8]| {
            let mut file = synthetic();
            file[0x300..0x300 + name.len()].copy_from_slice(name);
            file[at..at + bytes.len()].copy_from_slice(bytes);
            Image::classify(&file)
        };
        let Ok(Image::Linux(image)) = named(b"Memtest86+ v6.10\0", 0, &[]) else {
            panic!("refused")
        };
        assert!(!image.is_linux());
        for (name, at, bytes, words) in [
            (
                b"iPXE 1.21.1\0".as_slice(),
                0x206,
                &[7, 2],
                "is iPXE 1.21.1, which is no Linux kernel but uses",
            ),
            (b"MEMDISK 6.04\0", 0x1f4, &[0xff, 0xff], "truncated"),
        ] {
            let sentence = named(name, at, bytes).unwrap_err().to_string();
            assert!(sentence.contains(words), "{sentence}");
            assert!(!sentence.contains("3.8") && !sentence.contains("32-bit Linux"), "{sentence}");
        }
        let sentence = named(b"3.2.0 (old)\0", 0x206, &[10, 2]).unwrap_err().to_string();
        assert!(sentence.contains("version 3.8 or later"), "{sentence}");
    }

    #[test]
    fn a_wrong_file_is_named_for_what_it_is() {
        for (file, expected) in [
            (b"\x7fELF\x02".as_slice(), "ELF"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"070701", "cpio"),
            (b"MZ\x90", "EFI"),
            (&[&[0; 0x1fe][..], b"\x55\xaa"].concat(), "boot sector"),
            (b"", "empty"),
            (b"what is this", "is neither a Linux bzImage nor a multiboot kernel;"),
        ] {
            let sentence = Image::classify(file).unwrap_err().to_string();
            assert!(sentence.contains(expected), "{sentence}");
        }
    }
}
