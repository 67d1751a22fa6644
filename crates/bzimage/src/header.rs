//! The header's fields, checked.

use super::HeaderError;

/// The part of a kernel file that holds its setup header, whose length is a byte at 0x201.
pub const HEADER_SPAN: usize = field::MAGIC + 0xff;

/// Where the header starts, in the kernel file as in the boot parameters.
pub const HEADER_START: usize = 0x1f1;

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: [u8; 4] = *b"HdrS";
/// The protocol that came with the 64-bit entry point's flag. The 32-bit entry point is older.
const PROTOCOL: u16 = 0x020c;
/// XLF_KERNEL_64 of xloadflags.
const KERNEL_64: u16 = 1 << 0;

const SECTOR: u64 = 512;
/// The unit of `syssize`.
const PARAGRAPH: u64 = 16;

/// Where the protected-mode part goes if the header prefers no place.
const DEFAULT_ADDRESS: u64 = 1 << 20;

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
    /// Whether it has a 64-bit entry point. One without is started by the 32-bit boot protocol.
    pub entry_64: bool,
    /// Where the protected-mode kernel starts in the file: before its end.
    pub payload_offset: u64,
    /// Zero bytes that belong behind the file's last one: its last paragraph may lack up to 15.
    pub padding: u64,
    /// Where the kernel wants to run, in guest-physical bytes; at least 1 MiB, below 4 GiB.
    pub preferred_address: u64,
    /// Bytes of memory that it needs there: `init_size`, or more if the file has more from
    /// `payload_offset` on.
    pub memory_size: u64,
    /// The initrd's highest byte may lie here.
    pub initrd_address_max: u64,
    /// Bytes of the longest command line, without the zero at its end.
    pub command_line_limit: u32,
}

impl<'a> SetupHeader<'a> {
    /// Reads the header of a kernel file of `size` bytes from its `head`: the first [`HEADER_SPAN`]
    /// bytes, or all of a shorter one. `None` if the file is no bzImage.
    ///
    /// # Errors
    /// It is a bzImage, but not one that can be booted.
    pub fn parse(head: &'a [u8], size: u64) -> Result<Option<SetupHeader<'a>>, HeaderError> {
        if !is_bzimage(head) {
            return Ok(None);
        }
        let truncated = |want| HeaderError::Truncated { have: size, want };
        let version = u16_at(head, field::VERSION).ok_or(truncated(field::END as u64))?;
        if version < PROTOCOL {
            return Err(HeaderError::OldProtocol(version));
        }
        let end = field::MAGIC + usize::from(head[field::LENGTH]);
        if end < field::END {
            return Err(HeaderError::Damaged("it ends before its last field"));
        }
        let bytes = head.get(HEADER_START..end).ok_or(truncated(end as u64))?;
        let fields: &[u8; field::END] = head.first_chunk().ok_or(truncated(end as u64))?;
        let entry_64 = u16_of(fields, field::XLOADFLAGS) & KERNEL_64 != 0;
        // boot.rst: "if the setup_sects field contains 0, the real value is 4".
        let setup_sectors = match fields[field::SETUP_SECTS] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let payload_offset = (setup_sectors + 1) * SECTOR;
        let paragraphs = u64::from(u32_of(fields, field::SYSSIZE));
        if paragraphs == 0 {
            return Err(HeaderError::Damaged("it says that no kernel follows it"));
        }
        let payload_end = payload_offset + paragraphs * PARAGRAPH;
        // A build rounds `syssize` up; whether it pads its file as well is its own choice.
        let least = payload_end - (PARAGRAPH - 1);
        if size < least {
            return Err(truncated(least));
        }
        let padding = payload_end.saturating_sub(size);
        // boot.rst, `pref_address`: a preference "if nonzero".
        let preferred_address = match u64::from_le_bytes(bytes_of(fields, field::PREF_ADDRESS)) {
            0 => DEFAULT_ADDRESS,
            address => address,
        };
        if !(1 << 20..1 << 32).contains(&preferred_address) {
            return Err(HeaderError::Place(preferred_address));
        }
        // A file may be longer than its kernel (a signature), and `init_size` only counts what the
        // kernel needs.
        let init_size = u64::from(u32_of(fields, field::INIT_SIZE));
        let memory_size = init_size.max(size + padding - payload_offset);
        Ok(Some(SetupHeader {
            bytes,
            entry_64,
            payload_offset,
            padding,
            preferred_address,
            memory_size,
            initrd_address_max: u32_of(fields, field::INITRD_ADDR_MAX).into(),
            command_line_limit: u32_of(fields, field::CMDLINE_SIZE),
        }))
    }
}

/// Whether a file that starts with these [`HEADER_SPAN`] bytes, or is that short, is a bzImage,
/// bootable or not.
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
