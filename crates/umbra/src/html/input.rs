//! Reads results, as far as a page shows them: SCHEMA.md, with null for every count that the hypervisor does not tell.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use umbra_telemetry::ExitCause;

use super::groups::{ByGroup, GROUPS, group_of};
use crate::compare::describe;
use crate::error::Error;
use crate::report::{self, AGAIN, Mmu};

/// More exits than this nobody has counted: sums of them stay within 64 bits.
const MAX_EXITS: u64 = 1 << 60;

/// A result.
#[derive(Clone, Debug, Deserialize)]
pub struct Measured {
    /// What the user calls the file.
    #[serde(skip)]
    pub file: String,
    /// Of the tool that wrote it.
    pub version: String,
    /// `umbra`, `kvm` or `none`.
    pub hypervisor: String,
    /// As in `--machine`.
    pub machine: String,
    /// The kernel's own version text.
    pub kernel: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// In MiB.
    pub memory: u64,
    /// `bypass`, `present`, `user` or `trap`.
    pub guest_faults: String,
    /// What was switched off.
    #[serde(default)]
    pub without: Vec<String>,
    /// The page-fault filter at the end.
    pub filter: Option<String>,
    /// How the guest ended.
    pub guest_exit: String,
    /// Exits of the whole run.
    exits: Option<Exits>,
    /// KVM's own counters, by its names.
    kvm: Option<BTreeMap<String, u64>>,
    /// What the shadow MMU did.
    pub mmu: Option<Mmu>,
    /// From guest entry to the end.
    pub instructions: Option<u64>,
    /// In the order of their first start.
    pub phases: Vec<Phase>,
    /// What the emulator cost.
    pub emulator: Option<Emulator>,
}

/// A phase of a result.
#[derive(Clone, Debug, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Operations; 0 if the guest did not say.
    pub ops: u64,
    exits: Option<Exits>,
    kvm: Option<BTreeMap<String, u64>>,
    /// Of guest and hypervisor.
    pub instructions: Option<u64>,
}

/// What the emulator cost on the host.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Emulator {
    /// Wall-clock time.
    pub seconds: f64,
    /// In MiB.
    pub peak_memory: f64,
}

/// By cause, with `total`.
type Exits = BTreeMap<String, Option<u64>>;

const TOTAL: &str = "total";

impl Measured {
    /// The exits of the whole run by group, if they were counted.
    pub fn groups(&self) -> Option<ByGroup> {
        groups(self.exits.as_ref(), self.kvm.as_ref())
    }

    /// The exits of one cause in the whole run, if they were counted.
    pub fn cause(&self, cause: ExitCause) -> Option<u64> {
        *self.exits.as_ref()?.get(cause.name())?
    }

    /// All exits of the run.
    pub fn total(&self) -> Option<u64> {
        *self.exits.as_ref()?.get(TOTAL)?
    }

    /// The phase of this name.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    /// What was measured, in few words.
    pub fn label(&self) -> String {
        match self.hypervisor.as_str() {
            "none" => format!("no hypervisor, {}", self.machine),
            other => describe(other, &self.guest_faults, &self.without, &self.machine),
        }
    }
}

impl Phase {
    /// Its exits by group, if they were counted.
    pub fn groups(&self) -> Option<ByGroup> {
        groups(self.exits.as_ref(), self.kvm.as_ref())
    }

    /// The exits of a group, if the hypervisor tells them.
    pub fn group(&self, index: usize) -> Option<u64> {
        let exits = self.exits.as_ref()?;
        let is_told = match &self.kvm {
            Some(_) => !GROUPS[index].kvm.is_empty(),
            None => exits.iter().any(|(name, count)| {
                count.is_some() && ExitCause::from_name(name).is_some_and(|cause| group_of(cause) == index)
            }),
        };
        // The last one has all that is not told.
        (is_told || index == GROUPS.len() - 1).then_some(self.groups()?[index])
    }
}

