//! Builds what cannot be built by a plain `cargo build` of the workspace: the bare-metal
//! hypervisor, the small guest kernels, and the guest's static `/init`.
//!
//! Each runs a cargo of its own, with a target directory of its own. So a build script can call
//! them (`umbra` embeds the hypervisor), and an xtask.
//!
//! Hypervisor and kernels need the target `x86_64-unknown-none`, the `/init` of 32-bit guests
//! `i686-unknown-linux-gnu`. [`Toolchain`] takes the active toolchain if it has that target, else
//! Debian's Rust packages with their library source; it never lets rustup download anything.
#![forbid(unsafe_code)]

mod bare_metal;
mod depinfo;
mod environment;
mod error;
mod guest_kernels;
mod hypervisor;
mod init;
mod nested;
mod relative;
mod toolchain;

pub use error::Error;
pub use guest_kernels::guest_kernels;
pub use hypervisor::{Hypervisor, hypervisor};
pub use init::{guest_init, kvm_peer, kvm_trial};
pub use nested::shared_target_dir;
pub use relative::relative;
pub use toolchain::{DEBIAN_PACKAGES, GuestArch, Toolchain};
