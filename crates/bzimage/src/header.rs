//! The header's fields, checked.

use umbra_paging::PAGE_SIZE;

use super::HeaderError;

/// The part of a kernel file that holds its setup header, whose length is a byte at 0x201.
pub const HEADER_SPAN: usize = field::MAGIC + 0xff;

/// Where the header starts, in the kernel file as in the boot parameters.
pub const HEADER_START: usize = 0x1f1;

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: [u8; 4] = *b"HdrS";
/// The protocol that came with the 64-bit entry point's flag.
const PROTOCOL_64: u16 = 0x020c;
/// XLF_KERNEL_64 of xloadflags.
const KERNEL_64: u16 = 1 << 0;

const SECTOR: u64 = 512;

/// Places of fields, from the start of the file.
pub(crate) mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const LENGTH: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const KERNEL_VERSION: usize = 0x20e;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// One past the last of them.
    pub const END: usize = 0x264;
}

/// The fields that matter, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader<'a> {
    /// The header itself, for the boot parameters, where it goes to [`HEADER_START`].
    pub bytes: &'a [u8],
    /// Where the 64-bit kernel starts in the file: before its end.
    pub payload_offset: u64,
    /// Where the kernel wants to run, in guest-physical bytes; at least 1 MiB, page-aligned, below 4 GiB.
    pub preferred_address: u64,
    /// Bytes of memory that it needs there: at least as many as the file has from `payload_offset` on.
    pub init_size: u32,
    /// The initrd's highest byte may lie here.
    pub initrd_address_max: u64,
    /// Bytes of the longest command line, without the zero at its end.
    pub command_line_limit: u32,
}

impl<'a> SetupHeader<'a> {
    /// Reads the header of a kernel file of `size` bytes from its `head`: the first [`HEADER_SPAN`] bytes, or all of a
    /// shorter one. `None` if the file is no bzImage.
    ///
    /// # Errors
    /// It is a bzImage, but not one that can be booted.
    pub fn parse(head: &'a [u8], size: u64) -> Result<Option<SetupHeader<'a>>, HeaderError> {
        if !is_bzimage(head) {
            return Ok(None);
        }
        let truncated = |want| HeaderError::Truncated { have: size, want };
        let version = u16_at(head, field::VERSION).ok_or(truncated(field::END as u64))?;
        if version < PROTOCOL_64 {
            return Err(HeaderError::OldProtocol(version));
        }
        let end = field::MAGIC + usize::from(head[field::LENGTH]);
        if end < field::END {
            return Err(HeaderError::Damaged("it ends before its last field"));
        }
        let bytes = head.get(HEADER_START..end).ok_or(truncated(end as u64))?;
        let fields: &[u8; field::END] = head.first_chunk().ok_or(truncated(end as u64))?;
        if u16_of(fields, field::XLOADFLAGS) & KERNEL_64 == 0 {
            return Err(HeaderError::Not64Bit);
        }
        // boot.rst: "if the setup_sects field contains 0, the real value is 4".
        let setup_sectors = match fields[field::SETUP_SECTS] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let payload_offset = (setup_sectors + 1) * SECTOR;
        let payload_size = u64::from(u32_of(fields, field::SYSSIZE)) * 16;
        if payload_size == 0 {
            return Err(HeaderError::Damaged("it says that no kernel follows it"));
        }
        if size < payload_offset + payload_size {
            return Err(truncated(payload_offset + payload_size));
        }
        let preferred_address = u64::from_le_bytes(bytes_of(fields, field::PREF_ADDRESS));
        if !(1 << 20..1 << 32).contains(&preferred_address) || !preferred_address.is_multiple_of(PAGE_SIZE) {
            return Err(HeaderError::Damaged("its preferred load address is none"));
        }
        let init_size = u32_of(fields, field::INIT_SIZE);
        if u64::from(init_size) < size - payload_offset {
            return Err(HeaderError::Damaged("it asks for less memory than the image has bytes"));
        }
        Ok(Some(SetupHeader {
            bytes,
            payload_offset,
            preferred_address,
            init_size,
            initrd_address_max: u32_of(fields, field::INITRD_ADDR_MAX).into(),
            command_line_limit: u32_of(fields, field::CMDLINE_SIZE),
        }))
    }
}

/// Whether a file that starts with these [`HEADER_SPAN`] bytes, or is that short, is a bzImage, bootable or not.
pub fn is_bzimage(head: &[u8]) -> bool {
    u16_at(head, field::BOOT_FLAG) == Some(BOOT_FLAG) && array(head, field::MAGIC) == Some(MAGIC)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Bytes of a header that is all there.
fn bytes_of<const N: usize>(fields: &[u8; field::END], at: usize) -> [u8; N] {
    core::array::from_fn(|index| fields[at + index])
}

fn u16_of(fields: &[u8; field::END], at: usize) -> u16 {
    u16::from_le_bytes(bytes_of(fields, at))
}

fn u32_of(fields: &[u8; field::END], at: usize) -> u32 {
    u32::from_le_bytes(bytes_of(fields, at))
}
