//! The statistics file, as SCHEMA.md describes it.

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use umbra_telemetry::{ExitCause, ExitCounts, MmuCounters, PhaseStats, phase_name};

/// The version of this format.
pub const SCHEMA: u32 = 1;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of the tool that wrote it.
    pub version: String,
    /// `umbra`, `kvm` or `none`.
    pub hypervisor: String,
    /// As in `--machine`.
    pub machine: String,
    /// The kernel's own version text, or its file name.
    pub kernel: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Guest memory in MiB.
    pub memory: u32,
    /// `bypass` or `trap`: what was in force, not what was asked for.
    pub guest_faults: String,
    /// The page-fault filter in force at the end.
    pub filter: Option<String>,
    /// How the guest ended.
    pub guest_exit: String,
    /// Exits of the whole run.
    pub exits: Option<Exits>,
    /// What the shadow MMU did in the whole run.
    pub mmu: Option<Mmu>,
    /// Instructions of guest and hypervisor, from guest entry to the end.
    pub instructions: Option<u64>,
    /// Time-stamp counter ticks, likewise.
    pub tsc: Option<u64>,
    /// Phases in the order of their first start.
    pub phases: Vec<Phase>,
    /// Bytes of host memory outside guest and hypervisor that were unchanged at the end.
    #[serde(default)]
    pub canary: Option<u64>,
    /// How often the auditor looked; absent if it was off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audits: Option<Audits>,
    /// What the emulator cost on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulator: Option<EmulatorUse>,
}

/// What happened between two marks of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The id in the marks.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Operations, as the guest said.
    pub ops: u64,
    /// Exits, without those of the marks.
    pub exits: Exits,
    /// What the shadow MMU did.
    pub mmu: Mmu,
    /// As in [`Statistics`].
    pub instructions: Option<u64>,
    /// As in [`Statistics`].
    pub tsc: u64,
}

impl Phase {
    /// `ticks_are_instructions`: on an emulator that counts one tick for each instruction.
    pub fn new(stats: &PhaseStats, ticks_are_instructions: bool) -> Phase {
        Phase {
            id: stats.id,
            name: phase_name(stats.id),
            ops: stats.ops,
            exits: Exits(stats.exits.clone()),
            mmu: Mmu::from(stats.mmu),
            instructions: ticks_are_instructions.then_some(stats.tsc),
            tsc: stats.tsc,
        }
    }
}

/// Counts of the shadow MMU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mmu {
    /// Shadow pages built.
    pub built: u64,
    /// Shadow pages zapped.
    pub zapped: u64,
    /// Of these, to make room.
    pub reclaimed: u64,
    /// Large guest pages mapped by smaller ones.
    pub splits: u64,
    /// Full TLB flushes.
    pub flushes: u64,
}

impl From<MmuCounters> for Mmu {
    fn from(counters: MmuCounters) -> Mmu {
        let MmuCounters { built, zapped, reclaimed, splits, flushes } = counters;
        Mmu { built, zapped, reclaimed, splits, flushes }
    }
}

/// What the auditor did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audits {
    /// Looks at what one exit changed.
    pub per_exit: u64,
    /// Looks at everything.
    pub full: u64,
}

/// What the emulator cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmulatorUse {
    /// Wall-clock seconds from start to report.
    pub seconds: f64,
    /// Peak resident memory in MiB.
    pub peak_memory: f64,
}

/// Exits by cause: an object with every cause, and `total`.
#[derive(Clone, Debug, PartialEq)]
pub struct Exits(pub ExitCounts);

const TOTAL: &str = "total";