/// What is missing from the sum to the total is in the last group: the hypervisor did not tell it apart. KVM's counters
/// are no partition, so they may also be more.
fn groups(exits: Option<&Exits>, kvm: Option<&BTreeMap<String, u64>>) -> Option<ByGroup> {
    let exits = exits?;
    let total = (*exits.get(TOTAL)?)?;
    let mut groups: ByGroup = std::array::from_fn(|_| 0);
    for (name, count) in exits {
        if let (Some(cause), Some(count)) = (ExitCause::from_name(name), *count) {
            groups[group_of(cause)] += count;
        }
    }
    if let Some(kvm) = kvm {
        for (group, count) in GROUPS.iter().zip(&mut groups).filter(|(group, _)| !group.kvm.is_empty()) {
            let counters = group.kvm.iter().filter_map(|name| kvm.get(*name));
            // None of them can be more than all.
            *count = counters.fold(0, |sum: u64, n| sum.saturating_add(*n)).min(total);
        }
    }
    let known = groups.iter().fold(0_u64, |sum, &count| sum.saturating_add(count));
    groups[GROUPS.len() - 1] += total.saturating_sub(known);
    Some(groups)
}

/// Reads a result.
///
/// # Errors
/// One sentence: the file cannot be read, is cut off, is something else, or of another version.
pub fn read(path: &Path) -> Result<Measured, Error> {
    let measured = report::read(path, parse)?;
    Ok(Measured { file: path.display().to_string(), ..measured })
}

/// Why the text is no result, as the end of a sentence that starts with its name.
fn parse(text: &[u8]) -> Result<Measured, String> {
    let measured: Measured = report::from_json(text)?;
    let all = measured.phases.iter().map(|phase| &phase.exits).chain([&measured.exits]);
    if all.flatten().any(|exits| !adds_up(exits)) {
        return Err(format!("is a damaged result (its exits do not add up to their total); {AGAIN}"));
    }
    Ok(measured)
}

