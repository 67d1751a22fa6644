//! From the loader to the tests.

use core::cell::UnsafeCell;

use guest_kernels::kit::{console, power};
use guest_kernels::options::Options;

use super::descriptors;

/// EAX at entry (Multiboot specification, "Machine state").
const MAGIC: u32 = 0x2bad_b002;
const COMMAND_LINE: u32 = 1 << 2;
const LINE: usize = 1024;

struct Line(UnsafeCell<[u8; LINE]>);

// SAFETY: it is written before anything reads it; there is one CPU.
unsafe impl Sync for Line {}

static LINE_TEXT: Line = Line(UnsafeCell::new([0; LINE]));

unsafe extern "Rust" {
    /// The kernel's own function, by [`kernel!`](crate::kit::kernel).
    safe fn legacy_main(boot: &Boot) -> u8;
}

/// What the tests start with.
pub struct Boot {
    /// The command line.
    pub options: Options<'static>,
}

/// # Safety
/// Only `legacy.s` calls it, once, with what the loader left in EBX and EAX.
#[unsafe(no_mangle)]
unsafe extern "C" fn legacy_start(information: u32, magic: u32) -> ! {
    console::init();
    assert!(magic == MAGIC, "not started by a multiboot loader: EAX was {magic:#x}");
    // SAFETY: the loader vouches for the structure: flags first, the command line's address at
    // offset 16.
    let word = |at: usize| unsafe { ((information as usize + at) as *const u32).read_unaligned() };
    let line = LINE_TEXT.0.get();
    if word(0) & COMMAND_LINE != 0 {
        for index in 0..LINE {
            // SAFETY: as above; the string ends with a zero. `line` is not shared yet.
            let byte = unsafe { ((word(16) as usize + index) as *const u8).read_volatile() };
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
    let line = core::str::from_utf8(&line[..end]).expect("the command line is not text");
    descriptors::load();
    power::exit(legacy_main(&Boot { options: Options::new(line) }))
}
