//! From the loader to the tests.

use guest_kernels::base::{console, loader, power};
use guest_kernels::options::Options;

use super::descriptors;

/// A flag of the boot information: there is a command line.
const COMMAND_LINE: u32 = 1 << 2;
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
    loader::check_magic(magic);
    // SAFETY: the loader vouches for the structure: flags first, the command line's address at
    // offset 16.
    let word = |at: usize| unsafe { ((information as usize + at) as *const u32).read_unaligned() };
    let line = word(0) & COMMAND_LINE != 0;
    // SAFETY: as above; this function is called once.
    let options = unsafe { loader::options(line.then(|| word(16))) };
    descriptors::load();
    power::exit(legacy_main(&Boot { options }))
}
