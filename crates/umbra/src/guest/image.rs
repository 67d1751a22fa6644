//! Which kind of guest a file is.

use std::fmt;

use umbra_bzimage::HeaderError;
use umbra_multiboot::{Kernel, LoadError};

use super::BzImage;

/// A guest that the hypervisor can boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A Linux kernel for the 64-bit boot protocol.
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
    /// A multiboot kernel that cannot be loaded.
    Multiboot(LoadError),
}

impl Image {
    /// Looks at a whole file.
    ///
    /// # Errors
    /// It is nothing that boots here.
    pub fn classify(file: &[u8]) -> Result<Image, ImageError> {
        if let Some(linux) = BzImage::parse(file).map_err(ImageError::Linux)? {
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
    ];
    if file.is_empty() {
        return Some("an empty file");
    }
    KNOWN.iter().find(|(magic, _)| file.starts_with(magic)).map(|(_, name)| *name)
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
            ImageError::Multiboot(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A kernel of one page at 1 MiB that is nothing but a multiboot header with address fields.
    pub(crate) fn multiboot() -> Vec<u8> {
        const FLAGS: u32 = 1 << 16;
        const START: u32 = 1 << 20;
        let header = [0x1bad_b002, FLAGS, 0u32.wrapping_sub(0x1bad_b002 + FLAGS), START, START, 0, 0, START];
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

    #[test]
    fn a_wrong_file_is_named_for_what_it_is() {
        for (file, expected) in [
            (b"\x7fELF\x02".as_slice(), "ELF"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"070701", "cpio"),
            (b"", "empty"),
            (b"what is this", "is neither a Linux bzImage nor a multiboot kernel;"),
        ] {
            let sentence = Image::classify(file).unwrap_err().to_string();
            assert!(sentence.contains(expected), "{sentence}");
        }
    }
}
