//! Reads a result.

use std::path::Path;

use umbra_telemetry::phase_name;

use crate::error::Error;
use crate::report::{self, AGAIN, Statistics};

/// Reads a statistics file.
///
/// # Errors
/// One sentence: it cannot be read, is cut off, is something else, or of another version.
pub fn read(path: &Path) -> Result<Statistics, Error> {
    report::read(path, parse)
}

/// Why the text is no result, as the end of a sentence that starts with its name.
fn parse(text: &[u8]) -> Result<Statistics, String> {
    let mut statistics: Statistics = report::from_json(text)?;
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
    use serde_json::Value;

    use super::*;
    use crate::report::tests::statistics;

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
        let mut json = serde_json::to_value(statistics()).unwrap();
        json["phases"][0]["name"] = "nap".into();
        let sentence = refused(&serde_json::to_vec(&json).unwrap());
        assert!(sentence.contains("unknown phase") && sentence.contains("nap"), "{sentence}");
    }
}
