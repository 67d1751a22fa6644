//! What is to boot: kernel, initrd, command line and memory, looked at before anything is started.

mod bzimage;
mod command_line;
mod image;
mod limits;
mod options;
mod prepare;
mod read;

pub use bzimage::BzImage;
pub use command_line::{check_append, check_configuration, check_files, command_line};
#[cfg(test)]
pub(crate) use image::tests as image_tests;
pub use image::{Image, ImageError};
pub use limits::{check_machine_memory, check_memory};
pub use options::{Options, Policy, in_order, mechanisms, names, parse_memory, read_names};
pub use prepare::Guest;
pub use read::{Module, TO_BE_MADE, check_file, read_initrd, read_kernel, read_module};
