//! The exit table as `umbra run --stats` writes it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// One run's table.
pub struct Stats(Value);

impl Stats {
    /// Reads it.
    pub fn read(path: &Path) -> Result<Stats> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Stats(serde_json::from_str(&text).with_context(|| path.display().to_string())?))
    }

    /// The exits of one cause, or in `total`.
    pub fn exits(&self, cause: &str) -> Result<u64> {
        self.0["exits"][cause]
            .as_u64()
            .with_context(|| format!("the statistics have no exits.{cause}"))
    }

    /// The exits that memory work costs, in the whole run: page faults (MMIO excepted),
    /// invalidations and writes or reads of control registers. What timers and devices cost is not
    /// among them.
    pub fn memory_exits(&self) -> Result<u64> {
        memory_exits(&self.0["exits"])
    }

    /// The same in one phase.
    pub fn phase_memory_exits(&self, name: &str) -> Result<u64> {
        memory_exits(&self.phase(name)?["exits"]).with_context(|| format!("phase {name}"))
    }

    /// What the shadow MMU counted under this name, in the whole run.
    pub fn mmu(&self, counter: &str) -> Result<u64> {
        self.0["mmu"][counter]
            .as_u64()
            .with_context(|| format!("the statistics have no mmu.{counter}"))
    }

    /// Every exit has exactly one cause, in the whole run and in each phase; no phase has more than
    /// the run.
    pub fn check_partition(&self) -> Result<()> {
        let all = partition(&self.0["exits"]).context("exits")?;
        for phase in self.phases()? {
            let total = partition(&phase["exits"])
                .with_context(|| format!("exits of phase {}", phase["name"]))?;
            ensure!(total <= all, "phase {} has {total} exits, the whole run {all}", phase["name"]);
        }
        Ok(())
    }

    /// A field that must be this text.
    pub fn expect(&self, field: &str, expected: &str) -> Result<()> {
        let found = &self.0[field];
        ensure!(found == expected, "the statistics say {field}: {found} instead of {expected}");
        Ok(())
    }

    /// The operations of a phase.
    pub fn phase_ops(&self, name: &str) -> Result<u64> {
        self.phase(name)?["ops"].as_u64().with_context(|| format!("phase {name} has no operations"))
    }

    fn phase(&self, name: &str) -> Result<&Value> {
        let phase = self.phases()?.iter().find(|phase| phase["name"] == name);
        phase.with_context(|| format!("the statistics lack phase {name}"))
    }

    fn phases(&self) -> Result<&[Value]> {
        self.0["phases"].as_array().map(Vec::as_slice).context("the statistics have no phases")
    }
}

/// Whether exits of this cause are due to memory work.
fn is_memory(cause: &str) -> bool {
    let fault = cause.starts_with("guest_fault_") || cause.starts_with("host_fault_");
    fault && cause != "host_fault_mmio"
        || matches!(cause, "invlpg" | "cr0" | "cr3_read" | "cr3_write" | "cr4")
}

fn memory_exits(exits: &Value) -> Result<u64> {
    let exits = exits.as_object().context("no table of exits")?;
    let counts = exits.iter().filter(|(cause, _)| is_memory(cause));
    counts
        .map(|(cause, count)| count.as_u64().with_context(|| format!("no count of {cause}")))
        .sum()
}

/// Checks that the causes add up to `total` and returns it.
fn partition(exits: &Value) -> Result<u64> {
    let exits = exits.as_object().context("not a table")?;
    let count = |name: &str| {
        exits.get(name).and_then(Value::as_u64).with_context(|| format!("no count of {name}"))
    };
    let total = count("total")?;
    let mut sum = 0;
    for cause in exits.keys().filter(|&cause| cause != "total") {
        sum += count(cause)?;
    }
    ensure!(sum == total, "the causes add up to {sum}, total is {total}");
    Ok(total)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stats(total: u64) -> Stats {
        Stats(json!({
            "machine": "penryn",
            "exits": { "io": 5, "hlt": 2, "total": total },
            "phases": [{ "id": 2, "name": "demand", "ops": 102, "exits": { "io": 3, "hlt": 0, "total": 3 } }],
        }))
    }

    #[test]
    fn causes_must_add_up() {
        stats(7).check_partition().unwrap();
        assert!(stats(8).check_partition().is_err());
    }

    #[test]
    fn timers_and_devices_are_no_memory_work() {
        let exits = json!({
            "guest_fault_reserved": 1, "host_fault_mmio": 2, "host_fault_link": 4, "invlpg": 8, "cr3_read": 16,
            "cr4": 32, "io": 64, "interrupt": 128, "hlt": 256, "total": 511,
        });
        let phases = json!([{ "id": 2, "name": "demand", "ops": 1, "exits": { "cr0": 3, "io": 5, "total": 8 } }]);
        let stats = Stats(json!({ "exits": exits, "mmu": { "reclaimed": 7 }, "phases": phases }));
        assert_eq!(stats.memory_exits().unwrap(), 1 + 4 + 8 + 16 + 32);
        assert_eq!(stats.phase_memory_exits("demand").unwrap(), 3);
        assert!(stats.phase_memory_exits("pipe").is_err());
        assert_eq!(stats.mmu("reclaimed").unwrap(), 7);
        assert!(stats.mmu("built").is_err());
    }

    #[test]
    fn what_is_missing_is_an_error() {
        let stats = stats(7);
        assert_eq!(stats.exits("io").unwrap(), 5);
        assert!(stats.exits("cpuid").is_err());
        assert_eq!(stats.phase_ops("demand").unwrap(), 102);
        assert!(stats.phase_ops("boot").is_err());
        stats.expect("machine", "penryn").unwrap();
        assert!(stats.expect("machine", "skylake").is_err());
    }
}
