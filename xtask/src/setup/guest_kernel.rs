//! The guest's kernel: Debian's, fetched as a package and unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::debian::{self, Apt};

/// The package that depends on the current kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The kernel in `folder`, fetched if it is not there yet.
///
/// # Errors
/// It is not there, and this is not Debian or a download fails.
pub fn fetch(apt: &mut Apt, folder: &Path) -> Result<PathBuf> {
    let kernel = folder.join("vmlinuz");
    if kernel.exists() {
        return Ok(kernel);
    }
    if !debian::is_debian() {
        bail!("Debian's kernel can only be fetched on Debian: put a bzImage at {}", kernel.display());
    }
    let package = apt.dependency(META_PACKAGE)?;
    eprintln!("xtask: fetching the guest's kernel, {package} (it is not installed)");
    let scratch = folder.join("kernel-package");
    let (download, unpacked) = (scratch.join("download"), scratch.join("unpacked"));
    // What an interrupted fetch left.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&download)?;
    apt.unpack(&package, &download, &unpacked)?;
    fs::rename(find(&unpacked.join("boot"))?, &kernel).context("moving the kernel to its place")?;
    fs::remove_dir_all(&scratch)?;
    Ok(kernel)
}

fn find(boot: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(boot).with_context(|| boot.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    bail!("the package has no vmlinuz in {}", boot.display())
}
