//! Which phases share an axis: bars of a hundredth of an exit and of a thousand cannot be read on
//! one.

use std::collections::BTreeMap;

use super::chart::{Bar, Colour, Row, SERIES, WORK, short};
use super::groups::ByGroup;
use crate::report::{Named, Phase, Statistics};

/// Rows with a common axis.
#[derive(Debug)]
pub struct Panel {
    /// What they have in common.
    pub title: String,
    /// Of the axis.
    pub unit: String,
    /// The phases.
    pub rows: Vec<Row>,
}

/// The name of a result.
pub fn letter(index: usize) -> char {
    (b'A'..=b'Z').nth(index).map_or('?', char::from)
}

/// The names of all phases: in the order of the first result, then what only later ones have.
pub fn names(results: &[Named]) -> Vec<&str> {
    let mut names = Vec::new();
    for phase in results.iter().flat_map(|result| &result.statistics.phases) {
        if !names.contains(&phase.name.as_str()) {
            names.push(phase.name.as_str());
        }
    }
    names
}

/// What a picture shows.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// In titles and at axes.
    pub unit: &'static str,
    /// Below this per operation, phases share an axis however small they are.
    least: f64,
    of_phase: fn(&Phase) -> Option<Parts>,
    of_run: fn(&Statistics) -> Option<Parts>,
}

/// What a bar is made of.
type Parts = Vec<(u64, Colour)>;

/// Exits by cause.
pub const EXITS: Measure = Measure {
    unit: "exits",
    least: 1.0,
    of_phase: |phase| Some(by_cause(phase.groups()?)),
    of_run: |run| Some(by_cause(run.groups()?)),
};

/// Instructions of guest and hypervisor.
pub const INSTRUCTIONS: Measure = Measure {
    unit: "instructions",
    least: 100.0,
    of_phase: |phase| Some(vec![(phase.instructions?, WORK)]),
    of_run: |run| Some(vec![(run.instructions?, WORK)]),
};

fn by_cause(groups: ByGroup) -> Parts {
    groups.into_iter().zip(SERIES).collect()
}

impl Measure {
    /// The results that have counted it nowhere: their bars are missing.
    pub fn absent<'a>(&self, results: &'a [Named]) -> impl Iterator<Item = usize> + 'a {
        let measure = *self;
        let counted = move |result: &Named| {
            let run = &result.statistics;
            (measure.of_run)(run).is_some()
                || run.phases.iter().any(|phase| (measure.of_phase)(phase).is_some())
        };
        (0..results.len()).filter(move |&index| !counted(&results[index]))
    }

    /// The whole runs, if one of them has counted it.
    pub fn whole_run(&self, results: &[Named]) -> Option<Panel> {
        let row = row("whole run", results, |result| Some(((self.of_run)(&result.statistics)?, 1)));
        let title = format!("{} in the whole run", capital(self.unit));
        (!row.bars.is_empty()).then(|| Panel { title, unit: self.unit.into(), rows: vec![row] })
    }

    /// Phases by the power of ten of what they cost per operation, few first; then phases that
    /// count no operations.
    pub fn panels(&self, results: &[Named]) -> Vec<Panel> {
        let mut by_power: BTreeMap<i32, Vec<Row>> = BTreeMap::new();
        let mut sums = Vec::new();
        let least = self.least.log10().floor() as i32 - 1;
        for name in names(results) {
            let ops = |result: &Named| result.statistics.phase(name).map_or(0, |phase| phase.ops);
            let counts_operations = results.iter().any(|result| ops(result) > 0);
            let row = row(name, results, |result| {
                let phase = result.statistics.phase(name)?;
                // Operations that one result lacks are not the same thing as another's.
                if counts_operations && phase.ops == 0 {
                    return None;
                }
                Some(((self.of_phase)(phase)?, phase.ops.max(1)))
            });
            let longest = row.bars.iter().map(Bar::total).fold(0.0, f64::max);
            if row.bars.is_empty() {
                continue;
            }
            if counts_operations {
                let power =
                    if longest < self.least { least } else { longest.log10().floor() as i32 };
                by_power.entry(power).or_default().push(row);
            } else {
                sums.push(row);
            }
        }
        let unit = format!("{} per operation", self.unit);
        let mut panels: Vec<Panel> = by_power
            .into_iter()
            .map(|(power, rows)| {
                let number = |power| short(10_f64.powi(power));
                let title = match (power == least, self.least) {
                    (true, 1.0) => String::from("Less than one exit per operation"),
                    (true, _) => format!("Less than {} {unit}", short(self.least)),
                    _ => format!("{} to {} {unit}", number(power), number(power + 1)),
                };
                Panel { title, unit: unit.clone(), rows }
            })
            .collect();
        if !sums.is_empty() {
            let title = format!("{} in phases that count no operations", capital(self.unit));
            panels.push(Panel { title, unit: self.unit.into(), rows: sums });
        }
        panels
    }
}

