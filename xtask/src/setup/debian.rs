//! Debian packages: which are missing, and installing them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use umbra_build::Toolchain;

use super::lock;
use crate::process;

/// Where Debian's packages are, and who vouches for them.
const MIRROR: &str = "http://deb.debian.org";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package and, if it has one, the program by which it is recognised on other systems.
struct Package {
    name: &'static str,
    program: Option<&'static str>,
}

const fn package(name: &'static str, program: Option<&'static str>) -> Package {
    Package { name, program }
}

/// What running guests needs, beside a Rust toolchain for bare metal.
const PACKAGES: &[Package] = &[
    package("bochs", Some("bochs")),
    package("bochs-sdl", None),
    package("bochsbios", None),
    // Bochs's package is content with SeaBIOS in its place, but links to its file.
    package("vgabios", None),
    package("grub-pc-bin", None),
    package("grub-common", Some("grub-mkrescue")),
    package("xorriso", Some("xorriso")),
    package("mtools", Some("mformat")),
    package("binutils", Some("objcopy")),
    package("busybox-static", Some("busybox")),
    package("gcc", Some("cc")),
    package("libc6-dev", None),
];

/// Installs what is missing, after saying so.
///
/// # Errors
/// Something is missing, and this is not Debian, or the user is not root.
pub fn install_missing(apt: &mut Apt) -> Result<()> {
    let mut missing: Vec<&str> = if is_debian() { not_installed()? } else { not_in_path() };
    if let Err(error) = Toolchain::find() {
        if !is_debian() {
            bail!("{error}");
        }
        missing.extend(umbra_build::DEBIAN_PACKAGES);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !is_debian() {
        bail!(
            "these are missing here, by the names of their Debian packages: {}; on Debian, as root: {command}",
            missing.join(" ")
        );
    }
    ensure!(
        is_root(),
        "packages are missing and only root can install them; run this first: {command}"
    );
    apt.install(&missing)
}

/// Installs packages, after saying so.
pub fn install(packages: &[&str]) -> Result<()> {
    ensure!(
        is_debian() && is_root(),
        "only root can install it, on Debian: apt-get install {}",
        packages.join(" ")
    );
    Apt::new().install(packages)
}

fn is_root() -> bool {
    Uid::effective().is_root()
}

pub fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| matches!(line, "ID=debian" | "ID=\"debian\""))
}

/// The packages that dpkg does not have.
fn not_installed() -> Result<Vec<&'static str>> {
    // It fails if it has never heard of a package, and lists the others all the same.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(PACKAGES.iter().map(|package| package.name))
        .output()
        .context("starting dpkg-query")?;
    let known = String::from_utf8_lossy(&output.stdout);
    let installed =
        |name: &str| known.lines().any(|line| line.split_once(' ') == Some((name, "installed")));
    Ok(PACKAGES.iter().map(|package| package.name).filter(|name| !installed(name)).collect())
}

/// The packages whose program is not found.
fn not_in_path() -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let missing =
        PACKAGES.iter().filter(|package| package.program.is_some_and(|program| !found(program)));
    missing.map(|package| package.name).collect()
}

/// Debian's package manager.
pub struct Apt {
    lists_are_fresh: bool,
    /// Options for lists and downloads of its own. The machine's are root's.
    private: Option<Vec<OsString>>,
}

impl Apt {
    pub fn new() -> Apt {
        Apt { lists_are_fresh: false, private: None }
    }

