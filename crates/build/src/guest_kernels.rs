//! The small kernels of `guest/kernels` and `guest/legacy`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::nested::Build;
use crate::toolchain::{BARE_METAL_32_TARGET, BARE_METAL_TARGET};
use crate::{Error, Toolchain, bare_metal};

/// The programs of the package.
const KERNELS: [&str; 6] = ["exhaustive", "hostile", "basics", "forms", "exact", "machine"];

/// The program of `guest/legacy`.
const LEGACY: &str = "legacy";

/// A multiboot-1 kernel is an ELF32 (QEMU refuses others); the compiler makes ELF64.
const OBJCOPY: &str = "objcopy";

/// Builds `guest/kernels` and `guest/legacy` of the checkout at `workspace` for bare metal, and
/// leaves them in `folder`, `basics.elf` and so on: multiboot-1 kernels as ELF32 without symbols.
/// The ELF64s that they were made from, with symbols, stay in `target_dir`.
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
    let place = |name: &str| folder.join(name).with_extension("elf");
    let mut kernels: Vec<PathBuf> = KERNELS
        .iter()
        .map(|name| to_elf32(&programs.join(name), &place(name)))
        .collect::<Result<_, _>>()?;
    kernels.push(to_elf32(&legacy_kernel(workspace, target_dir)?, &place(LEGACY))?);
    Ok(kernels)
}

/// `guest/legacy`, whose code is 32-bit.
fn legacy_kernel(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Error> {
    let mut rustflags = bare_metal::rustflags(&workspace.join("guest/kernels/link.ld"));
    rustflags.extend(["-Cpanic=abort", "-Clink-arg=-melf_i386"].map(String::from));
    let programs = Build {
        toolchain: &Toolchain::find_32()?,
        workspace,
        package: "umbra-legacy-kernel",
        target: BARE_METAL_32_TARGET,
        profile: "release",
        rustflags: &rustflags,
        target_dir,
    }
    .programs()?;
    Ok(programs.join(LEGACY))
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
