//! What an image calls itself.

use super::header::{field, u16_at};

/// A kernel version is a line; one that is longer is noise.
const LIMIT: usize = 256;

/// What a bzImage calls itself, such as `6.1.0-44-amd64 (...) #1 SMP ...`: the zero-terminated text
/// at `kernel_version` + 0x200. `None` if it says nothing, or nothing printable.
pub fn version(file: &[u8]) -> Option<&str> {
    let start = match u16_at(file, field::KERNEL_VERSION)? {
        0 => return None,
        pointer => usize::from(pointer) + 0x200,
    };
    let text = file.get(start..)?;
    let end = text.iter().take(LIMIT).position(|&byte| byte == 0)?;
    let text = core::str::from_utf8(&text[..end]).ok()?.trim();
    (!text.is_empty() && !text.contains(char::is_control)).then_some(text)
}

/// Whether an image with this [`version`] is a Linux kernel. Linux's text begins with its release,
/// `6.1.0`; other programs that follow the boot protocol begin with their name: `Memtest86+ v6.10`,
/// `MEMDISK 6.04`, `iPXE 1.21.1`.
pub fn is_linux(version: &str) -> bool {
    version.starts_with(|first: char| first.is_ascii_digit())
}
