//! Which Rust toolchain builds for bare metal.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;

/// The target of the hypervisor: freestanding, soft float, no red zone.
pub(crate) const BARE_METAL_TARGET: &str = "x86_64-unknown-none";

/// The target of 32-bit kernels. There is none without an operating system; this one has no SSE,
/// and what it takes for granted of Linux is in the standard library, which kernels do not use.
pub(crate) const BARE_METAL_32_TARGET: &str = "i586-unknown-linux-gnu";

/// The Debian packages that make a bare-metal toolchain.
pub const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "binutils"];

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// What a guest's own programs run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestArch {
    /// 64-bit kernels.
    Amd64,
    /// 32-bit kernels, with PAE or without.
    I386,
}

impl GuestArch {
    /// The target of static Linux programs.
    pub fn target(self) -> &'static str {
        match self {
            GuestArch::Amd64 => "x86_64-unknown-linux-gnu",
            GuestArch::I386 => "i686-unknown-linux-gnu",
        }
    }
}

/// A toolchain for a target that the machine's own programs do not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The active toolchain has the target's libraries installed.
    Active,
    /// Debian's packages: the libraries are built from the library source.
    Debian,
    /// Debian's packages, for programs of Linux: with the standard library.
    DebianStd,
}

impl Toolchain {
    /// Looks for a toolchain for `x86_64-unknown-none`, the active one first. Downloads nothing.
    ///
    /// # Errors
    /// [`Error::NoToolchain`] if there is none.
    pub fn find() -> Result<Toolchain, Error> {
        let found = find_for(BARE_METAL_TARGET, Toolchain::Debian);
        found.ok_or(Error::NoToolchain { target: BARE_METAL_TARGET })
    }

    /// Looks for a toolchain for 32-bit kernels.
    ///
    /// # Errors
    /// [`Error::NoToolchain`] if there is none.
    pub(crate) fn find_32() -> Result<Toolchain, Error> {
        let found = find_for(BARE_METAL_32_TARGET, Toolchain::Debian);
        found.ok_or(Error::NoToolchain { target: BARE_METAL_32_TARGET })
    }

    /// Looks for a toolchain for programs of a guest. That of 64-bit ones is the active one,
    /// always.
    ///
    /// # Errors
    /// [`Error::NoToolchain`] if there is none.
    pub fn for_guest(arch: GuestArch) -> Result<Toolchain, Error> {
        match arch {
            GuestArch::Amd64 => Ok(Toolchain::Active),
            GuestArch::I386 => find_for(arch.target(), Toolchain::DebianStd)
                .ok_or(Error::NoToolchain { target: arch.target() }),
        }
    }

    pub(crate) fn cargo(&self) -> PathBuf {
        match self {
            Toolchain::Active => "cargo".into(),
            Toolchain::Debian | Toolchain::DebianStd => DEBIAN_CARGO.into(),
        }
    }

    /// Variables that make this toolchain build for the target.
    pub(crate) fn variables(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Toolchain::Active => &[],
            // By variable and not in .cargo/config.toml, which thus stays that of plain stable.
            Toolchain::Debian => &[
                ("RUSTC", DEBIAN_RUSTC),
                ("RUSTC_BOOTSTRAP", "1"),
                ("CARGO_UNSTABLE_BUILD_STD", "core,alloc,compiler_builtins"),
                ("CARGO_UNSTABLE_BUILD_STD_FEATURES", "compiler-builtins-mem"),
            ],
            Toolchain::DebianStd => &[
                ("RUSTC", DEBIAN_RUSTC),
                ("RUSTC_BOOTSTRAP", "1"),
                ("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort"),
            ],
        }
    }
}

fn find_for(target: &str, debian_kind: Toolchain) -> Option<Toolchain> {
    let active = sysroot(Path::new("rustc"));
    let debian = sysroot(Path::new(DEBIAN_RUSTC)).filter(|_| Path::new(DEBIAN_CARGO).exists());
    choose(target, active.as_deref(), debian.as_deref().map(|debian| (debian, debian_kind)))
}

/// Where `rustc` keeps its libraries, if there is such a compiler.
fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        // A rustup proxy must say what is there, not fetch what a toolchain file asks for.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim_end()))
}

fn choose(
    target: &str,
    active: Option<&Path>,
    debian: Option<(&Path, Toolchain)>,
) -> Option<Toolchain> {
    let rustlib = |sysroot: &Path| sysroot.join("lib/rustlib");
    if active.is_some_and(|sysroot| rustlib(sysroot).join(target).is_dir()) {
        return Some(Toolchain::Active);
    }
    debian
        .filter(|(sysroot, _)| rustlib(sysroot).join("src/rust/library/core/Cargo.toml").is_file())
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("umbra-build-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_active_toolchain_wins_only_with_the_target() {
        let (active, debian) = (folder("active"), folder("debian"));
        let source = debian.join("lib/rustlib/src/rust/library/core");

        let target = GuestArch::I386.target();
        let choose = |active, debian: Option<&PathBuf>| {
            choose(target, active, debian.map(|debian| (debian.as_path(), Toolchain::DebianStd)))
        };
        assert_eq!(choose(Some(&active), Some(&debian)), None);
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("Cargo.toml"), "").unwrap();
        assert_eq!(choose(Some(&active), Some(&debian)), Some(Toolchain::DebianStd));
        assert_eq!(choose(None, Some(&debian)), Some(Toolchain::DebianStd));
        fs::create_dir_all(active.join("lib/rustlib").join(BARE_METAL_TARGET)).unwrap();
        assert_eq!(
            choose(Some(&active), Some(&debian)),
            Some(Toolchain::DebianStd),
            "another target"
        );
        fs::create_dir_all(active.join("lib/rustlib").join(target)).unwrap();
        assert_eq!(choose(Some(&active), Some(&debian)), Some(Toolchain::Active));
        assert_eq!(choose(Some(&active), None), Some(Toolchain::Active));

        fs::remove_dir_all(active).unwrap();
        fs::remove_dir_all(debian).unwrap();
    }

    #[test]
    fn no_compiler_is_no_sysroot() {
        assert_eq!(sysroot(Path::new("/nonexistent/rustc")), None);
    }
}
