//! Files that the user has asked for, and what is said if they cannot be written.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Statistics;
use super::write::{check_writable, write_atomically};
use crate::error::Error;

/// Finds out before long work that one of its results could not be written, or that one would replace another.
///
/// # Errors
/// So it is; what the results are called is in the sentence.
pub fn check_outputs(outputs: &[(&str, Option<&PathBuf>)]) -> Result<(), Error> {
    let mut places: Vec<(&str, PathBuf)> = Vec::new();
    for (what, path) in outputs.iter().filter_map(|&(what, path)| Some((what, path?))) {
        check_output(what, path)?;
        let place = place(path);
        if let Some((other, _)) = places.iter().find(|(_, taken)| *taken == place) {
            return Err(Error::Input(format!(
                "{other} and {what} would both be written to {}; give two names",
                path.display()
            )));
        }
        places.push((what, place));
    }
    Ok(())
}

/// One name for each file, also for one that is not there yet.
fn place(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::canonicalize(path).ok().unwrap_or_else(|| match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.into(),
    })
}

/// Finds out before long work that its result could not be written.
///
/// # Errors
/// It could not; `what` is in the sentence.
pub fn check_output(what: &str, path: &Path) -> Result<(), Error> {
    check_writable(path).map_err(|error| {
        Error::Input(format!(
            "cannot write {what} to {}: {error}; give a file in a folder that exists and is writable",
            path.display()
        ))
    })
}

/// Refuses an output that is one of the inputs, under whatever name.
///
/// # Errors
/// It is; `what` is in the sentence.
pub fn check_is_no_input<'a>(
    what: &str,
    output: &Path,
    inputs: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<(), Error> {
    let is_same = |input: &Path| match (fs::canonicalize(input), fs::canonicalize(output)) {
        (Ok(input), Ok(output)) => input == output,
        _ => false,
    };
    match inputs.into_iter().find(|input| is_same(input)) {
        Some(input) => Err(Error::Input(format!(
            "{what} would replace its own input {}; give it another name",
            input.display()
        ))),
        None => Ok(()),
    }
}

/// Writes `contents`, whole or not at all.
///
/// # Errors
/// It could not be written, or there are no contents.
pub fn write_output(what: &str, path: &Path, contents: io::Result<impl Read>) -> Result<(), Error> {
    contents
        .and_then(|contents| write_atomically(path, contents))
        .map_err(|error| cannot_write(what, path, &error))
}

/// Writes a statistics file.
///
/// # Errors
/// As [`write_output`].
pub fn write_statistics(what: &str, path: &Path, statistics: &Statistics) -> Result<(), Error> {
    let mut json = serde_json::to_vec_pretty(statistics).expect("statistics have text keys only");
    json.push(b'\n');
    write_output(what, path, Ok(json.as_slice()))
}

/// The sentence for a result that could not be written.
pub fn cannot_write(what: &str, path: &Path, error: &io::Error) -> Error {
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    Error::Machine(format!(
        "cannot write {what} to {}: {error}; make room there, or give a file elsewhere",
        place.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_do_not_replace_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (one, same, other) = (path("a"), path("./a"), path("b"));
        let check =
            |second: &PathBuf| check_outputs(&[("one", Some(&one)), ("two", None), ("three", Some(second))]);
        assert_eq!(check(&other), Ok(()));
        for second in [&one, &same] {
            assert!(check(second).unwrap_err().to_string().starts_with("one and three would both"));
        }
        std::os::unix::fs::symlink(&one, &other).unwrap();
        fs::write(&one, "").unwrap();
        assert!(check(&other).is_err());
    }
}
