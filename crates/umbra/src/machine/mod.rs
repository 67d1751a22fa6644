//! The machine that the hypervisor runs on: Bochs, and the image that it boots from.

mod bochsrc;
mod boot_image;
mod death;
mod emulator;
mod model;
mod programs;

pub use boot_image::{BootFiles, System, build as build_boot_image};
pub use death::explain as explain_death;
pub use emulator::{Emulator, Outputs};
pub use model::Machine;
pub use programs::{Programs, bochs_share, plugin_folders};
