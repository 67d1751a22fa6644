//! The guest's kernel: Debian's, fetched as a package and unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::debian::{self, Apt};

/// The package that depends on the current kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// KVM's modules, those of both vendors.
pub const MODULES: &[&str] = &["irqbypass", "kvm", "kvm-intel", "kvm-amd"];

/// Debian's kernel, and modules that belong to it.
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The folder with [`MODULES`]; they may be missing beside a kernel that the user has put
    /// there.
    pub modules: PathBuf,
}

/// The kernel in `folder`, fetched if it is not there yet.
///
/// # Errors
/// It is not there, and this is not Debian or a download fails.
pub fn fetch(apt: &mut Apt, folder: &Path) -> Result<Kernel> {
    let kernel = places(folder);
    if !kernel.image.exists() {
        fetch_package(apt, folder, &kernel)?;
    }
    Ok(kernel)
}

/// The kernel in `folder` with its modules, both fetched if one is not there yet: modules fit one
/// build only.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_with_modules(apt: &mut Apt, folder: &Path) -> Result<Kernel> {
    let kernel = places(folder);
    if !kernel.image.exists() || MODULES.iter().any(|name| !kernel.module(name).exists()) {
        fetch_package(apt, folder, &kernel)?;
    }
    Ok(kernel)
}

impl Kernel {
    /// Where a module is.
    pub fn module(&self, name: &str) -> PathBuf {
        self.modules.join(name).with_extension("ko")
    }
}

fn places(folder: &Path) -> Kernel {
    Kernel { image: folder.join("vmlinuz"), modules: folder.join("modules") }
}

fn fetch_package(apt: &mut Apt, folder: &Path, kernel: &Kernel) -> Result<()> {
    if !debian::is_debian() {
        bail!(
            "Debian's kernel can only be fetched on Debian: put a bzImage at {} and its modules {} into {}",
            kernel.image.display(),
            MODULES.join(", "),
            kernel.modules.display()
        );
    }
    let package = apt.dependency(META_PACKAGE)?;
    eprintln!("xtask: fetching the guest's kernel, {package} (it is not installed)");
    apt.take(&package, folder, |unpacked| {
        fs::create_dir_all(&kernel.modules)?;
        for name in MODULES {
            let file = find_below(&unpacked.join("lib/modules"), &format!("{name}.ko"))?;
            let file = file.with_context(|| format!("{package} has no module {name}"))?;
            fs::rename(file, kernel.module(name)).context("moving a module to its place")?;
        }
        fs::rename(find(&unpacked.join("boot"))?, &kernel.image)
            .context("moving the kernel to its place")
    })
}

/// The file of that name in a folder or below.
fn find_below(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_below(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The kernel in a package's folder `boot`.
pub fn find(boot: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(boot).with_context(|| boot.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    bail!("the package has no vmlinuz in {}", boot.display())
}
