//! Which programs and toolchains are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;
use umbra_build::Toolchain;

use crate::machine::{bochs_share, plugin_folders};

/// What is installed.
#[derive(Clone, Debug, Serialize)]
pub struct Tools {
    /// Programs.
    pub programs: Vec<Program>,
    /// Rust toolchains.
    pub toolchains: Toolchains,
}

/// A program, or a file of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// What it is.
    pub name: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// Whether `umbra run` needs it.
    pub needed: bool,
    /// Where it is.
    pub path: Option<String>,
    /// Its version, if it tells.
    pub version: Option<String>,
}

/// Rust toolchains, and whether one of them builds Umbra's hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Toolchains {
    /// `rustc --version`.
    pub active: Option<String>,
    /// The same of Debian's own compiler.
    pub debian: Option<String>,
    /// Which builds for bare metal.
    pub bare_metal: Option<&'static str>,
    /// Why none does, and the way out.
    pub obstacle: Option<String>,
}

/// How something is looked for.
enum Place {
    InPath(&'static str),
    Folder(&'static str),
    /// In the folder that Bochs has its BIOS images in.
    BochsShare(&'static str),
    /// Of Bochs, in one of the folders that it has plugins in.
    Plugin(&'static str),
}

/// What is looked for: name, Debian package, whether `umbra run` needs it, and where.
const WANTED: &[(&str, &str, bool, Place)] = &[
    ("Bochs", "bochs", true, Place::InPath("bochs")),
    ("Bochs's display library sdl2", "bochs-sdl", true, Place::Plugin("libbx_sdl2_gui.so")),
    ("Bochs's BIOS", "bochsbios", true, Place::BochsShare("BIOS-bochs-latest")),
    ("Bochs's VGA BIOS", "vgabios", true, Place::BochsShare("VGABIOS-lgpl-latest")),
    ("GRUB's grub-mkrescue", "grub-common", true, Place::InPath("grub-mkrescue")),
    ("GRUB's modules for a BIOS", "grub-pc-bin", true, Place::Folder("/usr/lib/grub/i386-pc")),
    ("xorriso", "xorriso", true, Place::InPath("xorriso")),
    ("mtools", "mtools", true, Place::InPath("mformat")),
    ("QEMU", "qemu-system-x86", false, Place::InPath("qemu-system-x86_64")),
];

/// The Debian packages that `umbra run` needs.
pub fn needed_packages() -> impl Iterator<Item = &'static str> {
    WANTED.iter().filter(|(_, _, needed, _)| *needed).map(|(_, package, ..)| *package)
}

impl Tools {
    /// Looks for everything.
    pub fn of_this_host() -> Tools {
        let program =
            |(name, package, needed, place): &(&'static str, &'static str, bool, Place)| {
                let path = match place {
                    Place::InPath(program) => which::which(program).ok(),
                    Place::Folder(path) => Some(PathBuf::from(path)).filter(|path| path.is_dir()),
                    Place::BochsShare(file) => {
                        Some(bochs_share().join(file)).filter(|path| path.exists())
                    }
                    Place::Plugin(file) => {
                        let folders = plugin_folders().into_iter();
                        folders.map(|folder| folder.join(file)).find(|path| path.exists())
                    }
                };
                let path = path.map(|path| path.display().to_string());
                // A program in PATH need not be the package's, but then the package is rarely
                // installed too.
                let version = path.as_ref().and_then(|_| package_version(package));
                Program { name, package, needed: *needed, path, version }
            };
        Tools {
            programs: WANTED.iter().map(program).collect(),
            toolchains: Toolchains::of_this_host(),
        }
    }
}

impl Toolchains {
    fn of_this_host() -> Toolchains {
        let (bare_metal, obstacle) = match Toolchain::find() {
            Ok(Toolchain::Active) => (Some("active"), None),
            Ok(Toolchain::Debian | Toolchain::DebianStd) => (Some("debian"), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let debian = Path::new("/usr/bin/rustc");
        // A link to rustup is no compiler of Debian's.
        let own = fs::canonicalize(debian).is_ok_and(|path| path.starts_with("/usr"));
        Toolchains {
            active: said("rustc", &["--version"]),
            debian: said("/usr/bin/rustc", &["--version"]).filter(|_| own),
            bare_metal,
            obstacle,
        }
    }
}

/// The version of an installed Debian package.
fn package_version(package: &str) -> Option<String> {
    let shown =
        said("dpkg-query", &["--show", "--showformat=${db:Status-Status} ${Version}", package])?;
    shown.strip_prefix("installed ").map(String::from)
}

/// The first line that a program prints, if it succeeds.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    // A rustup proxy must say what is there, not fetch what a toolchain file asks for.
    command
        .args(arguments)
        .env("RUSTUP_AUTO_INSTALL", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(String::from)
}
