//! `umbra schema`: the JSON Schema of the statistics.

use std::process::ExitCode;

use crate::console::output;
use crate::error::Error;

/// The schema, made from the types; a test keeps it current.
pub const STATISTICS: &str = include_str!("../statistics.schema.json");

/// Print the JSON Schema of what `--stats` writes.
///
/// It says which keys there are and of which types; crates/umbra/SCHEMA.md says what they mean.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Prints it.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode, Error> {
    output(STATISTICS)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use schemars::generate::SchemaSettings;
    use serde_json::Value;

    use super::*;
    use crate::report::Statistics;
    use crate::report::tests::statistics;

    /// As the types have it. What older versions did not write is not required: the reader takes
    /// their results.
    fn generated() -> String {
        let schema = SchemaSettings::draft2020_12().for_deserialize().into_generator();
        let mut schema = schema.into_root_schema_for::<Statistics>();
        schema.insert("title".into(), "Statistics of a run of Umbra, schema 1".into());
        serde_json::to_string_pretty(&schema).unwrap() + "\n"
    }

    #[test]
    fn the_file_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("statistics.schema.json");
        if std::env::var_os("UMBRA_BLESS").is_some() {
            fs::write(&path, generated()).unwrap();
        }
        assert!(
            fs::read_to_string(path).unwrap() == generated(),
            "statistics.schema.json is not what the types say; run this test with UMBRA_BLESS=1"
        );
    }

    #[test]
    fn it_takes_what_is_written_and_nothing_else() {
        let schema: Value = serde_json::from_str(STATISTICS).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        let result = serde_json::to_value(statistics()).unwrap();
        let bless = |change: fn(&mut Value)| {
            let mut result = result.clone();
            change(&mut result);
            schema.validate(&result).map_err(|error| error.to_string())
        };
        bless(|_| ()).unwrap();
        bless(|result| result["exits"]["io"] = Value::Null).unwrap();
        bless(|result| result["exits"] = Value::Null).unwrap();
        for wrong in [
            (|result| result["memory"] = "much".into()) as fn(&mut Value),
            |result| result["exits"]["io"] = (-1).into(),
            |result| result["exits"]["oi"] = 3.into(),
            |result| result["phases"][0]["ops"] = Value::Null,
            |result| drop(result.as_object_mut().unwrap().remove("guest_exit")),
        ] {
            assert!(bless(wrong).is_err());
        }
    }

    #[test]
    fn it_takes_every_published_result() {
        let schema: Value = serde_json::from_str(STATISTICS).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
        let mut checked = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let result: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                schema
                    .validate(&result)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                checked += 1;
            }
        }
        assert!(checked > 5);
    }
}
