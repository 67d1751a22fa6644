//! Which phases share an axis: bars of a hundredth of an exit and of a thousand cannot be read on one.

use super::chart::{Bar, Row};
use super::groups::ByGroup;
use crate::report::Named;

/// Rows with a common axis.
#[derive(Debug)]
pub struct Panel {
    /// What they have in common.
    pub title: String,
    /// Of the axis.
    pub unit: &'static str,
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

/// The panels: phases by the power of ten of their exits per operation, few first; then phases that count no
/// operations; then the whole runs.
pub fn panels(results: &[Named]) -> Vec<Panel> {
    let mut by_power: Vec<(i32, Row)> = Vec::new();
    let mut sums = Vec::new();
    for name in names(results) {
        let ops = |result: &Named| result.statistics.phase(name).map_or(0, |phase| phase.ops);
        let counts_operations = results.iter().any(|result| ops(result) > 0);
        let row = row(name, results, |result| {
            let phase = result.statistics.phase(name)?;
            // Operations that one result lacks are not the same thing as another's.
            if counts_operations && phase.ops == 0 {
                return None;
            }
            Some((phase.groups()?, phase.ops.max(1)))
        });
        let longest = row.bars.iter().map(Bar::total).fold(0.0, f64::max);
        if counts_operations {
            by_power.push((longest.max(0.1).log10().floor() as i32, row));
        } else {
            sums.push(row);
        }
    }
    let mut powers: Vec<i32> = by_power.iter().map(|(power, _)| *power).collect();
    powers.sort_unstable();
    powers.dedup();
    let mut panels = Vec::new();
    for wanted in powers {
        let title = match wanted {
            ..0 => "Less than one exit per operation".into(),
            power => format!("{} to {} exits per operation", 10_f64.powi(power), 10_f64.powi(power + 1)),
        };
        let (these, others) = by_power.into_iter().partition::<Vec<_>, _>(|(power, _)| *power == wanted);
        by_power = others;
        let rows = these.into_iter().map(|(_, row)| row).collect();
        panels.push(Panel { title, unit: "exits per operation", rows });
    }
    if !sums.is_empty() {
        panels.push(Panel { title: "Phases that count no operations".into(), unit: "exits", rows: sums });
    }
    let whole = row("whole run", results, |result| Some((result.statistics.groups()?, 1)));
    panels.push(Panel { title: "Whole run".into(), unit: "exits", rows: vec![whole] });
    panels
}

fn row(name: &str, results: &[Named], of: impl Fn(&Named) -> Option<(ByGroup, u64)>) -> Row {
    let bar = |(index, result): (usize, &Named)| {
        let (exits, ops) = of(result).unzip();
        Bar { letter: letter(index), exits, ops: ops.unwrap_or(1) }
    };
    Row { name: name.into(), bars: results.iter().enumerate().map(bar).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::groups::tests::{kvm, umbra};
    use super::*;

    #[test]
    fn phases_are_per_operation_and_sorted_by_size() {
        let panels = panels(&[umbra(), kvm()]);
        let titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["1 to 10 exits per operation", "Phases that count no operations", "Whole run"]);
        let demand = &panels[0].rows[0];
        assert!((demand.bars[0].total() - 1.01).abs() < 1e-9);
        assert!(demand.bars[1].exits.is_none());
        let boot = &panels[1].rows[0];
        assert!((boot.bars[0].total() - 1000.0).abs() < 1e-9);
        assert!(boot.bars[1].exits.is_none());
        assert!((panels[2].rows[0].bars[1].total() - 100.0).abs() < 1e-9);
        assert_eq!(boot.bars[1].letter, 'B');
    }

    #[test]
    fn without_phases_there_is_the_whole_run() {
        let mut result = umbra();
        result.statistics.phases.clear();
        assert_eq!(panels(&[result]).len(), 1);
    }
}
