//! What an emulator is started with.

use std::path::PathBuf;

/// The image, in the folder that it is built in.
pub const IMAGE: &str = "boot.iso";

/// Bochs, and a CPU in it.
#[derive(Clone, Debug)]
pub(super) struct Bochs {
    pub program: PathBuf,
    pub bios: PathBuf,
    pub vga_bios: PathBuf,
    pub model: String,
}

/// What varies between runs of an emulator.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The machine's memory.
    pub memory_mib: u32,
    /// Whether model-specific registers that the CPU lacks read as zero: Linux on the bare machine
    /// wants some. (Bochs.)
    pub ignore_bad_msrs: bool,
    /// Whether the machine's clock starts at the same time in every run, and not at this host's.
    pub fixed_time: bool,
}
