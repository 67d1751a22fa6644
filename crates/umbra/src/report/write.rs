//! Files that are there whole or not at all.

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use crate::temporary;

/// Writes `contents` to `path`: at no time is there a part of it.
///
/// # Errors
/// What the system says, such as that the disk is full; then `path` is as it was.
pub fn write_atomically(path: &Path, mut contents: impl Read) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    io::copy(&mut contents, &mut file)?;
    file.finish()
}

/// A file that appears when it is whole.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// Dropped after the file itself.
    entry: Unfinished,
}

/// The files that are not whole yet, of the whole program.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in [`UNFINISHED`].
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        unfinished().retain(|path| *path != self.0);
    }
}

/// Removes all files that are not whole. None is started or finished any more: this program must
/// end now.
pub fn abandon_unfinished() {
    let files = unfinished();
    // Whatever fails here, the rest must still be tried, and there is nobody to tell.
    files.iter().for_each(|path| drop(fs::remove_file(path)));
    std::mem::forget(files);
}

impl AtomicFile {
    /// Starts what is going to be the file at `path`. It is gone if it is dropped without
    /// [`AtomicFile::finish`].
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> io::Result<AtomicFile> {
        let path = target(path)?;
        let mut unfinished = unfinished();
        let file = temporary(&path)?;
        let entry = Unfinished(file.path().to_path_buf());
        unfinished.push(entry.0.clone());
        Ok(AtomicFile { path, file: BufWriter::new(file), entry })
    }

    /// Makes it appear.
    ///
    /// # Errors
    /// What the system says; then the file is as it was.
    pub fn finish(self) -> io::Result<()> {
        let AtomicFile { path, file, entry } = self;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let unfinished = unfinished();
        let done = file.persist(path);
        drop(unfinished);
        drop(entry);
        done.map(drop).map_err(io::Error::from)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether [`write_atomically`] could write to `path` now.
///
/// # Errors
/// What the system says.
pub fn check_writable(path: &Path) -> io::Result<()> {
    let file = AtomicFile::create(path)?;
    file.file.into_parts().0.close()
}

/// The file that `path` means: through symbolic links, and no device or pipe, whose place a file
/// would take.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => fs::canonicalize(path),
        Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => Err(io::Error::other("it is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.into()),
        Err(error) => Err(error),
    }
}

/// A file beside `path`, with the permissions that any new file has.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Opened here: what tempfile's own way says of an error names a file that the user has never
    // heard of.
    let create =
        |path: &Path| fs::OpenOptions::new().read(true).write(true).create_new(true).open(path);
    temporary::sweep(folder, temporary::FILE);
    let file = tempfile::Builder::new()
        .prefix(&temporary::prefix(temporary::FILE))
        .make_in(folder, create)?;
    // Without locks, or if this fails, only the number in its name says whose it is.
    temporary::lock(file.as_file());
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn it_replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.json");
        check_writable(&path).unwrap();
        assert!(names(folder.path()).is_empty());
        write_atomically(&path, &b"one"[..]).unwrap();
        write_atomically(&path, &b"two"[..]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["stats.json"]);
    }

    #[test]
    fn what_a_killed_program_has_left_goes_with_the_next_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        fs::write(folder.path().join(format!(".umbra-{}-x", child.id())), "half").unwrap();
        write_atomically(&folder.path().join("stats.json"), &b"one"[..]).unwrap();
        assert_eq!(names(folder.path()), ["stats.json"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = check_writable(&folder.path().join("none/stats.json")).unwrap_err();
        assert_eq!(nowhere.to_string(), "No such file or directory (os error 2)");
        assert!(check_writable(folder.path()).is_err());
        assert!(write_atomically(folder.path(), &b"x"[..]).is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_link_stays_and_a_device_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomically(&link, &b"new"[..]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

        let device = folder.path().join("device");
        std::os::unix::fs::symlink("/dev/null", &device).unwrap();
        assert!(check_writable(&device).is_err());
        assert!(write_atomically(&device, &b"x"[..]).is_err());
    }

    #[test]
    fn what_cannot_be_read_to_its_end_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        // A folder opens, and cannot be read.
        let unreadable = (&b"half"[..]).chain(fs::File::open(folder.path()).unwrap());
        assert!(write_atomically(&path, unreadable).is_err());
        assert!(names(folder.path()).is_empty());
    }
}
