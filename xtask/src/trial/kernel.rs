//! The kernel on trial: a Debian package, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::setup::Apt;

/// A module that is on trial, with its parameter.
pub type Suspect = (&'static str, &'static str);
/// That of machines with SVM.
pub const AMD: Suspect = ("kvm-amd", "npt=0");
/// That of machines with VMX.
pub const INTEL: Suspect = ("kvm-intel", "ept=0");

/// A kernel and its modules, in the order in which they are loaded.
pub struct Kernel {
    /// The package's name, or the file's: fit for a folder.
    pub name: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Name of the file, parameters, contents.
    pub modules: Vec<(String, &'static str, Vec<u8>)>,
}

/// What Debian has split a kernel into since 2026: the package that is named depends on these.
const PARTS: [&str; 2] = ["linux-binary-", "linux-modules-"];

/// The kernel of a package, or of a file of one. `suite` is the one of Debian's that has the
/// package, if it is not the machine's own.
///
/// # Errors
/// There is no such package or file, or it has no KVM for this trial.
pub fn fetch(name: &str, suite: Option<&str>, suspect: Suspect, root: &Path) -> Result<Kernel> {
    let file = Path::new(name);
    let is_file = name.contains('/') || name.ends_with(".deb");
    let stem = if is_file {
        file.file_stem().map(|stem| stem.to_string_lossy().into_owned())
    } else {
        None
    };
    let stem = stem.unwrap_or_else(|| String::from(name));
    let unpacked = root.join("kernels").join(&stem);
    if !unpacked.exists() {
        let scratch = root.join("kernels").join(format!(".{stem}"));
        let _ = fs::remove_dir_all(&scratch);
        let into = scratch.join("unpacked");
        fs::create_dir_all(&into).with_context(|| into.display().to_string())?;
        if is_file {
            unpack_files(file, &into)?;
        } else {
            let mut apt = match suite {
                Some(suite) => Apt::of_suite(suite, &root.join("suites").join(suite))?,
                None => Apt::new(),
            };
            apt.check_kernel(name).map_err(|error| match suite {
                Some(suite) => anyhow::anyhow!(
                    "apt finds no package {name} in {suite}; \
                     https://packages.debian.org/{suite}/kernel/ lists the kernels there"
                ),
                None => error,
            })?;
            unpack_packages(&mut apt, name, &scratch, &into)?;
        }
        ensure!(image(&into)?.is_some(), "{name} has no kernel");
        fs::rename(&into, &unpacked).context("moving the package to its place")?;
        fs::remove_dir_all(&scratch)?;
    }
    let image = image(&unpacked)?.with_context(|| format!("{name} has no kernel"))?;
    let mut files = Vec::new();
    for folder in module_folders(&unpacked) {
        find_modules(&folder, &mut files)?;
    }
    let mut order = Vec::new();
    if resolve(suspect.0, &files, &mut order)?.is_none() {
        bail!("{name} has no KVM for this trial: its module {} is missing", suspect.0);
    }
    let parameters = |module: &str| if module == suspect.0 { suspect.1 } else { "" };
    let modules = order
        .into_iter()
        .map(|(module, contents)| (format!("{module}.ko"), parameters(&module), contents));
    let modules = modules.collect();
    Ok(Kernel { name: stem, image, modules })
}

/// Unpacks a package's file, and those of its parts, which lie beside it.
fn unpack_files(file: &Path, into: &Path) -> Result<()> {
    ensure!(file.is_file(), "there is no file {}", file.display());
    extract(file, into)?;
    let mut field = Command::new("dpkg-deb");
    let depends = process::capture(field.arg("--field").arg(file).arg("Depends"))?;
    let beside = file.parent().filter(|folder| *folder != "").unwrap_or(Path::new("."));
    for part in depends.split(',').filter_map(|needed| needed.split_whitespace().next()) {
        if is_part(part) {
            let start = format!("{part}_");
            let of_part = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&start) && name.ends_with(".deb")
            };
            let found = entries(beside)?.into_iter().find(of_part);
            let found = found.with_context(|| {
                format!(
                    "{} is one part of a kernel: put the package {part} beside it",
                    file.display()
                )
            })?;
            extract(&found, into)?;
        }
    }
    Ok(())
}

fn extract(file: &Path, into: &Path) -> Result<()> {
    process::capture(Command::new("dpkg-deb").arg("--extract").arg(file).arg(into))
        .map(drop)
        .map_err(|_| anyhow::anyhow!("{} is no Debian package", file.display()))
}

/// Fetches and unpacks a package and its parts.
fn unpack_packages(apt: &mut Apt, name: &str, scratch: &Path, into: &Path) -> Result<()> {
    eprintln!("xtask: fetching {name} (it is not installed)");
    let parts = apt.dependencies(name)?.into_iter().filter(|package| is_part(package));
    for package in std::iter::once(String::from(name)).chain(parts) {
        let download = scratch.join("download");
        fs::create_dir_all(&download).with_context(|| download.display().to_string())?;
        apt.unpack(&package, &download, into)?;
        fs::remove_dir_all(&download)?;
    }
    Ok(())
}

fn is_part(package: &str) -> bool {
    PARTS.iter().any(|part| package.starts_with(part))
}

