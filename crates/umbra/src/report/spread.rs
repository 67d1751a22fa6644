//! How far apart several runs of the same are.

use serde::{Deserialize, Serialize};

use super::{Exits, Phase};

/// What the repeats of a phase came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spread {
    /// How many runs there were.
    pub runs: u32,
    /// Exits.
    pub exits: Option<Range>,
    /// Exits for memory.
    pub memory_exits: Option<Range>,
    /// Instructions of guest and hypervisor.
    pub instructions: Option<Range>,
    /// Time-stamp counter ticks.
    pub tsc: Range,
}

/// Five of the values in ascending order, each of which was measured: of two in the middle the
/// smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Range {
    /// The least.
    pub min: u64,
    /// A quarter of all is no more.
    pub lower_quartile: u64,
    /// A half is no more.
    pub median: u64,
    /// Three quarters are no more.
    pub upper_quartile: u64,
    /// The most.
    pub max: u64,
}

impl Range {
    /// Of all values; none if there is none.
    fn of(mut values: Vec<u64>) -> Option<Range> {
        values.sort_unstable();
        let last = values.len().checked_sub(1)?;
        let at = |quarters: usize| values[last * quarters / 4];
        Some(Range {
            min: at(0),
            lower_quartile: at(1),
            median: at(2),
            upper_quartile: at(3),
            max: at(4),
        })
    }

    /// Whether it could be one.
    pub fn is_ascending(&self) -> bool {
        [self.min, self.lower_quartile, self.median, self.upper_quartile, self.max].is_sorted()
    }

    /// From the least to the most, as a part of the median.
    pub fn width(&self) -> f64 {
        (self.max - self.min) as f64 / self.median.max(1) as f64
    }
}

impl Spread {
    /// Of several runs of one phase; none of a single one.
    pub fn of(phases: &[&Phase]) -> Option<Spread> {
        if phases.len() < 2 {
            return None;
        }
        // What one of the runs does not know is not known.
        let range = |value: fn(&Phase) -> Option<u64>| {
            Range::of(phases.iter().map(|phase| value(phase)).collect::<Option<Vec<_>>>()?)
        };
        Some(Spread {
            runs: u32::try_from(phases.len()).unwrap_or(u32::MAX),
            exits: range(|phase| phase.exits.as_ref().map(Exits::total)),
            memory_exits: range(|phase| phase.memory_exits),
            instructions: range(|phase| phase.instructions),
            tsc: range(|phase| Some(phase.tsc))?,
        })
    }

    /// All ranges that are known.
    pub fn ranges(&self) -> impl Iterator<Item = Range> {
        [self.exits, self.memory_exits, self.instructions, Some(self.tsc)].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::statistics;

    #[test]
    fn quartiles_are_values_that_were_measured() {
        let five = |values: &[u64]| {
            let range = Range::of(values.to_vec()).unwrap();
            assert!(range.is_ascending());
            [range.min, range.lower_quartile, range.median, range.upper_quartile, range.max]
        };
        assert_eq!(five(&[5, 1, 4, 2, 3]), [1, 2, 3, 4, 5]);
        assert_eq!(five(&[7, 3]), [3, 3, 3, 3, 7]);
        assert_eq!(five(&[9]), [9; 5]);
        assert_eq!(Range::of(Vec::new()), None);
        let range = Range::of(vec![95, 100, 105]).unwrap();
        assert!((range.width() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_single_run_has_no_spread_and_what_one_does_not_know_is_unknown() {
        let phase = statistics().phases[0].clone();
        let silent = Phase { exits: None, instructions: None, ..phase.clone() };
        assert_eq!(Spread::of(&[&phase]), None);
        let spread = Spread::of(&[&phase, &silent, &phase]).unwrap();
        assert_eq!((spread.runs, spread.exits, spread.instructions), (3, None, None));
        assert_eq!(spread.tsc.max, phase.tsc);
        assert_eq!(spread.ranges().count(), 2);
    }
}
