//! What a run has met, so that a green test can be asked whether it has looked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::hardware::UnitCounters;

/// What happened in one step and in which state of the machine, as a set of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment(BTreeSet<&'static str>);

impl Moment {
    /// Adds something that happened.
    pub fn note(&mut self, name: &'static str) {
        self.0.insert(name);
    }

    /// Adds all of another one.
    pub fn join(&mut self, other: Moment) {
        self.0.extend(other.0);
    }

    /// A number for this set: the same on every machine and in every build (FNV-1a over the sorted
    /// names).
    pub fn key(&self) -> u64 {
        let bytes = self.0.iter().flat_map(|name| name.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// Counts by name, and the [`Moment`]s that were met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<String, u64>,
    /// By key: the step in which the moment was first met.
    moments: BTreeMap<u64, usize>,
}

impl Coverage {
    /// Counts `name` once.
    pub fn hit(&mut self, name: &str) {
        self.add(name, 1);
    }

    /// Counts `name` `times` times.
    pub fn add(&mut self, name: &str, times: u64) {
        match self.counts.get_mut(name) {
            Some(count) => *count += times,
            None => {
                self.counts.insert(name.to_owned(), times);
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

    /// Counts what happened in a step, and remembers that it happened together.
    pub fn step(&mut self, step: usize, moment: &Moment) {
        moment.0.iter().for_each(|name| self.hit(name));
        self.moments.entry(moment.key()).or_insert(step);
    }

    /// The moments that were met, by [`Moment::key`], with the step that met each first.
    pub fn moments(&self) -> &BTreeMap<u64, usize> {
        &self.moments
    }

    /// Adds another run's counts and moments.
    pub fn merge(&mut self, other: &Coverage) {
        for (name, &times) in &other.counts {
            self.add(name, times);
        }
        for (&key, &step) in &other.moments {
            self.moments.entry(key).or_insert(step);
        }
    }

    /// All names that were counted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.counts.keys().map(String::as_str)
    }

    /// How often `name` was counted.
    pub fn get(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, times) in &self.counts {
            writeln!(f, "{times:>12}  {name}")?;
        }
        write!(f, "{:>12}  different combinations of these in one step", self.moments.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_set() {
        let moment = |names: &[&'static str]| {
            let mut moment = Moment::default();
            names.iter().for_each(|name| moment.note(name));
            moment.key()
        };
        assert_eq!(moment(&["a", "b"]), moment(&["b", "a", "b"]));
        assert_ne!(moment(&["a", "b"]), moment(&["ab"]));
        assert_eq!(moment(&[]), 0xcbf2_9ce4_8422_2325, "the published offset basis");
    }

    #[test]
    fn the_first_step_of_a_moment_is_kept() {
        let mut moment = Moment::default();
        moment.note("x");
        let mut coverage = Coverage::default();
        coverage.step(3, &moment);
        coverage.step(5, &moment);
        assert_eq!(coverage.moments()[&moment.key()], 3);
        assert_eq!(coverage.get("x"), 2);
    }
}
