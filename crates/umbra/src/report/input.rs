//! Files that commands read. For all of them `-` is standard input.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::error::Error;
use crate::untrusted::shown;

/// The name of standard input among files, and of standard output, which takes no result.
const STREAM: &str = "-";

/// Whether a path means standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == STREAM
}

/// What a path is called in messages.
pub fn name_of(path: &Path) -> String {
    if is_stdin(path) { "standard input".into() } else { shown(&path.display().to_string()) }
}

/// Opens what is to be read.
///
/// # Errors
/// What the system says; that it is a folder is said at once.
pub fn open(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    if is_stdin(path) {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path)?;
    if fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(Box::new(file))
}

/// Checks that standard input is not to be read twice.
///
/// # Errors
/// It is.
pub fn check_inputs<'a>(inputs: impl IntoIterator<Item = &'a Path>) -> Result<(), Error> {
    if inputs.into_iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Error::Input(
            "standard input can be read once only; give - for one file, and the others by name"
                .into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_standard_input_and_a_folder_is_named() {
        assert!(is_stdin(Path::new("-")) && !is_stdin(Path::new("./-")));
        assert_eq!(name_of(Path::new("-")), "standard input");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(open(folder.path()).err().unwrap().kind(), io::ErrorKind::IsADirectory);
        check_inputs([Path::new("-"), Path::new("a")]).unwrap();
        assert!(
            check_inputs(["-", "a", "-"].map(Path::new))
                .unwrap_err()
                .to_string()
                .contains("once only")
        );
    }
}
