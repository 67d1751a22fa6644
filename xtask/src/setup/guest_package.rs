//! Debian's kernels by the names of their packages, 32-bit ones, too, and what those need beside
//! them. Nothing of it is installed but the compiler's 32-bit libraries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use umbra_build::GuestArch;

use super::debian::{self, Apt};
use super::{guest_kernel, step};

/// How the names of such packages start.
const PREFIX: &str = "linux-image-";

/// Names of 32-bit kernels have this part; that of PAE ones goes on.
const NAMES_I386: &str = "-686";

/// A package with a kernel, such as `linux-image-686-pae`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPackage(String);

impl GuestPackage {
    /// The package that a user means, if it is no file and may be one.
    pub fn named(name: &str) -> Option<GuestPackage> {
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
        let is_name = name.starts_with(PREFIX) && name.bytes().all(plain);
        (is_name && !Path::new(name).exists()).then(|| GuestPackage(name.into()))
    }

    /// What its kernel runs on.
    pub fn arch(&self) -> GuestArch {
        if self.0.contains(NAMES_I386) { GuestArch::I386 } else { GuestArch::Amd64 }
    }

    /// Its kernel below `folder`, fetched if it is not there yet.
    ///
    /// # Errors
    /// It is not there, and this is not Debian, or there is no such package, or a download fails.
    pub fn kernel(&self, apt: &mut Apt, folder: &Path) -> Result<PathBuf> {
        let GuestPackage(name) = self;
        let kernel = folder.join("kernels").join(name).join("vmlinuz");
        if kernel.exists() {
            return Ok(kernel);
        }
        ensure!(
            debian::is_debian(),
            "packages of kernels are fetched on Debian only: put the bzImage of {name} at {}",
            kernel.display()
        );
        let mut foreign;
        let apt = match self.arch() {
            GuestArch::Amd64 => apt,
            GuestArch::I386 => {
                foreign = apt_i386(folder)?;
                &mut foreign
            }
        };
        apt.check_kernel(name)?;
        // Most names are those of packages that only depend on the current kernel.
        let package = apt.dependency(name).unwrap_or_else(|_| name.clone());
        eprintln!("xtask: fetching the guest's kernel, {package} (it is not installed)");
        apt.take(&package, folder, |unpacked| {
            fs::create_dir_all(kernel.parent().expect("it lies in a folder of its own"))?;
            fs::rename(guest_kernel::find(&unpacked.join("boot"))?, &kernel)
                .context("moving the kernel to its place")
        })?;
        Ok(kernel)
    }
}

/// What the 32-bit initramfs is made with: the compiler's 32-bit libraries, and the busybox that is
/// returned.
///
/// # Errors
/// This is not Debian, or apt fails.
pub fn tools_32(folder: &Path) -> Result<PathBuf> {
    /// The C library of gcc-multilib, for static programs.
    const LIBRARY: &str = "/usr/lib32/libc.a";
    let busybox = folder.join("busybox-i386");
    if !busybox.exists() {
        ensure!(
            debian::is_debian(),
            "a 32-bit busybox is fetched on Debian only: put a static one at {}",
            busybox.display()
        );
        let mut apt = apt_i386(folder)?;
        step("fetching a 32-bit busybox", || {
            apt.take("busybox-static", folder, |unpacked| {
                fs::rename(unpacked.join("bin/busybox"), &busybox)
                    .context("moving busybox to its place")
            })
        })?;
    }
    if debian::is_debian() && !Path::new(LIBRARY).exists() {
        debian::install(&["gcc-multilib"])?;
    }
    Ok(busybox)
}

fn apt_i386(folder: &Path) -> Result<Apt> {
    Apt::foreign("i386", &folder.join("apt-i386"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_told_from_files() {
        let arch = |name| GuestPackage::named(name).map(|package| package.arch());
        assert_eq!(arch("linux-image-686"), Some(GuestArch::I386));
        assert_eq!(arch("linux-image-6.1.0-50-686-pae-unsigned"), Some(GuestArch::I386));
        assert_eq!(arch("linux-image-cloud-amd64"), Some(GuestArch::Amd64));
        for file in
            ["vmlinuz", "./linux-image-686", "linux-image-686/vmlinuz", "linux-image-686 -o x"]
        {
            assert_eq!(arch(file), None, "{file}");
        }
    }
}
