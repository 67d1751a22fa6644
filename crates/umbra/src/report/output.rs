//! Files that the user has asked for, and what is said if they cannot be written.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Statistics;
use super::input::is_stdin;
use super::write::{check_writable, write_atomically};
use crate::error::Error;

/// Finds out before long work that one of its results could not be written, or would take the place
/// of another file of the same command.
///
/// # Errors
/// So it is: the place of one of the `inputs`, or of another output.
pub fn check_outputs<'a>(
    outputs: &[(&str, Option<&Path>)],
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Error> {
    let outputs: Vec<_> = outputs.iter().filter_map(|&(what, path)| Some((what, path?))).collect();
    for input in inputs.into_iter().filter(|input| !is_stdin(input)) {
        if let Some((what, path)) = outputs.iter().find(|(_, output)| is_same(input, output)) {
            return Err(Error::Input(format!(
                "{what} would replace its own input {}; give it another name",
                path.display()
            )));
        }
    }
    for (index, (what, path)) in outputs.iter().enumerate() {
        if let Some((other, _)) = outputs[..index].iter().find(|(_, other)| is_same(path, other)) {
            return Err(Error::Input(format!(
                "{other} and {what} cannot both be {}; give one of them another name",
                path.display()
            )));
        }
    }
    outputs.iter().try_for_each(|(what, path)| check_output(what, path))
}

/// Whether two paths mean one file, which need not be there yet.
fn is_same(one: &Path, other: &Path) -> bool {
    match (place(one), place(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

fn place(path: &Path) -> Option<PathBuf> {
    if let Ok(there) = fs::canonicalize(path) {
        return Some(there);
    }
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(fs::canonicalize(folder).ok()?.join(path.file_name()?))
}

fn check_output(what: &str, path: &Path) -> Result<(), Error> {
    if is_stdin(path) {
        return Err(Error::Input(format!(
            "cannot write {what} to standard output; give a file, or ./- for one of that name"
        )));
    }
    check_writable(path).map_err(|error| {
        Error::Input(format!(
            "cannot write {what} to {}: {error}; give a file in a folder that exists and is writable",
            path.display()
        ))
    })
}

/// Makes a folder for results, unless it is there. Returns whether it was made.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(path: &Path) -> Result<bool, Error> {
    if is_stdin(path) {
        return Err(Error::Input(
            "results go into a folder, and - is none; give a folder, or ./- for one of that name"
                .into(),
        ));
    }
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(_) if path.is_dir() => Ok(false),
        Err(error) => Err(Error::Input(format!(
            "cannot make the folder {}: {error}; give one in a folder that exists and is writable",
            path.display()
        ))),
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
    fn no_file_takes_the_place_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("input"), "").unwrap();
        std::os::unix::fs::symlink(path("input"), path("link")).unwrap();
        let check = |outputs: &[&str]| {
            let paths: Vec<_> = outputs.iter().map(|name| path(name)).collect();
            let paths = paths.iter().map(|path| Some(path.as_path()));
            let outputs: Vec<_> = ["the page", "the log"].into_iter().zip(paths).collect();
            check_outputs(&outputs, [path("input").as_path()]).map_err(|error| error.to_string())
        };
        check(&["page", "log"]).unwrap();
        assert!(check(&["none/page", "page"]).unwrap_err().contains("cannot write the page"));
        assert!(check(&["input"]).unwrap_err().contains("the page would replace its own input"));
        assert!(
            check(&["page", "link"]).unwrap_err().contains("the log would replace its own input")
        );
        let stream =
            check_outputs(&[("the page", Some(Path::new("-")))], []).unwrap_err().to_string();
        assert!(stream.contains("the page to standard output; give a file, or ./-"), "{stream}");
        check_outputs(&[], [Path::new("-")]).unwrap();
        assert!(
            check(&["page", "./page"]).unwrap_err().contains("the page and the log cannot both be")
        );
    }
}