impl Serialize for Exits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(ExitCause::ALL.len() + 1))?;
        for (cause, count) in self.0.iter() {
            map.serialize_entry(cause.name(), &count)?;
        }
        map.serialize_entry(TOTAL, &self.0.total())?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Exits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exits, D::Error> {
        struct Causes;
        impl<'de> Visitor<'de> for Causes {
            type Value = Exits;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of exit causes and their total")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Exits, A::Error> {
                let mut counts = Vec::new();
                let mut total = None;
                while let Some((key, count)) = map.next_entry::<String, u64>()? {
                    match ExitCause::from_name(&key) {
                        Some(cause) => counts.push((cause, count)),
                        None if key == TOTAL => total = Some(count),
                        None => return Err(de::Error::custom(format!("unknown exit cause `{key}`"))),
                    }
                }
                let sum = counts.iter().try_fold(0, |sum: u64, (_, count)| sum.checked_add(*count));
                if sum.is_none() || sum != total {
                    return Err(de::Error::custom("the exits do not add up to their total"));
                }
                Ok(Exits(counts.into_iter().collect()))
            }
        }
        deserializer.deserialize_map(Causes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::report) fn counts(seed: u64) -> ExitCounts {
        ExitCause::ALL.iter().zip(seed..).map(|(&cause, count)| (cause, count * 31)).collect()
    }

    pub(in crate::report) fn statistics() -> Statistics {
        let phase = PhaseStats { id: 2, ops: 1024, exits: counts(1), tsc: 5_000_000, ..Default::default() };
        let unnamed = PhaseStats { id: 99, ..Default::default() };
        Statistics {
            schema: SCHEMA,
            version: "0.1.0".into(),
            hypervisor: "umbra".into(),
            machine: "penryn".into(),
            kernel: "6.1.0".into(),
            cmdline: "console=ttyS0 \"quoted\"".into(),
            memory: 192,
            guest_faults: "bypass".into(),
            filter: Some("present".into()),
            guest_exit: "acpi_off".into(),
            exits: Some(Exits(counts(7))),
            mmu: Some(Mmu { built: 1, zapped: 2, reclaimed: 3, splits: 4, flushes: 5 }),
            instructions: Some(1 << 40),
            tsc: Some(1 << 40),
            phases: vec![Phase::new(&phase, true), Phase::new(&unnamed, false)],
            canary: Some(7 << 20),
            audits: Some(Audits { per_exit: 5, full: 6 }),
            emulator: Some(EmulatorUse { seconds: 12.5, peak_memory: 300.25 }),
        }
    }

    #[test]
    fn round_trip() {
        let text = serde_json::to_string_pretty(&statistics()).unwrap();
        assert_eq!(serde_json::from_str::<Statistics>(&text).unwrap(), statistics());
    }

    #[test]
    fn every_documented_key_is_there_and_documented() {
        const DOCUMENT: &str = include_str!("../../SCHEMA.md");
        let json = serde_json::to_value(statistics()).unwrap();
        let phase = &json["phases"][0];
        for object in [&json, phase, &json["exits"], &json["mmu"], &json["emulator"], &json["audits"]] {
            for key in object.as_object().unwrap().keys() {
                assert!(DOCUMENT.contains(&format!("`{key}`")), "{key} is not documented");
            }
        }
        assert_eq!(json["exits"].as_object().unwrap().len(), ExitCause::ALL.len() + 1);
        assert_eq!(phase["name"], "demand");
        assert_eq!(json["phases"][1]["name"], "phase-99");
    }

    #[test]
    fn exits_must_be_a_partition() {
        let read = serde_json::from_str::<Exits>;
        assert_eq!(read(r#"{"io": 3, "total": 3}"#).unwrap().0.get(ExitCause::Io), 3);
        assert!(read(r#"{"io": 3, "total": 4}"#).is_err());
        assert!(read(r#"{"io": 3}"#).is_err());
        assert!(read(r#"{"oi": 3, "total": 3}"#).is_err());
        assert!(read(r#"{"io": 18446744073709551615, "hlt": 1, "total": 0}"#).is_err());
    }

    #[test]
    fn a_run_without_a_report_has_nulls() {
        let silent = Statistics { exits: None, mmu: None, tsc: None, instructions: None, ..statistics() };
        let text = serde_json::to_string(&silent).unwrap();
        assert!(text.contains(r#""exits":null"#));
        assert_eq!(serde_json::from_str::<Statistics>(&text).unwrap(), silent);
    }
}