    /// For packages of another architecture, which are unpacked and never installed: the machine's
    /// own lists and architectures stay as they are.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn foreign(architecture: &str, folder: &Path) -> Result<Apt> {
        Apt::private(
            folder,
            &[
                ("APT::Architecture", architecture.as_ref()),
                ("APT::Architectures", architecture.as_ref()),
            ],
        )
    }

    /// For packages of another suite of Debian's, such as `sid`, which are unpacked and never
    /// installed: the machine's own lists and sources stay as they are.
    ///
    /// # Errors
    /// The folder cannot be made, or this is not Debian.
    pub fn of_suite(suite: &str, folder: &Path) -> Result<Apt> {
        ensure!(is_debian(), "suites are fetched from on Debian only; give the file of a package");
        let archive = if suite.ends_with("-security") { "debian-security" } else { "debian" };
        let sources = folder.join("sources.list");
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let line = format!("deb [signed-by={KEYRING}] {MIRROR}/{archive} {suite} main\n");
        fs::write(&sources, line).with_context(|| sources.display().to_string())?;
        Apt::private(
            folder,
            &[
                ("Dir::Etc::sourcelist", sources.as_ref()),
                ("Dir::Etc::sourceparts", "/dev/null".as_ref()),
            ],
        )
    }

    /// With state of its own in this folder, and settings.
    fn private(folder: &Path, settings: &[(&str, &OsStr)]) -> Result<Apt> {
        let (state, cache) = (folder.join("state"), folder.join("cache"));
        for partial in [state.join("lists/partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
        }
        let status = state.join("status");
        fs::write(&status, "").with_context(|| status.display().to_string())?;
        let own = [
            ("Dir::State", state.as_ref()),
            ("Dir::State::status", status.as_ref()),
            ("Dir::Cache", cache.as_ref()),
        ];
        let set = |&(name, value): &(&str, &OsStr)| {
            let mut setting = OsString::from(format!("{name}="));
            setting.push(value);
            [OsString::from("-o"), setting]
        };
        let settings = own.iter().chain(settings).flat_map(set).collect();
        Ok(Apt { lists_are_fresh: false, private: Some(settings) })
    }

    fn install(&mut self, packages: &[&str]) -> Result<()> {
        self.freshen_lists()?;
        eprintln!("xtask: installing Debian packages: {}", packages.join(" "));
        let mut apt_get = self.apt_get();
        apt_get.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages);
        lock::run(&mut apt_get)
    }

    /// Finds out that there is a package with a kernel, before it is fetched.
    ///
    /// # Errors
    /// There is none, or this is not Debian.
    pub fn check_kernel(&mut self, package: &str) -> Result<()> {
        ensure!(
            is_debian(),
            "packages of kernels are fetched on Debian only; give the file of one instead"
        );
        self.freshen_lists()?;
        let mut show = self.apt_cache();
        show.args(["show", "--no-all-versions", "--", package]);
        ensure!(
            show.output().context("starting apt-cache")?.status.success(),
            "apt knows no package {package}; `apt-cache search linux-image` names those there are"
        );
        Ok(())
    }

    /// What a package depends on, without choices between several.
    ///
    /// # Errors
    /// apt-cache's.
    pub fn dependencies(&mut self, package: &str) -> Result<Vec<String>> {
        self.freshen_lists()?;
        let text = process::capture(self.apt_cache().args(["depends", "--", package]))?;
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(String::from).collect())
    }

    /// The package that `package` depends on alone.
    pub fn dependency(&mut self, package: &str) -> Result<String> {
        match <[String; 1]>::try_from(self.dependencies(package)?) {
            Ok([name]) => Ok(name),
            Err(names) => {
                bail!("apt-cache names no single dependency of {package}: {}", names.join(", "))
            }
        }
    }

    /// The full version of the package whose version starts with `wanted`, such as `1.85`.
    pub fn version(&mut self, package: &str, wanted: &str) -> Result<String> {
        self.freshen_lists()?;
        let text = process::capture(self.apt_cache().args(["madison", package]))?;
        let versions = text.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        let mut matching = versions.filter(|version| {
            version.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(['.', '+', '-']))
        });
        matching
            .next()
            .map(str::to_owned)
            .with_context(|| format!("apt knows no {package} {wanted}"))
    }

    /// Downloads a package into an empty folder and unpacks it into another.
    pub fn unpack(&mut self, package: &str, download: &Path, into: &Path) -> Result<()> {
        self.freshen_lists()?;
        lock::run(self.apt_get().args(["download", "--quiet", package]).current_dir(download))?;
        let mut entries = fs::read_dir(download)?;
        let file =
            entries.next().with_context(|| format!("apt-get left no file of {package}"))??.path();
        process::show(Command::new("dpkg-deb").arg("--extract").arg(file).arg(into))
    }

    /// Unpacks a package into a folder below `folder`, lets `take` move what it wants, and removes
    /// the rest.
    pub fn take(
        &mut self,
        package: &str,
        folder: &Path,
        take: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let scratch = folder.join(format!("{package}-package"));
        let (download, unpacked) = (scratch.join("download"), scratch.join("unpacked"));
        // What an interrupted fetch left.
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&download).with_context(|| download.display().to_string())?;
        self.unpack(package, &download, &unpacked)?;
        take(&unpacked)?;
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())
    }

    /// Package lists of a fresh machine are missing, and old ones name files that are gone.
    fn freshen_lists(&mut self) -> Result<()> {
        if self.lists_are_fresh {
            return Ok(());
        }
        let mut update = self.apt_get();
        update.args(["update", "--quiet"]);
        if self.private.is_some() {
            eprintln!("xtask: fetching package lists of Debian's that are kept apart");
            // One suite may be out of step while a mirror is brought up to date. Another may have
            // the package.
            if let Err(error) = lock::run(&mut update) {
                eprintln!("xtask: not all package lists could be fetched ({error:#})");
            }
        } else if is_root() {
            eprintln!("xtask: updating Debian's package lists");
            lock::run(&mut update)?;
        }
        self.lists_are_fresh = true;
        Ok(())
    }

    fn apt_get(&self) -> Command {
        let mut apt_get = Command::new("apt-get");
        // Root's folders are closed to apt's own user, and apt would warn at each download.
        apt_get.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "APT::Sandbox::User=root"]);
        apt_get.args(self.private.iter().flatten());
        apt_get
    }

    fn apt_cache(&self) -> Command {
        let mut apt_cache = Command::new("apt-cache");
        apt_cache.args(self.private.iter().flatten());
        apt_cache
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_needs_is_installed() {
        for needed in umbra::doctor::needed_packages() {
            assert!(PACKAGES.iter().any(|package| package.name == needed), "{needed}");
        }
    }
}
