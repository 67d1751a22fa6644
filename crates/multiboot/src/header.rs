//! The multiboot header (specification, "OS image format").

use super::LoadError;

/// The header lies entirely within this many bytes from the start of the file.
pub const SEARCH_SPAN: u64 = 8192;

const MAGIC: u32 = 0x1bad_b002;

/// Flags that a loader must know: 0 to 15.
const REQUIRED: u32 = 0xffff;
/// Modules at page boundaries, memory information, a video mode. QEMU, too, goes on without the
/// last.
const KNOWN: u32 = 0b111;
/// The address fields are there, and replace whatever else the file says.
const ADDRESS_FIELDS: u32 = 1 << 16;

/// The address fields of a header ("The address fields of Multiboot header"): all are physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where the header itself goes.
    pub header: u32,
    /// Where the text goes.
    pub load: u32,
    /// The end of what is loaded, or 0 for all of the file.
    pub load_end: u32,
    /// The end of what is zeroed behind it, or 0 for nothing.
    pub bss_end: u32,
    /// The entry point.
    pub entry: u32,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its offset in the file.
    pub offset: u64,
    /// Where everything goes, unless the ELF headers say it.
    pub addresses: Option<Addresses>,
}

impl Header {
    /// Looks for the header in the first [`SEARCH_SPAN`] bytes of a file, or all of a shorter one.
    ///
    /// # Errors
    /// It asks for what this loader does not know.
    pub fn find(head: &[u8]) -> Result<Option<Header>, LoadError> {
        let head = &head[..head.len().min(SEARCH_SPAN as usize)];
        let word = |at: usize| head.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
        let found = (0..head.len()).step_by(4).find_map(|at| {
            let [magic, flags, checksum] = [word(at)?, word(at + 4)?, word(at + 8)?];
            let sum = magic.wrapping_add(flags).wrapping_add(checksum);
            (magic == MAGIC && sum == 0).then_some((at, flags))
        });
        let Some((at, flags)) = found else { return Ok(None) };
        if flags & REQUIRED & !KNOWN != 0 {
            return Err(LoadError::UnknownFlags(flags & REQUIRED & !KNOWN));
        }
        let field = |index: usize| {
            word(at + 12 + 4 * index).ok_or(LoadError::Damaged(
                "its multiboot header does not end within the first 8 KiB",
            ))
        };
        let addresses = if flags & ADDRESS_FIELDS == 0 {
            None
        } else {
            Some(Addresses {
                header: field(0)?,
                load: field(1)?,
                load_end: field(2)?,
                bss_end: field(3)?,
                entry: field(4)?,
            })
        };
        Ok(Some(Header { offset: at as u64, addresses }))
    }
}
