//! Reads the files that are to boot.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::Image;
use crate::error::Error;
use crate::report::is_stdin;

/// Stands among options for a file that is not there yet: what `cargo xtask` is going to build.
pub const TO_BE_MADE: &str = "(to be made)";

/// Checks a file that is to be read, unless it is [`TO_BE_MADE`].
///
/// # Errors
/// It cannot be read.
pub fn check_file(what: &str, path: &Path) -> Result<(), Error> {
    if path == Path::new(TO_BE_MADE) { Ok(()) } else { open(what, path).map(drop) }
}

/// Reads and classifies a kernel.
///
/// # Errors
/// It cannot be read, or is no kernel that boots here.
pub fn read_kernel(path: &Path) -> Result<(Vec<u8>, Image), Error> {
    let file = read("kernel", path)?;
    let image = Image::classify(&file)
        .map_err(|error| Error::Input(format!("the kernel {} {error}", path.display())))?;
    Ok((file, image))
}

/// Reads an initrd.
///
/// # Errors
/// It cannot be read, or is empty.
pub fn read_initrd(path: &Path) -> Result<Vec<u8>, Error> {
    let file = read("initrd", path)?;
    if file.is_empty() {
        return Err(Error::Input(format!(
            "the initrd {} is an empty file; give another, or none",
            path.display()
        )));
    }
    Ok(file)
}

/// A multiboot kernel's module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its bytes.
    pub file: Vec<u8>,
    /// The string that the kernel gets with it.
    pub string: String,
}

/// Reads a module given as a file's name, which arguments for the kernel may follow after a blank,
/// as in QEMU's `-initrd`. A file whose own name has blanks is found, too, if nothing follows.
///
/// # Errors
/// It cannot be read, or the text is not one line.
pub fn read_module(text: &str) -> Result<Module, Error> {
    if text.contains(char::is_control) {
        return Err(Error::Input("--module must be one line without control characters".into()));
    }
    Ok(Module { file: read("module", module_file(text))?, string: String::from(text) })
}

/// The file that the text of a `--module` names.
pub fn module_file(text: &str) -> &Path {
    let whole = Path::new(text);
    if whole.exists() { whole } else { Path::new(text.split(' ').next().unwrap_or(text)) }
}

/// No guest of this size could boot, and the file is not read to find out.
const MAX_BYTES: u64 = 3 << 30;

fn read(what: &str, path: &Path) -> Result<Vec<u8>, Error> {
    let (mut file, mut contents) = (open(what, path)?, Vec::new());
    file.read_to_end(&mut contents).map_err(|error| cannot_read(what, path, &error))?;
    Ok(contents)
}

/// Opens a file that a guest could be booted from.
fn open(what: &str, path: &Path) -> Result<File, Error> {
    if is_stdin(path) {
        return Err(cannot_read(
            what,
            path,
            &"it is standard input, and a guest boots from files; ./- is a file of that name",
        ));
    }
    let metadata = fs::metadata(path).map_err(|error| cannot_read(what, path, &error))?;
    if !metadata.is_file() {
        return Err(cannot_read(what, path, &"it is not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(cannot_read(
            what,
            path,
            &"it is larger than the memory of any guest here (3 GiB)",
        ));
    }
    File::open(path).map_err(|error| cannot_read(what, path, &error))
}

fn cannot_read(what: &str, path: &Path, why: &dyn Display) -> Error {
    Error::Input(format!("cannot read the {what} {}: {why}; give a readable file", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_a_file_and_perhaps_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("env"), "A=1").unwrap();
        fs::write(path("with blank"), "").unwrap();
        for (text, file) in
            [(path("env"), "A=1"), (path("env --quick x"), "A=1"), (path("with blank"), "")]
        {
            let module = read_module(&text).unwrap();
            assert_eq!((module.file.as_slice(), &module.string), (file.as_bytes(), &text));
        }
        let sentence = read_module(&path("none x")).unwrap_err().to_string();
        assert!(sentence.contains("/none:"), "{sentence}");
        assert!(read_module("a\tb").is_err());
        assert!(
            read_initrd(Path::new("-"))
                .unwrap_err()
                .to_string()
                .contains("./- is a file of that name")
        );
    }
}