/// The bzImage among what was unpacked: in /boot, or since 2026 beside the modules.
fn image(unpacked: &Path) -> Result<Option<PathBuf>> {
    let mut folders = vec![unpacked.join("boot")];
    for modules in module_folders(unpacked) {
        folders.extend(entries(&modules)?);
    }
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        let is_image = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "vmlinuz" || name.starts_with("vmlinuz-")
        };
        if let Some(image) = entries(folder)?.into_iter().find(is_image) {
            return Ok(Some(image));
        }
    }
    Ok(None)
}

/// Where modules are. Debian 13 moves /lib to /usr/lib.
fn module_folders(unpacked: &Path) -> impl Iterator<Item = PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .map(|folder| unpacked.join(folder))
        .into_iter()
        .filter(|folder| folder.is_dir())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    read.map(|entry| Ok(entry?.path())).collect()
}

/// All modules below a folder, by their names.
fn find_modules(folder: &Path, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            find_modules(&path, files)?;
        } else if let Some((module, _)) = name.split_once(".ko") {
            files.push((plain(module), path));
        }
    }
    Ok(())
}

/// Modules are named with either sign.
fn plain(module: &str) -> String {
    module.replace('_', "-")
}

/// Puts a module behind those that it depends on; `None` if there is no such module. A dependency
/// that is no file is built into the kernel.
fn resolve(
    module: &str,
    files: &[(String, PathBuf)],
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<Option<()>> {
    if order.iter().any(|(known, _)| known == module) {
        return Ok(Some(()));
    }
    let Some((_, path)) = files.iter().find(|(name, _)| name == module) else { return Ok(None) };
    let contents = read_module(path)?;
    for needed in dependencies(&contents) {
        resolve(&plain(&needed), files, order)?;
    }
    order.push((String::from(module), contents));
    Ok(Some(()))
}

/// A module's ELF file.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let unpack =
        match path.extension().map(|extension| extension.to_string_lossy().into_owned()).as_deref()
        {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => return fs::read(path).with_context(|| path.display().to_string()),
        };
    let output = Command::new(unpack)
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .with_context(|| format!("starting {unpack}, which unpacks the kernel's modules"))?;
    ensure!(output.status.success(), "{unpack} cannot unpack {}", path.display());
    Ok(output.stdout)
}

/// The line `depends=` of a module's section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("ELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn modules_come_behind_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("6.1/kernel/kvm");
        fs::create_dir_all(&tree).unwrap();
        for (name, depends) in
            [("kvm", "irqbypass"), ("kvm-amd", "kvm,ccp"), ("irqbypass", ""), ("other", "kvm")]
        {
            fs::write(tree.join(name).with_extension("ko"), module(depends)).unwrap();
        }
        let mut files = Vec::new();
        find_modules(folder.path(), &mut files).unwrap();
        let mut order = Vec::new();
        assert!(resolve("kvm-amd", &files, &mut order).unwrap().is_some());
        let names: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["irqbypass", "kvm", "kvm-amd"]);
        assert!(resolve("kvm-intel", &files, &mut order).unwrap().is_none());
    }

    #[test]
    fn parts_of_a_kernel_lie_beside_its_package() {
        let root = tempfile::tempdir().unwrap();
        let tree = |name: &str| root.path().join(name);
        let package = |name: &str, depends: &str, file: &str, contents: &[u8]| {
            let folder = tree(&format!("tree-{name}"));
            let control = folder.join("DEBIAN/control");
            fs::create_dir_all(control.parent().unwrap()).unwrap();
            let text = format!(
                "Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\n{depends}\
                 Description: x\n"
            );
            fs::write(control, text).unwrap();
            let file = folder.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, contents).unwrap();
            let mut build = Command::new("dpkg-deb");
            let deb = tree(&format!("{name}_1_amd64.deb"));
            process::capture(build.arg("--build").arg(folder).arg(&deb)).unwrap();
            deb
        };
        let depends = "Depends: dracut | initramfs-tools, linux-binary-7 (= 1), linux-modules-7\n";
        let image = package("linux-image-7", depends, "usr/share/doc/x", b"");
        package("linux-binary-7", "", "usr/lib/modules/7/vmlinuz", b"kernel");
        let fetched = || fetch(&image.to_string_lossy(), None, AMD, &tree("root"));
        let refused = format!("{:#}", fetched().err().unwrap());
        assert!(refused.ends_with("put the package linux-modules-7 beside it"), "{refused}");
        package("linux-modules-7", "", "usr/lib/modules/7/kvm-amd.ko", &module(""));
        let kernel = fetched().unwrap();
        assert_eq!(fs::read(kernel.image).unwrap(), b"kernel");
        assert_eq!(kernel.modules.len(), 1);
    }

    #[test]
    fn what_is_not_there_is_one_sentence() {
        let root = tempfile::tempdir().unwrap();
        let sentence =
            |name: &str| format!("{:#}", fetch(name, None, AMD, root.path()).err().unwrap());
        assert_eq!(sentence("/nowhere/linux.deb"), "there is no file /nowhere/linux.deb");
        let junk = root.path().join("junk.deb");
        fs::write(&junk, "no archive").unwrap();
        assert!(sentence(&junk.to_string_lossy()).ends_with("junk.deb is no Debian package"));
        // A kernel that is unpacked already, without KVM.
        let boot = root.path().join("kernels/plain/boot");
        fs::create_dir_all(&boot).unwrap();
        assert_eq!(sentence("plain"), "plain has no kernel");
        fs::write(boot.join("vmlinuz-1"), "").unwrap();
        assert_eq!(
            sentence("plain"),
            "plain has no KVM for this trial: its module kvm-amd is missing"
        );
    }
}
