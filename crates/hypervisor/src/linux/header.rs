//! The setup header of a bzImage (boot.rst, "The Real-Mode Kernel Header").

use umbra_paging::PAGE_SIZE;

use super::LoadError;

/// The part of a kernel file that holds its setup header, whose length is a byte at 0x201.
pub const HEADER_SPAN: usize = 0x202 + 0xff;

/// Where the header starts, in the kernel file as in the boot parameters.
pub const HEADER_START: usize = 0x1f1;

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8] = b"HdrS";
/// The protocol that came with the 64-bit entry point's flag.
const PROTOCOL_64: u16 = 0x020c;
/// XLF_KERNEL_64 of xloadflags.
const ENTRY_64: u16 = 1 << 0;

/// Places of fields, from the start of the file.
mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const LENGTH: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// The fields that matter, checked.
#[derive(Debug)]
pub struct SetupHeader<'a> {
    /// The header itself, for the boot parameters.
    pub bytes: &'a [u8],
    /// Where the 64-bit kernel starts in the file.
    pub payload_offset: u64,
    /// Where the kernel wants to run; at least 1 MiB, page-aligned, below 4 GiB.
    pub preferred_address: u64,
    /// Bytes of memory that it needs there.
    pub init_size: u32,
    /// The initrd's highest byte may lie here.
    pub initrd_address_max: u64,
    /// Bytes of the longest command line, without the zero at its end.
    pub command_line_limit: u32,
}

impl<'a> SetupHeader<'a> {
    /// Reads the header of a kernel file of `size` bytes from its `head`.
    ///
    /// # Errors
    /// It is not a bzImage with a 64-bit entry point.
    pub fn parse(head: &'a [u8], size: u64) -> Result<SetupHeader<'a>, LoadError> {
        let u8_at = |at: usize| head.get(at).copied().ok_or(LoadError::NotBzImage);
        let u16_at = |at: usize| array(head, at).map(u16::from_le_bytes);
        let u32_at = |at: usize| array(head, at).map(u32::from_le_bytes);
        if u16_at(field::BOOT_FLAG)? != BOOT_FLAG || head.get(field::MAGIC..field::MAGIC + 4) != Some(MAGIC) {
            return Err(LoadError::NotBzImage);
        }
        let version = u16_at(field::VERSION)?;
        if version < PROTOCOL_64 {
            return Err(LoadError::OldProtocol(version));
        }
        if u16_at(field::XLOADFLAGS)? & ENTRY_64 == 0 {
            return Err(LoadError::Not64Bit);
        }
        let end = field::MAGIC + usize::from(u8_at(field::LENGTH)?);
        if end < field::INIT_SIZE + 4 {
            return Err(LoadError::Damaged("it ends before its last field"));
        }
        let bytes =
            head.get(HEADER_START..end).ok_or(LoadError::Truncated { have: size, want: end as u64 })?;
        // boot.rst: "if the setup_sects field contains 0, the real value is 4".
        let setup_sectors = match u8_at(field::SETUP_SECTS)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let payload_offset = (setup_sectors + 1) * 512;
        let want = payload_offset + u64::from(u32_at(field::SYSSIZE)?) * 16;
        if size < want || size <= payload_offset {
            return Err(LoadError::Truncated { have: size, want });
        }
        let preferred_address = array(head, field::PREF_ADDRESS).map(u64::from_le_bytes)?;
        if !(1 << 20..1 << 32).contains(&preferred_address) || !preferred_address.is_multiple_of(PAGE_SIZE) {
            return Err(LoadError::Damaged("its preferred load address is none"));
        }
        let init_size = u32_at(field::INIT_SIZE)?;
        if u64::from(init_size) < size - payload_offset {
            return Err(LoadError::Damaged("it asks for less memory than the image has bytes"));
        }
        Ok(SetupHeader {
            bytes,
            payload_offset,
            preferred_address,
            init_size,
            initrd_address_max: u32_at(field::INITRD_ADDR_MAX)?.into(),
            command_line_limit: u32_at(field::CMDLINE_SIZE)?,
        })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], LoadError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(LoadError::NotBzImage)
}
