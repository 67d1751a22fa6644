//! The guest's `/init`, and those of hosts that run KVM.

use std::path::{Path, PathBuf};

use crate::nested::Build;
use crate::{Error, GuestArch, Toolchain};

/// Builds `guest/init` of the checkout at `workspace` as a static Linux program, and says where it
/// is.
///
/// # Errors
/// No toolchain builds for `arch`, or cargo cannot be started, or fails.
pub fn guest_init(workspace: &Path, target_dir: &Path, arch: GuestArch) -> Result<PathBuf, Error> {
    static_program("umbra-init", workspace, target_dir, arch)
}

/// Builds `guest/kvm-peer` with the active toolchain likewise.
///
/// # Errors
/// Cargo cannot be started, or fails.
pub fn kvm_peer(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Error> {
    static_program("umbra-kvm-peer", workspace, target_dir, GuestArch::Amd64)
}

/// Builds `guest/kvm-trial` likewise.
///
/// # Errors
/// Cargo cannot be started, or fails.
pub fn kvm_trial(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Error> {
    static_program("umbra-kvm-trial", workspace, target_dir, GuestArch::Amd64)
}

fn static_program(
    package: &'static str,
    workspace: &Path,
    target_dir: &Path,
    arch: GuestArch,
) -> Result<PathBuf, Error> {
    Build {
        toolchain: &Toolchain::for_guest(arch)?,
        workspace,
        package,
        target: arch.target(),
        profile: "release",
        // An initramfs has no dynamic loader, and is unpacked by an emulated CPU.
        rustflags: &["-Ctarget-feature=+crt-static".into(), "-Cstrip=symbols".into()],
        target_dir,
    }
    .run()
}
