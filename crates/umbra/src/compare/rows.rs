//! A comparison for other programs: a row for each figure.

use serde::Serialize;
use umbra_telemetry::ExitCause;

use super::differences;
use super::table::{MMU, head};
use crate::report::{Exits, Named, Phase, Range};
use crate::untrusted::Untrusted;

/// The version of the JSON.
const VERSION: u32 = 1;

/// A figure. SCHEMA.md describes the fields, which are the columns of the CSV.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    /// The number of the result; the base is 0.
    result: usize,
    file: String,
    hypervisor: String,
    machine: String,
    guest_faults: String,
    without: String,
    /// Nothing for the whole run.
    phase: Option<String>,
    operations: Option<u64>,
    measure: &'static str,
    total: u64,
    per_operation: Option<f64>,
    /// Of `per_operation` to the base's, or of `total` where there are no operations.
    ratio: Option<f64>,
    /// How many runs the next five are of.
    runs: Option<u32>,
    min: Option<u64>,
    lower_quartile: Option<u64>,
    median: Option<u64>,
    upper_quartile: Option<u64>,
    max: Option<u64>,
}

/// The figures as CSV (RFC 4180, but with line feeds), with a line of heads.
pub fn csv(results: &[Named]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows(results) {
        writer.serialize(row).expect("every row has the same plain fields");
    }
    let bytes = writer.into_inner().expect("a vector takes everything");
    String::from_utf8(bytes).expect("all fields are text")
}

/// The figures as JSON, with what the results are and how they differ.
pub fn json(results: &[Named]) -> String {
    let files: Vec<String> = results.iter().map(|result| result.name.to_string()).collect();
    let json = serde_json::json!({
        "schema": "umbra.compare",
        "version": VERSION,
        "files": files,
        "differences": differences(results, head),
        "rows": rows(results),
    });
    serde_json::to_string_pretty(&json).expect("every row has plain fields") + "\n"
}

/// What has a count and perhaps a spread.
struct Measured {
    measure: &'static str,
    total: u64,
    range: Option<Range>,
}

fn rows(results: &[Named]) -> Vec<Row> {
    let Some(base) = results.first() else { return Vec::new() };
    let mut rows = Vec::new();
    for (index, result) in results.iter().enumerate() {
        let of_run = |measure: &'static str, total: u64, ratio_to: Option<u64>| Row {
            result: index,
            file: result.name.to_string(),
            hypervisor: result.statistics.hypervisor.to_string(),
            machine: result.statistics.machine.to_string(),
            guest_faults: result.statistics.guest_faults.to_string(),
            without: joined(&result.statistics.without),
            phase: None,
            operations: None,
            measure,
            total,
            per_operation: None,
            ratio: ratio(total as f64, ratio_to.map(|base| base as f64)),
            runs: None,
            min: None,
            lower_quartile: None,
            median: None,
            upper_quartile: None,
            max: None,
        };
        let base_of_run = whole_run(base);
        for (measure, total) in whole_run(result) {
            let to =
                base_of_run.iter().find(|(other, _)| *other == measure).map(|(_, total)| *total);
            rows.push(of_run(measure, total, to));
        }
        for phase in &result.statistics.phases {
            let of_base = base.statistics.phase(phase.name.as_str());
            for Measured { measure, total, range } in measured(phase) {
                let per = |phase: &Phase, total: u64| total as f64 / phase.ops.max(1) as f64;
                let to = of_base.and_then(|of_base| {
                    let same = measured(of_base).into_iter().find(|one| one.measure == measure)?;
                    Some(per(of_base, same.total))
                });
                rows.push(Row {
                    phase: Some(phase.name.to_string()),
                    operations: (phase.ops > 0).then_some(phase.ops),
                    per_operation: (phase.ops > 0).then(|| per(phase, total)),
                    ratio: ratio(per(phase, total), to),
                    runs: range.and(phase.spread.map(|spread| spread.runs)),
                    min: range.map(|range| range.min),
                    lower_quartile: range.map(|range| range.lower_quartile),
                    median: range.map(|range| range.median),
                    upper_quartile: range.map(|range| range.upper_quartile),
                    max: range.map(|range| range.max),
                    ..of_run(measure, total, None)
                });
            }
        }
    }
    rows
}

fn ratio(own: f64, base: Option<f64>) -> Option<f64> {
    base.filter(|&base| base > 0.0).map(|base| own / base)
}

fn joined(names: &[Untrusted]) -> String {
    names.iter().map(Untrusted::to_string).collect::<Vec<_>>().join(" ")
}

