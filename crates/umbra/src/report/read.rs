//! Reads what `umbra run --stats` has written.

use std::fs;
use std::path::Path;

use serde_json::Value;
use serde_json::error::Category;
use umbra_telemetry::phase_name;

use super::{SCHEMA, Statistics};
use crate::error::Error;

/// Larger files are no results.
const MAX_BYTES: u64 = 64 << 20;

/// More exits than this nobody has counted: sums of them stay within 64 bits.
const MAX_EXITS: u64 = 1 << 60;

/// What helps against a result that is cut off, damaged or old.
const AGAIN: &str = "make it again with `umbra run --stats` or `umbra bench --stats`";

/// A result, and what it is called.
#[derive(Clone, Debug)]
pub struct Named {
    /// What the user calls it.
    pub name: String,
    /// The result.
    pub statistics: Statistics,
}

/// Reads a statistics file.
///
/// # Errors
/// One sentence: it cannot be read, is cut off, is something else, or of another version.
pub fn read(path: &Path) -> Result<Named, Error> {
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
    let statistics = parse(&text).map_err(refuse)?;
    Ok(Named { name: path.display().to_string(), statistics })
}

/// Why the text is no result, as the end of a sentence that starts with its name.
fn parse(text: &[u8]) -> Result<Statistics, String> {
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
    let mut statistics: Statistics =
        serde_json::from_value(json).map_err(|error| format!("is a damaged result ({error}); {AGAIN}"))?;
    let exits = statistics.phases.iter().map(|phase| &phase.exits).chain([&statistics.exits]);
    if exits.flatten().any(|exits| exits.total() > MAX_EXITS) {
        return Err(format!("is a damaged result (it has more exits than can be counted); {AGAIN}"));
    }
    for phase in &mut statistics.phases {
        // Results of the first versions do not have the sum.
        phase.memory_exits = phase.memory_exits.or_else(|| phase.exits.as_ref()?.memory(phase.kvm.as_ref()));
        if phase.name != phase_name(phase.id) {
            return Err(format!(
                "has an unknown phase: id {} is {} and not {}; {AGAIN}",
                phase.id,
                phase_name(phase.id),
                phase.name
            ));
        }
    }
    Ok(statistics)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::report::schema::tests::statistics;

    fn refused(text: &[u8]) -> String {
        parse(text).unwrap_err()
    }

    #[test]
    fn what_was_written_can_be_read() {
        let text = serde_json::to_vec_pretty(&statistics()).unwrap();
        assert_eq!(parse(&text).unwrap(), statistics());
        let mut old = serde_json::to_value(statistics()).unwrap();
        old["phases"][0].as_object_mut().unwrap().remove("memory_exits");
        assert_eq!(parse(&serde_json::to_vec(&old).unwrap()).unwrap(), statistics());
        // Every beginning of it is refused in one line.
        for length in (0..text.len() - 1).step_by(7) {
            let sentence = refused(&text[..length]);
            assert!(sentence.contains("ends in the middle") && !sentence.contains('\n'), "{sentence}");
        }
    }

    #[test]
    fn everything_else_is_named_for_what_it_is() {
        let change = |key: &str, value: Value| {
            let mut json = serde_json::to_value(statistics()).unwrap();
            json[key] = value;
            refused(&serde_json::to_vec(&json).unwrap())
        };
        assert!(change("schema", 2.into()).contains("has schema 2"));
        assert!(change("schema", "1".into()).contains("no result"));
        assert!(change("memory", "much".into()).contains("damaged"));
        assert!(change("phases", 3.into()).contains("damaged"));
        assert!(refused(b"{}").contains("no result"));
        assert!(refused(b"[1]").contains("no result"));
        assert!(refused(b"\x1f\x8b").contains("is not JSON"));
        let exits = |exits: Value| change("exits", exits);
        assert!(exits(json!({"io": 3, "total": 4})).contains("add up"));
        assert!(exits(json!({"io": 3})).contains("add up"));
        assert!(exits(json!({"io": u64::MAX, "total": u64::MAX})).contains("more exits than"));
        let mut json = serde_json::to_value(statistics()).unwrap();
        json["phases"][0]["name"] = "nap".into();
        let sentence = refused(&serde_json::to_vec(&json).unwrap());
        assert!(sentence.contains("unknown phase") && sentence.contains("nap"), "{sentence}");
    }
}