fn capital(word: &str) -> String {
    let mut characters = word.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// The bars of the results that have one.
fn row(name: &str, results: &[Named], of: impl Fn(&Named) -> Option<(Parts, u64)>) -> Row {
    let bar = |(index, result): (usize, &Named)| {
        let (parts, ops) = of(result)?;
        Some(Bar { letter: letter(index), parts, ops })
    };
    Row { name: name.into(), bars: results.iter().enumerate().filter_map(bar).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::groups::tests::{kvm, umbra};
    use super::*;

    fn titles(panels: &[Panel]) -> Vec<&str> {
        panels.iter().map(|panel| panel.title.as_str()).collect()
    }

    #[test]
    fn phases_are_per_operation_and_sorted_by_size() {
        let results = [umbra(), kvm()];
        let panels = EXITS.panels(&results);
        assert_eq!(
            titles(&panels),
            ["1 to 10 exits per operation", "Exits in phases that count no operations"]
        );
        let demand = &panels[0].rows[0];
        assert!((demand.bars[0].total() - 1.01).abs() < 1e-9);
        let boot = &panels[1].rows[0];
        assert!((boot.bars[0].total() - 1000.0).abs() < 1e-9);
        // What was not counted has no bar, and no words either.
        assert_eq!((demand.bars.len(), boot.bars.len()), (1, 1));
        let whole = EXITS.whole_run(&results).unwrap();
        assert_eq!(
            (whole.title.as_str(), whole.rows[0].bars[1].letter),
            ("Exits in the whole run", 'B')
        );
        assert!((whole.rows[0].bars[1].total() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn instructions_are_drawn_where_exits_are_not_counted() {
        let mut bare = umbra();
        bare.statistics.exits = None;
        bare.statistics.instructions = None;
        bare.statistics.phases.iter_mut().for_each(|phase| phase.exits = None);
        let results = [umbra(), bare];
        assert_eq!(EXITS.absent(&results).collect::<Vec<_>>(), [1]);
        assert_eq!(INSTRUCTIONS.absent(&results).count(), 0);
        assert!(
            EXITS
                .panels(&results)
                .iter()
                .flat_map(|panel| &panel.rows)
                .all(|row| row.bars.len() == 1)
        );
        let panels = INSTRUCTIONS.panels(&results);
        assert_eq!(
            titles(&panels),
            [
                "Less than 100 instructions per operation",
                "Instructions in phases that count no operations"
            ]
        );
        let demand = &panels[0].rows[0];
        assert_eq!(demand.bars.iter().map(|bar| bar.letter).collect::<String>(), "AB");
        assert!((demand.bars[1].total() - 9.0).abs() < 1e-9);
        assert_eq!(INSTRUCTIONS.whole_run(&results).unwrap().rows[0].bars.len(), 1);
    }

    #[test]
    fn without_phases_there_is_the_whole_run() {
        let mut result = umbra();
        result.statistics.phases.clear();
        assert!(EXITS.panels(std::slice::from_ref(&result)).is_empty());
        assert!(EXITS.whole_run(&[result]).is_some());
        assert!(EXITS.whole_run(&[]).is_none());
    }
}
