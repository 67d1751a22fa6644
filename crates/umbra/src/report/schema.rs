//! The statistics file, as SCHEMA.md describes it.

use serde::{Deserialize, Serialize};
use umbra_telemetry::{MmuCounters, PhaseStats, phase_name};

use super::{Exits, Kvm, Spread};
use crate::untrusted::Untrusted;

/// The version of this format.
pub const SCHEMA: u32 = 1;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Statistics {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of the tool that wrote it.
    pub version: Untrusted,
    /// `umbra`, `kvm` or `none`.
    pub hypervisor: Untrusted,
    /// As in `--machine`.
    pub machine: Untrusted,
    /// The kernel's own version text, or its file name.
    pub kernel: Untrusted,
    /// The kernel's command line.
    pub cmdline: Untrusted,
    /// Guest memory in MiB.
    pub memory: u32,
    /// `bypass`, `present`, `user` or `trap`: what was in force, not what was asked for.
    pub guest_faults: Untrusted,
    /// What was switched off.
    #[serde(default, deserialize_with = "crate::guest::read_names")]
    pub without: Vec<Untrusted>,
    /// The page-fault filter in force at the end.
    pub filter: Option<Untrusted>,
    /// How the guest ended.
    pub guest_exit: Untrusted,
    /// Exits of the whole run.
    pub exits: Option<Exits>,
    /// Of these, the exits for memory.
    #[serde(default)]
    pub memory_exits: Option<u64>,
    /// KVM's own counters; absent if it is not KVM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<Kvm>,
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

impl Statistics {
    /// The phase of this name.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name.as_str() == name)
    }
}

/// What happened between two marks of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Phase {
    /// The id in the marks.
    pub id: u32,
    /// Its name.
    pub name: Untrusted,
    /// Operations, as the guest said.
    pub ops: u64,
    /// Exits, without those of the marks.
    pub exits: Option<Exits>,
    /// As in [`Statistics`].
    #[serde(default)]
    pub memory_exits: Option<u64>,
    /// As in [`Statistics`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<Kvm>,
    /// What the shadow MMU did.
    pub mmu: Option<Mmu>,
    /// As in [`Statistics`].
    pub instructions: Option<u64>,
    /// As in [`Statistics`].
    pub tsc: u64,
    /// How far apart the repeats were; absent if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

impl Phase {
    /// A phase; `mmu`: whether the shadow MMU was ours, `ticks`: whether the machine counts one
    /// tick for each instruction.
    pub fn new(
        stats: &PhaseStats,
        exits: Option<Exits>,
        kvm: Option<Kvm>,
        mmu: bool,
        ticks: bool,
    ) -> Phase {
        Phase {
            id: stats.id,
            name: phase_name(stats.id).into(),
            ops: stats.ops,
            memory_exits: exits.as_ref().and_then(|exits| exits.memory(kvm.as_ref())),
            exits,
            kvm,
            mmu: mmu.then(|| Mmu::from(stats.mmu)),
            instructions: ticks.then_some(stats.tsc),
            tsc: stats.tsc,
            spread: None,
        }
    }
}

/// Counts of the shadow MMU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Shadow pages of detached tables linked again. This and what follows is not known of older
    /// versions.
    pub attached: Option<u64>,
    /// Guest tables detached.
    pub detached: Option<u64>,
    /// Shadow roots moved to another frame.
    pub roots_moved: Option<u64>,
    /// Changes of the page-fault filter.
    pub filter_switches: Option<u64>,
    /// Shadow pages in use at the end.
    pub live_pages: Option<u64>,
    /// Bytes of the MMU's tables beside them, at the end.
    pub metadata_bytes: Option<u64>,
}

impl Mmu {
    /// All that are known.
    pub fn counts(&self) -> Vec<u64> {
        let always = [self.built, self.zapped, self.reclaimed, self.splits, self.flushes].map(Some);
        let later = [
            self.attached,
            self.detached,
            self.roots_moved,
            self.filter_switches,
            self.live_pages,
            self.metadata_bytes,
        ];
        always.into_iter().chain(later).flatten().collect()
    }
}

impl From<MmuCounters> for Mmu {
    fn from(counters: MmuCounters) -> Mmu {
        Mmu {
            built: counters.built,
            zapped: counters.zapped,
            reclaimed: counters.reclaimed,
            splits: counters.splits,
            flushes: counters.flushes,
            attached: Some(counters.attached),
            detached: Some(counters.detached),
            roots_moved: Some(counters.roots_moved),
            filter_switches: Some(counters.filter_switches),
            live_pages: Some(counters.live_pages),
            metadata_bytes: Some(counters.metadata_bytes),
        }
    }
}

