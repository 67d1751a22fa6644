//! What a multiboot loader tells every kernel.

use core::cell::UnsafeCell;

use crate::options::Options;

/// EAX at entry (Multiboot specification, "Machine state").
const MAGIC: u32 = 0x2bad_b002;

const LINE: usize = 1024;

struct Line(UnsafeCell<[u8; LINE]>);

// SAFETY: `options` writes it before anything reads it, once; there is one CPU.
unsafe impl Sync for Line {}

static COMMAND_LINE: Line = Line(UnsafeCell::new([0; LINE]));

/// Checks that a multiboot loader started the kernel.
///
/// # Panics
/// If EAX was something else at entry.
pub fn check_magic(magic: u32) {
    assert!(magic == MAGIC, "not started by a multiboot loader: EAX was {magic:#x}");
}

/// A copy of the command line at this address, if the loader passes one. It ends at its zero, or
/// where there is no room for more.
///
/// # Panics
/// If it is not text.
///
/// # Safety
/// The loader vouches for the address: it is mapped, and the string ends with a zero. It is called
/// once.
pub unsafe fn options(address: Option<u32>) -> Options<'static> {
    let line = COMMAND_LINE.0.get();
    if let Some(address) = address {
        for index in 0..LINE {
            // SAFETY: the caller vouches for it. `line` is not shared yet.
            let byte = unsafe { ((address as usize + index) as *const u8).read_volatile() };
            if byte == 0 {
                break;
            }
            // SAFETY: within the array.
            unsafe { (*line)[index] = byte };
        }
    }
    // SAFETY: nothing writes it any more.
    let line: &'static [u8; LINE] = unsafe { &*line };
    let end = line.iter().position(|&byte| byte == 0).unwrap_or(LINE);
    Options::new(core::str::from_utf8(&line[..end]).expect("the command line is not text"))
}
