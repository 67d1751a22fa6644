//! The CPU as a 32-bit kernel uses it.
//!
//! What makes the safe functions here sound: the compiler's own memory is the image (`link.ld`)
//! below 4 MiB, which every root maps to itself. All else is touched by volatile accesses only.
#![allow(unsafe_code, reason = "instructions, tables and modes that the compiler knows nothing of")]

pub mod cpu;
pub mod descriptors;
pub mod memory;
pub mod run;
mod start;

pub use start::Boot;

/// Makes a function the kernel: it takes [`Boot`] and returns the value for the exit port.
macro_rules! kernel {
    ($main:path) => {
        #[allow(unsafe_code, reason = "the one name that the kit calls")]
        #[unsafe(no_mangle)]
        fn legacy_main(boot: &$crate::kit::Boot) -> u8 {
            $main(boot)
        }
    };
}
pub(crate) use kernel;