/// What the auditor did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Audits {
    /// Looks at what one exit changed.
    pub per_exit: u64,
    /// Looks at everything.
    pub full: u64,
}

/// What the emulator cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EmulatorUse {
    /// Wall-clock seconds from start to report.
    pub seconds: f64,
    /// Peak resident memory in MiB.
    pub peak_memory: f64,
}

#[cfg(test)]
pub(in crate::report) mod tests {
    use umbra_telemetry::{ExitCause, ExitCounts};

    use super::*;

    pub(in crate::report) fn counts(seed: u64) -> ExitCounts {
        ExitCause::ALL.iter().zip(seed..).map(|(&cause, count)| (cause, count * 31)).collect()
    }

    pub(crate) fn statistics() -> Statistics {
        let exits = |counts: &ExitCounts| Some(Exits::from(counts));
        let phase =
            PhaseStats { id: 2, ops: 1024, exits: counts(1), tsc: 5_000_000, ..Default::default() };
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
            without: vec!["cr3".into()],
            filter: Some("present".into()),
            guest_exit: "acpi_off".into(),
            exits: Some(Exits::from(&counts(7))),
            memory_exits: Exits::from(&counts(7)).memory(None),
            kvm: None,
            mmu: Some(Mmu::from(MmuCounters {
                built: 1,
                zapped: 2,
                metadata_bytes: 3,
                ..Default::default()
            })),
            instructions: Some(1 << 40),
            tsc: Some(1 << 40),
            phases: vec![
                Phase::new(&phase, exits(&phase.exits), None, true, true),
                Phase::new(&unnamed, exits(&unnamed.exits), None, true, true),
            ],
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
        for object in [
            &json,
            phase,
            &json["exits"],
            &json["mmu"],
            &json["emulator"],
            &json["audits"],
            &json_of_kvm(),
        ] {
            for key in object.as_object().unwrap().keys() {
                assert!(DOCUMENT.contains(&format!("`{key}`")), "{key} is not documented");
            }
        }
        assert_eq!(json["exits"].as_object().unwrap().len(), ExitCause::ALL.len() + 1);
        assert_eq!(phase["name"], "demand");
        assert_eq!(json["phases"][1]["name"], "phase-99");
    }

    /// A phase under KVM, as JSON.
    fn json_of_kvm() -> serde_json::Value {
        let kvm = Kvm([("exits".into(), 9), ("io_exits".into(), 4)].into_iter().collect());
        let stats = PhaseStats { id: 1, ops: 3, tsc: 5, ..Default::default() };
        serde_json::to_value(Phase::new(&stats, Some(kvm.exits()), Some(kvm), false, true)).unwrap()
    }

    #[test]
    fn what_kvm_does_not_tell_is_null() {
        let phase = json_of_kvm();
        assert_eq!(phase["exits"]["total"], 9);
        assert_eq!(phase["exits"]["io"], 4);
        assert!(phase["exits"]["cr3_write"].is_null() && phase["mmu"].is_null());
        assert_eq!((&phase["memory_exits"], &phase["kvm"]["io_exits"]), (&5.into(), &4.into()));
        let read: Phase = serde_json::from_value(phase.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), phase);
    }

    #[test]
    fn a_result_of_an_older_version_does_not_know_everything() {
        let mut old = serde_json::to_value(statistics()).unwrap();
        let mut renamed = old.clone();
        renamed["without"] = serde_json::json!(["cr3", "quick", "ahead", "another"]);
        let renamed: Statistics = serde_json::from_value(renamed).unwrap();
        assert_eq!(renamed.without, ["cr3", "fast_emulation", "prefetch_tables", "another"]);
        old.as_object_mut().unwrap().remove("without");
        old["mmu"] =
            serde_json::json!({"built": 1, "zapped": 2, "reclaimed": 3, "splits": 4, "flushes": 5});
        let old: Statistics = serde_json::from_value(old).unwrap();
        assert_eq!(
            (old.without.len(), old.mmu.unwrap().flushes, old.mmu.unwrap().live_pages),
            (0, 5, None)
        );
    }

    #[test]
    fn a_run_without_a_report_has_nulls() {
        let silent =
            Statistics { exits: None, mmu: None, tsc: None, instructions: None, ..statistics() };
        let text = serde_json::to_string(&silent).unwrap();
        assert!(text.contains(r#""exits":null"#));
        assert_eq!(serde_json::from_str::<Statistics>(&text).unwrap(), silent);
    }
}
