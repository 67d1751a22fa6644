//! The small kernels of `guest/kernels`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::nested::Build;
use crate::toolchain::BARE_METAL_TARGET;
use crate::{Error, Toolchain, bare_metal};

/// The programs of the package.
const KERNELS: [&str; 6] = ["exhaustive", "hostile", "basics", "forms", "exact", "machine"];

/// A multiboot-1 kernel is an ELF32 (QEMU refuses others); the compiler makes ELF64.
const OBJCOPY: &str = "objcopy";

/// Builds `guest/kernels` of the checkout at `workspace` for bare metal, and leaves them in
/// `folder`, `basics.elf` and so on: multiboot-1 kernels as ELF32 without symbols. The ELF64s that
/// they were made from, with symbols, stay in `target_dir`.
///
/// # Errors
/// No toolchain can, cargo or objcopy (Debian: binutils) fails, or `folder` cannot be written.
pub fn guest_kernels(
    workspace: &Path,
    target_dir: &Path,
    folder: &Path,
) -> Result<Vec<PathBuf>, Error> {
    let programs = Build {
        toolchain: &Toolchain::find()?,
        workspace,
        package: "umbra-guest-kernels",
        target: BARE_METAL_TARGET,
        profile: "release",
        rustflags: &bare_metal::rustflags(&workspace.join("guest/kernels/link.ld")),
        target_dir,
    }
    .programs()?;
    fs::create_dir_all(folder)
        .map_err(|source| Error::Artifact { path: folder.to_path_buf(), source })?;
    KERNELS
        .iter()
        .map(|name| to_elf32(&programs.join(name), &folder.join(format!("{name}.elf"))))
        .collect()
}

fn to_elf32(from: &Path, to: &Path) -> Result<PathBuf, Error> {
    let mut objcopy = Command::new(OBJCOPY);
    objcopy.args(["-O", "elf32-i386", "--strip-all"]).arg(from).arg(to).stdin(Stdio::null());
    let status =
        objcopy.status().map_err(|source| Error::Spawn { program: OBJCOPY.into(), source })?;
    if !status.success() {
        return Err(Error::Objcopy { path: from.to_path_buf() });
    }
    Ok(to.to_path_buf())
}
