//! Makes a machine able to build and run: packages, the guest's kernel, its initramfs, and the
//! `umbra` tool.

mod debian;
mod guest_kernel;
mod guest_package;
mod initramfs;
mod lock;
mod step;
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use umbra_build::GuestArch;

use crate::{paths, process};
pub use debian::Apt;
pub use guest_package::GuestPackage;
use step::step;

/// A machine with all packages, on which the rest can be built.
pub struct Setup {
    apt: Apt,
    folder: PathBuf,
}

/// Everything that a boot needs.
pub struct Everything {
    pub umbra: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// What the KVM peer's host boots from.
pub struct KvmPeer {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Setup {
    /// Installs the packages that are missing.
    ///
    /// # Errors
    /// Something is missing that cannot be installed here: it is named.
    pub fn new() -> Result<Setup> {
        let mut apt = Apt::new();
        step("installing Debian packages", || debian::install_missing(&mut apt))?;
        let folder = paths::guest_dir()?;
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Setup { apt, folder })
    }

    /// Unpacks a Debian package, such as `rustc-web` or `rustc-web=1.85.0`, into a folder, without
    /// installing it.
    ///
    /// # Errors
    /// It cannot be downloaded or unpacked.
    pub fn unpack(&mut self, package: &str, into: &Path) -> Result<()> {
        let download = tempfile::tempdir_in(&self.folder)?;
        self.apt.unpack(package, download.path(), into)
    }

    /// The full version of the package whose version starts with `wanted`.
    ///
    /// # Errors
    /// There is none.
    pub fn debian_version(&mut self, package: &str, wanted: &str) -> Result<String> {
        self.apt.version(package, wanted)
    }

    /// Builds everything.
    pub fn everything(&mut self) -> Result<Everything> {
        Ok(Everything {
            kernel: self.kernel()?,
            initrd: self.initrd(GuestArch::Amd64)?,
            umbra: self.umbra()?,
        })
    }

    /// Debian's kernel.
    pub fn kernel(&mut self) -> Result<PathBuf> {
        let fetch = || guest_kernel::fetch(&mut self.apt, &self.folder);
        Ok(step("fetching the guest's kernel", fetch)?.image)
    }

    /// The KVM peer's host: a kernel and an initramfs with its modules and our `/init`.
    pub fn kvm_peer(&mut self) -> Result<KvmPeer> {
        let fetch = || guest_kernel::fetch_with_modules(&mut self.apt, &self.folder);
        let host = step("fetching the kernel of KVM's host and its modules", fetch)?;
        let build = || umbra_build::kvm_peer(paths::workspace(), &self.folder.join("build"));
        let init = step("building the program of KVM's host", build)?;
        let modules =
            guest_kernel::MODULES.iter().map(|&name| Ok((name, read(&host.module(name))?)));
        let archive = initramfs::build_peer(&read(&init)?, modules.collect::<Result<Vec<_>>>()?)?;
        let initrd = self.folder.join("kvm-peer.cpio.gz");
        fs::write(&initrd, archive).with_context(|| initrd.display().to_string())?;
        Ok(KvmPeer { kernel: host.image, initrd })
    }

    /// A kernel of Debian's, by the name of its package.
    ///
    /// # Errors
    /// It is not there, and this is not Debian or a download fails.
    pub fn packaged_kernel(&mut self, package: &GuestPackage) -> Result<PathBuf> {
        step("fetching the guest's kernel", || package.kernel(&mut self.apt, &self.folder))
    }

    /// Our initramfs for guests of this kind.
    pub fn initrd(&self, arch: GuestArch) -> Result<PathBuf> {
        let busybox = match arch {
            GuestArch::Amd64 => PathBuf::from(BUSYBOX),
            GuestArch::I386 => guest_package::tools_32(&self.folder)?,
        };
        step("building the guest's initramfs", || build_initramfs(&self.folder, &busybox, arch))
    }

    /// The folder with the small kernels of `guest/kernels` and `guest/legacy`, built.
    pub fn small_kernels(&self) -> Result<PathBuf> {
        let folder = self.folder.join("kernels");
        let target = paths::target_dir()?.join("bare-metal");
        step("building the small guest kernels", || {
            umbra_build::guest_kernels(paths::workspace(), &target, &folder)
        })?;
        Ok(folder)
    }

    /// The `umbra` tool, built in release, with the hypervisor in it.
    pub fn umbra(&self) -> Result<PathBuf> {
        step(
            "building umbra and the hypervisor in it, which takes minutes the first time",
            build_umbra,
        )
    }
}

/// Installs Debian packages that one command alone needs, after saying so.
///
/// # Errors
/// This is not Debian, or the user is not root, or apt fails.
pub fn install_packages(packages: &[&str]) -> Result<()> {
    debian::install(packages)
}

/// Installs the Debian package of a program that is nowhere in `PATH`.
///
/// # Errors
/// As [`install_packages`].
pub fn need_program(program: &str, package: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return Ok(());
    }
    install_packages(&[package])
}

/// The initramfs of a kernel on trial: the trial's driver, and modules by their files' names, with
/// parameters, in the order in which they are loaded.
///
/// # Errors
/// The driver cannot be built.
pub fn trial_initramfs(modules: &[(String, &str, Vec<u8>)]) -> Result<Vec<u8>> {
    let folder = paths::guest_dir()?;
    let init = umbra_build::kvm_trial(paths::workspace(), &folder.join("build"))?;
    initramfs::build_trial(&read(&init)?, modules)
}

/// What goes behind [`trial_initramfs`] where no line leads into the machine: the programs of a
/// batch.
///
/// # Errors
/// They are too large for an initramfs.
pub fn trial_batch(programs: &[u8]) -> Result<Vec<u8>> {
    initramfs::build_file("programs", programs)
}

fn build_initramfs(folder: &Path, busybox: &Path, arch: GuestArch) -> Result<PathBuf> {
    // Two compilers in one folder would rebuild all of each other's.
    let (build, name) = match arch {
        GuestArch::Amd64 => ("build", "initramfs.cpio.gz"),
        GuestArch::I386 => ("build-i386", "initramfs-i386.cpio.gz"),
    };
    let init = umbra_build::guest_init(paths::workspace(), &folder.join(build), arch)?;
    let path = folder.join(name);
    let archive = initramfs::build(&read(&init)?, &read(busybox)?, arch)?;
    fs::write(&path, archive).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn build_umbra() -> Result<PathBuf> {
    let mut cargo = process::cargo();
    cargo.current_dir(paths::workspace()).args(["build", "--release", "--package", "umbra"]);
    process::show(cargo.arg("--target-dir").arg(paths::target_dir()?))?;
    Ok(paths::target_dir()?.join("release/umbra"))
}