/// Whether the causes are the total, or not more if some are null, and the total is not absurd.
fn adds_up(exits: &Exits) -> bool {
    let causes = || exits.iter().filter(|(name, _)| *name != TOTAL).map(|(_, count)| count);
    let sum = causes().flatten().try_fold(0_u64, |sum, &count| sum.checked_add(count));
    match (sum, exits.get(TOTAL)) {
        (_, Some(&Some(total))) if total > MAX_EXITS => false,
        (Some(sum), Some(Some(total))) if causes().all(Option::is_some) => sum == *total,
        (Some(sum), Some(Some(total))) => sum <= *total,
        // Nothing is known.
        (Some(sum), Some(None)) => sum == 0,
        _ => false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn result(exits: Value) -> Value {
        json!({
            "schema": 1, "version": "0.1.0", "hypervisor": "umbra", "machine": "penryn", "kernel": "6.1 <x>",
            "cmdline": "console=ttyS0 \"a&b\"", "memory": 192, "guest_faults": "bypass", "filter": "present",
            "guest_exit": "acpi_off", "exits": exits, "mmu": null, "instructions": 5000, "tsc": 5000,
            "phases": [
                {"id": 0, "name": "boot", "ops": 0, "exits": {"cpuid": 700, "io": 300, "total": 1000},
                 "instructions": 4000, "tsc": 4000, "mmu": null},
                {"id": 2, "name": "demand", "ops": 100, "exits": {"host_fault_install": 101, "total": 101},
                 "instructions": 900, "tsc": 900, "mmu": null},
            ],
            "emulator": {"seconds": 1.5, "peak_memory": 200.25}, "a key of tomorrow": 3,
        })
    }

    /// A result of Umbra.
    pub(in crate::html) fn umbra() -> Measured {
        let text =
            result(json!({"cpuid": 700, "io": 300, "host_fault_install": 101, "total": 1101})).to_string();
        Measured { file: "a.json".into(), ..parse(text.as_bytes()).unwrap() }
    }

    /// A result of KVM, which cannot tell all causes apart.
    pub(in crate::html) fn kvm() -> Measured {
        let mut json = result(json!({"io": 30, "cr3_write": null, "total": 100}));
        json["hypervisor"] = "kvm".into();
        json["kvm"] = json!({"pf_guest": 20, "pf_fixed": 5, "exits": 100, "io_exits": 30});
        json["phases"] =
            json!([{"id": 2, "name": "demand", "ops": 100, "exits": null, "instructions": null}]);
        Measured { file: "b.json".into(), ..parse(json.to_string().as_bytes()).unwrap() }
    }

    #[test]
    fn groups_add_up_to_the_total() {
        let groups = umbra().groups().unwrap();
        assert_eq!(groups.iter().sum::<u64>(), 1101);
        assert_eq!(groups[group_of(ExitCause::HostFaultInstall)], 101);
        let groups = kvm().groups().unwrap();
        assert_eq!(groups[group_of(ExitCause::GuestFaultNotPresentUser)], 20);
        assert_eq!(groups[group_of(ExitCause::Cr3Write)], 0);
        assert_eq!((groups[GROUPS.len() - 1], groups.iter().sum::<u64>()), (45, 100));
        assert_eq!(kvm().phase("demand").unwrap().groups(), None);
        let phase =
            Phase { name: "demand".into(), ops: 1, exits: kvm().exits, kvm: kvm().kvm, instructions: None };
        assert_eq!(phase.group(group_of(ExitCause::Cr3Write)), None);
        assert_eq!(phase.group(group_of(ExitCause::HostFaultTableWrite)), Some(0));
        assert_eq!(phase.group(GROUPS.len() - 1), Some(45));
        assert_eq!((kvm().cause(ExitCause::Cr3Write), kvm().cause(ExitCause::Io)), (None, Some(30)));
    }

    #[test]
    fn absurd_counters_are_no_overflow() {
        let mut absurd = kvm();
        for name in ["pf_guest", "pf_fixed", "pf_emulate", "irq_exits", "halt_exits"] {
            absurd.kvm.as_mut().unwrap().insert(name.into(), u64::MAX);
        }
        let groups = absurd.groups().unwrap();
        assert!(groups.iter().all(|&count| count <= 100) && groups[0] == 100);
    }

    #[test]
    fn every_beginning_of_a_result_is_refused() {
        let text = serde_json::to_vec_pretty(&result(json!({"io": 3, "total": 3}))).unwrap();
        assert!(parse(&text).is_ok());
        for length in 0..text.len() - 1 {
            let sentence = parse(&text[..length]).unwrap_err();
            assert!(sentence.contains("ends in the middle") && !sentence.contains('\n'), "{sentence}");
        }
    }

    #[test]
    fn other_files_are_named_for_what_they_are() {
        let change = |key: &str, value: Value| {
            let mut json = result(Value::Null);
            json[key] = value;
            parse(json.to_string().as_bytes()).unwrap_err()
        };
        assert!(change("schema", 2.into()).contains("schema 2"));
        assert!(change("schema", "1".into()).contains("no result"));
        assert!(change("memory", "much".into()).contains("damaged"));
        assert!(change("exits", json!({"io": 3, "total": 4})).contains("add up"));
        assert!(change("exits", json!({"io": 5, "cr4": null, "total": 4})).contains("add up"));
        assert!(change("exits", json!({"io": u64::MAX, "hlt": 1, "total": 0})).contains("add up"));
        assert!(change("exits", json!({"io": 3})).contains("add up"));
        assert!(change("exits", json!({"io": u64::MAX, "total": u64::MAX})).contains("add up"));
        assert!(parse(b"{}").unwrap_err().contains("no result"));
        assert!(parse(b"\x1f\x8b").unwrap_err().contains("is not JSON"));
    }
}
