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

/// The kernel of a package, or of a file of one.
///
/// # Errors
/// There is no such package or file, or it has no KVM for this trial.
pub fn fetch(name: &str, suspect: Suspect, root: &Path) -> Result<Kernel> {
    let file = Path::new(name);
    let is_file = name.contains('/') || name.ends_with(".deb");
    let stem = if is_file {
        file.file_stem().map(|stem| stem.to_string_lossy().into_owned())
    } else {
        None
    };
    let stem = stem.unwrap_or_else(|| String::from(name));
    let unpacked = root.join("kernels").join(&stem);
    if !unpacked.join("boot").exists() {
        let scratch = root.join("kernels").join(format!(".{stem}"));
        let _ = fs::remove_dir_all(&scratch);
        let (download, into) = (scratch.join("download"), scratch.join("unpacked"));
        fs::create_dir_all(&download).with_context(|| download.display().to_string())?;
        if is_file {
            ensure!(file.is_file(), "there is no file {name}");
            let mut dpkg = Command::new("dpkg-deb");
            process::capture(dpkg.arg("--extract").arg(file).arg(&into))
                .map_err(|_| anyhow::anyhow!("{name} is no Debian package"))?;
        } else {
            let mut apt = Apt::new();
            apt.check_kernel(name)?;
            eprintln!("xtask: fetching {name} (it is not installed)");
            apt.unpack(name, &download, &into)?;
        }
        ensure!(into.join("boot").is_dir(), "{name} has no kernel");
        let _ = fs::remove_dir_all(&unpacked);
        fs::rename(&into, &unpacked).context("moving the package to its place")?;
        fs::remove_dir_all(&scratch)?;
    }
    let image = entries(&unpacked.join("boot"))?
        .into_iter()
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .with_context(|| format!("{name} has no kernel"))?;
    // Debian 13 moves /lib to /usr/lib.
    let folders = ["lib/modules", "usr/lib/modules"].map(|folder| unpacked.join(folder));
    let mut files = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        find_modules(folder, &mut files)?;
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
    fn what_is_not_there_is_one_sentence() {
        let root = tempfile::tempdir().unwrap();
        let sentence = |name: &str| format!("{:#}", fetch(name, AMD, root.path()).err().unwrap());
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
