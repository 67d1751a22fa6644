//! Reads what `umbra run --stats` has written.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use serde_json::error::Category;
use umbra_telemetry::phase_name;

use super::input::{is_stdin, name_of, open};
use super::{Exits, Kvm, Mmu, Phase, SCHEMA, Spread, Statistics};
use crate::error::Error;
use crate::untrusted::{Untrusted, shown};

/// Larger files are no results.
const MAX_BYTES: u64 = 64 << 20;

/// More than this of anything nobody has counted: sums of counts stay within 64 bits.
const MAX_COUNT: u64 = 1 << 60;

/// What helps against a result that is cut off, damaged or old.
const AGAIN: &str = "make it again with `umbra run --stats` or `umbra bench --stats`";

/// A result, and what it is called.
#[derive(Clone, Debug)]
pub struct Named {
    /// What the user calls it.
    pub name: Untrusted,
    /// The result.
    pub statistics: Statistics,
}

/// Reads a statistics file; `-` is standard input.
///
/// # Errors
/// One sentence: it cannot be read, is cut off, is something else, or of another version.
pub fn read(path: &Path) -> Result<Named, Error> {
    let name = name_of(path);
    let refuse = |why: String| Error::Input(format!("{name} {why}"));
    let is_regular =
        is_stdin(path) || fs::metadata(path).map_or(true, |metadata| metadata.is_file());
    if !is_regular {
        return Err(refuse(
            "is not a regular file, so no result; give a file of `umbra run --stats`".into(),
        ));
    }
    let mut text = Vec::new();
    let read = open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text));
    read.map_err(|error| refuse(format!("cannot be read: {error}; give a readable file")))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(refuse("is too large for a result; give a file of `umbra run --stats`".into()));
    }
    let statistics = parse(&text).map_err(refuse)?;
    Ok(Named { name: name.into(), statistics })
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
            return Err(format!(
                "has schema {schema}, and this version knows {SCHEMA} only; {AGAIN}"
            ));
        }
        _ => {
            return Err("is JSON but no result of Umbra; give a file of `umbra run --stats`".into());
        }
    }
    let mut statistics: Statistics = serde_json::from_value(json)
        .map_err(|error| format!("is a damaged result ({}); {AGAIN}", shown(&error.to_string())))?;
    if let Some(what) = absurd(&statistics) {
        return Err(format!(
            "is a damaged result (it has more {what} than can be counted); {AGAIN}"
        ));
    }
    let mut ids = BTreeSet::new();
    if let Some(twice) = statistics.phases.iter().find(|phase| !ids.insert(phase.id)) {
        return Err(format!(
            "is a damaged result (it has the phase {} twice); {AGAIN}",
            twice.name
        ));
    }
    if statistics.hypervisor == "none" {
        // The first versions named what was asked for, which nothing there could do.
        statistics.guest_faults = "none".into();
    }
    for phase in &mut statistics.phases {
        // Results of the first versions do not have the sum.
        phase.memory_exits =
            phase.memory_exits.or_else(|| phase.exits.as_ref()?.memory(phase.kvm.as_ref()));
        if phase.name.as_str() != phase_name(phase.id) {
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

/// What a result has too much of, if there is something.
fn absurd(statistics: &Statistics) -> Option<&'static str> {
    let of_phase = |phase: &Phase| {
        let counts = [
            ("operations", Some(phase.ops)),
            ("ticks", Some(phase.tsc)),
            ("instructions", phase.instructions),
        ];
        let ranges = phase.spread.iter().flat_map(Spread::ranges);
        counts
            .into_iter()
            .chain(ranges.map(|range| ("of something in repeats", Some(range.max))))
            .chain(of_both(&phase.exits, phase.memory_exits, &phase.kvm, phase.mmu))
            .collect::<Vec<_>>()
    };
    let audits = statistics.audits.map_or([0, 0], |audits| [audits.per_exit, audits.full]);
    let of_run = [
        ("ticks", statistics.tsc),
        ("instructions", statistics.instructions),
        ("bytes under the canary", statistics.canary),
        ("audits", audits.into_iter().max()),
    ];
    let run = of_both(&statistics.exits, statistics.memory_exits, &statistics.kvm, statistics.mmu);
    let counts = of_run.into_iter().chain(run).chain(statistics.phases.iter().flat_map(of_phase));
    if let Some((what, _)) =
        counts.into_iter().find(|(_, count)| count.is_some_and(|count| count > MAX_COUNT))
    {
        return Some(what);
    }
    let more_than_all = |exits: &Option<Exits>, memory: Option<u64>| {
        exits.as_ref().zip(memory).is_some_and(|(exits, memory)| memory > exits.total())
    };
    let in_phases =
        statistics.phases.iter().any(|phase| more_than_all(&phase.exits, phase.memory_exits));
    if in_phases || more_than_all(&statistics.exits, statistics.memory_exits) {
        return Some("memory exits");
    }
    let mut ranges =
        statistics.phases.iter().filter_map(|phase| phase.spread.as_ref()).flat_map(Spread::ranges);
    if ranges.any(|range| !range.is_ascending()) {
        return Some("at the low end of repeats");
    }
    let is_measure = |value: f64| (0.0..MAX_COUNT as f64).contains(&value);
    let emulator = statistics
        .emulator
        .filter(|used| !is_measure(used.seconds) || !is_measure(used.peak_memory));
    emulator.map(|_| "seconds or memory of the emulator")
}

/// The counts that a run has and each of its phases, too.
fn of_both(
    exits: &Option<Exits>,
    memory_exits: Option<u64>,
    kvm: &Option<Kvm>,
    mmu: Option<Mmu>,
) -> Vec<(&'static str, Option<u64>)> {
    let kvm = kvm.as_ref().and_then(|kvm| kvm.0.values().copied().max());
    let mmu = mmu.and_then(|mmu| mmu.counts().into_iter().max());
    vec![
        ("exits", exits.as_ref().map(Exits::total)),
        ("memory exits", memory_exits),
        ("events of KVM", kvm),
        ("events of the shadow MMU", mmu),
    ]
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
        let mut bare = statistics();
        bare.hypervisor = "none".into();
        let bare = parse(&serde_json::to_vec(&bare).unwrap()).unwrap();
        assert_eq!(
            (bare.guest_faults.as_str(), statistics().guest_faults.as_str()),
            ("none", "bypass")
        );
        // Every beginning of it is refused in one line.
        for length in (0..text.len() - 1).step_by(7) {
            let sentence = refused(&text[..length]);
            assert!(
                sentence.contains("ends in the middle") && !sentence.contains('\n'),
                "{sentence}"
            );
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
        // Nothing that was counted is so much, wherever it stands.
        for (place, what) in [
            ("/instructions", "instructions"),
            ("/tsc", "ticks"),
            ("/canary", "canary"),
            ("/audits/full", "audits"),
            ("/memory_exits", "memory exits"),
            ("/mmu/live_pages", "shadow MMU"),
            ("/phases/0/ops", "operations"),
            ("/phases/0/tsc", "ticks"),
            ("/phases/1/instructions", "instructions"),
            ("/phases/1/memory_exits", "memory exits"),
            ("/phases/1/mmu/built", "shadow MMU"),
        ] {
            let mut json = serde_json::to_value(statistics()).unwrap();
            *json.pointer_mut(place).unwrap() = u64::MAX.into();
            let sentence = refused(&serde_json::to_vec(&json).unwrap());
            assert!(sentence.contains("more") && sentence.contains(what), "{place}: {sentence}");
        }
        for (place, wrong) in [("max", u64::MAX), ("min", 9)] {
            let range =
                json!({"min": 1, "lower_quartile": 2, "median": 3, "upper_quartile": 4, "max": 5});
            let mut json = serde_json::to_value(statistics()).unwrap();
            json["phases"][0]["spread"] = json!({"runs": 3, "exits": range, "memory_exits": null, "instructions": null, "tsc": range});
            assert!(parse(&serde_json::to_vec(&json).unwrap()).is_ok());
            json["phases"][0]["spread"]["exits"][place] = wrong.into();
            assert!(refused(&serde_json::to_vec(&json).unwrap()).contains("repeats"));
        }
        assert!(change("kvm", json!({"exits": u64::MAX})).contains("events of KVM"));
        assert!(
            change("emulator", json!({"seconds": -1.0, "peak_memory": 1.0})).contains("emulator")
        );
        assert!(
            change("emulator", json!({"seconds": 1.0, "peak_memory": 1e300})).contains("emulator")
        );
        let mut json = serde_json::to_value(statistics()).unwrap();
        json["memory_exits"] = (statistics().exits.unwrap().total() + 1).into();
        assert!(refused(&serde_json::to_vec(&json).unwrap()).contains("more memory exits"));
        let mut json = serde_json::to_value(statistics()).unwrap();
        json["phases"][1] = json["phases"][0].clone();
        assert!(
            refused(&serde_json::to_vec(&json).unwrap()).contains("has the phase demand twice")
        );
        let mut json = serde_json::to_value(statistics()).unwrap();
        json["phases"][0]["name"] = "nap".into();
        let sentence = refused(&serde_json::to_vec(&json).unwrap());
        assert!(sentence.contains("unknown phase") && sentence.contains("nap"), "{sentence}");
    }
}
