//! Temporary files and folders: what they are called, and how those of a program that was killed
//! are found and removed.
//!
//! A name tells whose it is by the number of the process, and whoever made it holds a lock on it.
//! So one whose process is gone and whose lock is free belongs to nobody, also if process numbers
//! repeat, or mean others in another container.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::{io, process};

use tempfile::TempDir;

/// How folders start that boot images are built in.
pub const FOLDER: &str = "umbra-";

/// How files start that are going to be results, beside the place where they are going to be.
pub const FILE: &str = ".umbra-";

/// A temporary folder, gone when it is dropped.
#[derive(Debug)]
pub struct TemporaryFolder {
    folder: TempDir,
    /// Says that it is in use.
    _lock: Option<File>,
}

impl TemporaryFolder {
    /// Makes one where the system has such folders.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<TemporaryFolder> {
        let folder = tempfile::Builder::new().prefix(&prefix(FOLDER)).tempdir()?;
        let lock = File::open(folder.path()).ok().filter(lock);
        Ok(TemporaryFolder { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// How names of this process start.
pub fn prefix(stem: &str) -> String {
    format!("{stem}{}-", process::id())
}

/// Says that a file is in use. `false` if it is another's, or if the file system has no locks.
pub fn lock(file: &File) -> bool {
    file.try_lock().is_ok()
}

/// Removes what programs that are gone have left in a folder. What cannot be removed stays: it is
/// in nobody's way.
pub fn sweep(folder: &Path, stem: &str) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| is_abandoned(path, stem)) {
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        let _ = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

fn is_abandoned(path: &Path, stem: &str) -> bool {
    let owner = path.file_name().and_then(|name| owner(name.to_str()?, stem));
    let is_gone = |owner: u32| !PathBuf::from(format!("/proc/{owner}")).exists();
    // A link is none of ours, and a pipe could be waited for for ever.
    let is_ours =
        fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir() || metadata.is_file());
    owner.is_some_and(is_gone) && is_ours && File::open(path).is_ok_and(|file| lock(&file))
}

/// The process that a name tells of.
fn owner(name: &str, stem: &str) -> Option<u32> {
    let (owner, rest) = name.strip_prefix(stem)?.split_once('-')?;
    (!rest.is_empty()).then(|| owner.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The number of a process that is gone.
    fn gone() -> u32 {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn what_nobody_owns_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let dead = gone();
        let abandoned = path(&format!("umbra-{dead}-a"));
        fs::create_dir_all(abandoned.join("tree")).unwrap();
        let kept = [
            format!("umbra-{}-own", process::id()),
            format!("umbra-{dead}-locked"),
            format!("umbra-build-{dead}-b"),
            format!("other-{dead}-c"),
            format!("umbra-{dead}"),
        ];
        kept.iter().for_each(|name| fs::create_dir(path(name)).unwrap());
        let used = File::open(path(&kept[1])).unwrap();
        assert!(lock(&used));
        fs::write(path(&format!(".umbra-{dead}-d")), "half").unwrap();
        std::os::unix::fs::symlink(folder.path(), path(&format!("umbra-{dead}-link"))).unwrap();

        sweep(folder.path(), FOLDER);
        assert!(!abandoned.exists());
        assert!(kept.iter().all(|name| path(name).exists()));
        assert!(
            path(&format!("umbra-{dead}-link")).exists()
                && path(&format!(".umbra-{dead}-d")).exists()
        );
        drop(used);
        sweep(folder.path(), FOLDER);
        assert!(!path(&kept[1]).exists());
        sweep(folder.path(), FILE);
        assert!(!path(&format!(".umbra-{dead}-d")).exists());
    }

    #[test]
    fn a_folder_in_use_is_locked_and_its_owner_is_named() {
        let folder = TemporaryFolder::new().unwrap();
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(owner(name, FOLDER), Some(process::id()));
        assert!(!lock(&File::open(folder.path()).unwrap()));
    }
}
