//! Files that the user has asked for, and what is said if they cannot be written.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use super::Statistics;
use super::write::{check_writable, write_atomically};
use crate::error::Error;

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
