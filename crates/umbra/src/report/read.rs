//! Reads what `umbra run --stats` has written.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use super::SCHEMA;
use crate::error::Error;

/// Larger files are no results.
const MAX_BYTES: u64 = 64 << 20;

/// What helps against a result that is cut off, damaged or old.
pub const AGAIN: &str = "make it again with `umbra run --stats` or `umbra bench --stats`";

/// Reads a statistics file, all of it or as much as `T` takes, and has `parse` (which calls [`from_json`]) judge it.
///
/// # Errors
/// One sentence: it cannot be read, is no regular file or too large, or is refused by `parse`, which says why in the end
/// of a sentence that starts with the file's name.
pub fn read<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, Error> {
    let refuse = |why: String| Error::Input(format!("{} {why}", path.display()));
    let metadata = fs::metadata(path);
    let text = match metadata {
        Ok(metadata) if !metadata.is_file() => {
            return Err(refuse(
                "is not a regular file, so no result; give a file of `umbra run --stats`".into(),
            ));
        }
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(refuse("is too large for a result; give a file of `umbra run --stats`".into()));
        }
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    let text = text.map_err(|error| refuse(format!("cannot be read: {error}; give a readable file")))?;
    parse(&text).map_err(refuse)
}

/// The text as a result of this version's schema.
///
/// # Errors
/// It is none: why, as the end of a sentence that starts with its name.
pub fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let json: Value = serde_json::from_slice(text).map_err(|error| match error.classify() {
        Category::Eof => format!("ends in the middle, at line {}; {AGAIN}", error.line()),
        _ => format!("is not JSON (line {}); give a result of `umbra run --stats`", error.line()),
    })?;
    match json.get("schema").map(Value::as_u64) {
        Some(Some(schema)) if schema == u64::from(SCHEMA) => (),
        Some(Some(schema)) => {
            return Err(format!("has schema {schema}, and this version knows {SCHEMA} only; {AGAIN}"));
        }
        _ => return Err("is JSON but no result of Umbra; give a file of `umbra run --stats`".into()),
    }
    serde_json::from_value(json).map_err(|error| format!("is a damaged result ({error}); {AGAIN}"))
}