/// The figures of the whole run that are known.
fn whole_run(result: &Named) -> Vec<(&'static str, u64)> {
    let statistics = &result.statistics;
    let of_run = [
        ("memory_exits", statistics.memory_exits),
        ("exits", statistics.exits.as_ref().map(Exits::total)),
        ("instructions", statistics.instructions),
        ("tsc", statistics.tsc),
    ];
    let mmu = MMU.iter().map(|(_, key, count)| (*key, statistics.mmu.as_ref().and_then(count)));
    let known = |(measure, total): (&'static str, Option<u64>)| Some((measure, total?));
    of_run
        .into_iter()
        .filter_map(known)
        .chain(causes(statistics.exits.as_ref()))
        .chain(mmu.filter_map(known))
        .collect()
}

/// The figures of a phase that are known.
fn measured(phase: &Phase) -> Vec<Measured> {
    let spread = phase.spread.as_ref();
    let of_all = [
        ("memory_exits", phase.memory_exits, spread.and_then(|spread| spread.memory_exits)),
        ("exits", phase.exits.as_ref().map(Exits::total), spread.and_then(|spread| spread.exits)),
        ("instructions", phase.instructions, spread.and_then(|spread| spread.instructions)),
        ("tsc", Some(phase.tsc), spread.map(|spread| spread.tsc)),
    ];
    let of_all = of_all.into_iter().filter_map(|(measure, total, range)| {
        total.map(|total| Measured { measure, total, range })
    });
    let by_cause = causes(phase.exits.as_ref());
    of_all
        .chain(by_cause.map(|(measure, total)| Measured { measure, total, range: None }))
        .collect()
}

/// The exits by cause that are known.
fn causes(exits: Option<&Exits>) -> impl Iterator<Item = (&'static str, u64)> {
    let known = move |&cause: &ExitCause| Some((cause.name(), exits?.get(cause)?));
    ExitCause::ALL.iter().filter_map(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Spread;
    use crate::report::tests::statistics;

    fn results() -> [Named; 2] {
        let base = statistics();
        let mut other = statistics();
        (other.hypervisor, other.memory) = ("none".into(), 64);
        other.without.push("invlpg".into());
        other.phases.truncate(1);
        let phase = &mut other.phases[0];
        (phase.exits, phase.memory_exits) = (None, None);
        phase.instructions = phase.instructions.map(|count| count / 4);
        let range = Range { min: 1, lower_quartile: 2, median: 3, upper_quartile: 4, max: 5 };
        phase.spread = Some(Spread {
            runs: 7,
            exits: None,
            memory_exits: None,
            instructions: Some(range),
            tsc: range,
        });
        [
            Named { name: "a, \"b\".json".into(), statistics: base },
            Named { name: "\x1bc\n".into(), statistics: other },
        ]
    }

    fn of<'a>(
        rows: &'a [Row],
        result: usize,
        phase: Option<&str>,
        measure: &str,
    ) -> Option<&'a Row> {
        rows.iter()
            .find(|row| (row.result, row.phase.as_deref(), row.measure) == (result, phase, measure))
    }

    #[test]
    fn every_figure_that_is_known_is_a_row() {
        let rows = rows(&results());
        let demand = Some("demand");
        let base = of(&rows, 0, demand, "instructions").unwrap();
        assert_eq!(
            (base.total, base.operations, base.ratio, base.runs),
            (5_000_000, Some(1024), Some(1.0), None)
        );
        let other = of(&rows, 1, demand, "instructions").unwrap();
        assert_eq!(
            (other.total, other.ratio, other.runs, other.max),
            (1_250_000, Some(0.25), Some(7), Some(5))
        );
        assert_eq!(of(&rows, 1, demand, "exits"), None);
        assert!(of(&rows, 0, demand, "host_fault_link").is_some_and(|row| row.total > 0));
        assert_eq!(of(&rows, 0, None, "metadata_bytes").unwrap().total, 3);
        assert_eq!(of(&rows, 1, None, "exits").unwrap().without, "cr3 invlpg");
        // A phase that counts no operations has its sums.
        let unnamed = of(&rows, 0, Some("phase-99"), "tsc").unwrap();
        assert_eq!((unnamed.operations, unnamed.per_operation), (None, None));
    }

    #[test]
    fn csv_can_be_read_back() {
        let text = csv(&results());
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let heads = reader.headers().unwrap().clone();
        let document = include_str!("../../SCHEMA.md");
        for head in &heads {
            assert!(document.contains(&format!("`{head}`")), "{head} is not documented");
        }
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), rows(&results()).len());
        assert!(records.iter().all(|record| record.len() == heads.len()));
        assert_eq!(&records[0][1], "a, \"b\".json");
        // What a terminal would obey is not in it.
        assert_eq!(&records.last().unwrap()[1], "\\u{1b}c\\n");
    }

    #[test]
    fn json_names_the_differences() {
        let json: serde_json::Value = serde_json::from_str(&json(&results())).unwrap();
        assert_eq!((&json["schema"], &json["version"]), (&"umbra.compare".into(), &1.into()));
        assert_eq!(json["differences"][0], "[1]: guest memory is 64 MiB, and 192 MiB in base");
        assert_eq!(json["rows"].as_array().unwrap().len(), rows(&results()).len());
        assert!(json["rows"][0]["phase"].is_null());
    }
}
