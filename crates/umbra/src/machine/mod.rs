//! The machine that the hypervisor runs on: Bochs, or QEMU alone or with KVM, and the image that it
//! boots from.

mod bochsrc;
mod boot_image;
mod death;
mod emulator;
mod kvm;
mod model;
mod programs;
mod qemu;
mod settings;

pub use boot_image::{BootFiles, System, build as build_boot_image, new_folder, temporary_folder};
pub use death::{bare_end, explain as explain_death};
pub use emulator::{Emulator, Outputs};
pub use kvm::{Facts as KvmFacts, NestedVmx};
pub use model::Machine;
pub use programs::{ImageTools, Programs, bochs_share, plugin_folders};
pub use settings::{IMAGE, Settings};
