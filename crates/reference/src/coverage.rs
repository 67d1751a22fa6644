//! What a run has met, so that a green test can be asked whether it has looked.

use std::collections::BTreeMap;
use std::fmt;

use crate::hardware::UnitCounters;

/// Counts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    /// Counts `name` once.
    pub fn hit(&mut self, name: &str) {
        self.add(name, 1);
    }

    /// Counts `name` `times` times.
    pub fn add(&mut self, name: &str, times: u64) {
        match self.0.get_mut(name) {
            Some(count) => *count += times,
            None => {
                self.0.insert(name.to_owned(), times);
            }
        }
    }

    /// Adds the counters of a paging unit.
    pub fn unit(&mut self, side: &str, counters: UnitCounters) {
        let UnitCounters { from_translation, from_structure, from_root, stale } = counters;
        self.add(&format!("{side}: accesses from the TLB"), from_translation);
        self.add(&format!("{side}: walks from a structure cache"), from_structure);
        self.add(&format!("{side}: walks from the root"), from_root);
        self.add(&format!("{side}: stale outcomes"), stale);
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Coverage) {
        for (name, &times) in &other.0 {
            self.add(name, times);
        }
    }

    /// How often `name` was counted.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, times) in &self.0 {
            writeln!(f, "{times:>12}  {name}")?;
        }
        Ok(())
    }
}
