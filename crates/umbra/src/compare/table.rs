//! The table of a comparison.

use super::{describe, differences};
use crate::console::Table;
use crate::report::{Exits, Mmu, Named, Phase, Range, per_operation, short};

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For a terminal: a table for each measure.
    Plain,
    /// For a terminal: exits for memory, and instructions.
    Short,
    /// One Markdown table: exits for memory, and instructions.
    Markdown,
}

/// Something that is compared: its name, its value for a phase, and how that is written.
struct Measure {
    name: &'static str,
    value: fn(&Phase) -> Option<f64>,
    write: fn(f64) -> String,
}

const MEMORY_EXITS: Measure = Measure {
    name: "memory exits",
    value: |phase| Some(phase.memory_exits? as f64 / operations(phase)),
    write: per_operation,
};

const EXITS: Measure = Measure {
    name: "exits",
    value: |phase| Some(phase.exits.as_ref().map(Exits::total)? as f64 / operations(phase)),
    write: per_operation,
};

const INSTRUCTIONS: Measure = Measure {
    name: "instructions",
    value: |phase| Some(phase.instructions? as f64 / operations(phase)),
    write: short,
};

/// A count of the shadow MMU: its name for people, its key in statistics, and its value.
type MmuCount = (&'static str, &'static str, fn(&Mmu) -> Option<u64>);

/// What the shadow MMU did in a whole run.
pub(super) const MMU: &[MmuCount] = &[
    ("shadow pages built", "built", |mmu| Some(mmu.built)),
    ("shadow pages zapped", "zapped", |mmu| Some(mmu.zapped)),
    ("of these to make room", "reclaimed", |mmu| Some(mmu.reclaimed)),
    ("large pages split", "splits", |mmu| Some(mmu.splits)),
    ("full TLB flushes", "flushes", |mmu| Some(mmu.flushes)),
    ("tables detached", "detached", |mmu| mmu.detached),
    ("tables attached", "attached", |mmu| mmu.attached),
    ("roots moved", "roots_moved", |mmu| mmu.roots_moved),
    ("filter switches", "filter_switches", |mmu| mmu.filter_switches),
    ("shadow pages at the end", "live_pages", |mmu| mmu.live_pages),
    ("bytes of metadata", "metadata_bytes", |mmu| mmu.metadata_bytes),
];

/// What each style shows: a page has less room.
const PLAIN: &[Measure] = &[MEMORY_EXITS, EXITS, INSTRUCTIONS];
const SHORT: &[Measure] = &[MEMORY_EXITS, INSTRUCTIONS];

/// Phases that count no operations, such as `boot`, show their sums.
fn operations(phase: &Phase) -> f64 {
    phase.ops.max(1) as f64
}

/// Compares `results` with the first of them.
///
/// # Panics
/// If there are none.
pub fn table(results: &[Named], style: Style) -> String {
    match style {
        Style::Plain => plain(results, PLAIN) + &spreads(results) + &shadow_mmu(results),
        Style::Short => plain(results, SHORT),
        Style::Markdown => markdown(results),
    }
}

fn plain(results: &[Named], measures: &[Measure]) -> String {
    let mut text = String::new();
    for (index, result) in results.iter().enumerate() {
        let (name, label) = (&result.name, label(result));
        let about = if name.as_str() == label { String::new() } else { format!(" ({label})") };
        text += &format!("{:>4}: {name}{about}\n", head(index));
    }
    for difference in differences(results, head) {
        text += &format!("not equal: {difference}\n");
    }
    for measure in measures {
        let mut table = columns(&format!("{} per operation", measure.name), results.len());
        for name in names(results) {
            let cells = measured(results, name, measure).flat_map(Cell::columns);
            table.row(std::iter::once(name.into()).chain(cells));
        }
        text += &format!("\n{table}");
    }
    text
}

/// As wide as the longest head over names.
const NAMES: u16 = 30;

/// A table whose rows are a value of each result and its ratio to the first.
fn columns(about: &str, results: usize) -> Table {
    let others = (1..results).flat_map(|index| [head(index), "ratio".into()]);
    Table::new(1, [about.into(), head(0)].into_iter().chain(others)).indent(NAMES)
}

/// How far apart repeats were, if one of the results has them.
fn spreads(results: &[Named]) -> String {
    let spread = |result: &Named, name: &str| result.statistics.phase(name)?.spread;
    let names: Vec<&str> = names(results)
        .into_iter()
        .filter(|name| results.iter().any(|result| spread(result, name).is_some()))
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let heads =
        (0..results.len()).flat_map(|index| [format!("{} exits", head(index)), "instr.".into()]);
    let mut table =
        Table::new(1, std::iter::once("max - min, % of the median".into()).chain(heads))
            .indent(NAMES);
    for name in names {
        let percent = |range: Option<Range>| {
            range.map_or(NOTHING.into(), |range| format!("{:.1}", range.width() * 100.0))
        };
        let cells = results.iter().flat_map(|result| {
            let spread = spread(result, name);
            [spread.and_then(|spread| spread.exits), spread.and_then(|spread| spread.instructions)]
        });
        table.row(std::iter::once(name.into()).chain(cells.map(percent)));
    }
    format!("\n{table}")
}

/// What the shadow MMU did, if one of the results has one.
fn shadow_mmu(results: &[Named]) -> String {
    if results.iter().all(|result| result.statistics.mmu.is_none()) {
        return String::new();
    }
    let mut table = columns("shadow MMU in the whole run", results.len());
    for (name, _, count) in MMU {
        let value = |result: &Named| Some(count(result.statistics.mmu.as_ref()?)? as f64);
        let cells = cells(results, value, short).flat_map(Cell::columns);
        table.row(std::iter::once(String::from(*name)).chain(cells));
    }
    format!("\n{table}")
}

fn markdown(results: &[Named]) -> String {
    let unequal = differences(results, |index| label(&results[index]));
    let notes: String =
        unequal.iter().map(|sentence| format!("Not equal: {sentence}.\n\n")).collect();
    let mut text = notes + "| per operation |";
    let mut rule = String::from("|---|");
    for measure in SHORT {
        for result in results {
            text += &format!(" {}: {} |", measure.name, label(result));
            rule += "---:|";
        }
    }
    text += &format!("\n{rule}\n");
    for name in names(results) {
        text += &format!("| {name} |");
        for measure in SHORT {
            for cell in measured(results, name, measure) {
                let ratio = cell.ratio.filter(|ratio| ratio != NOTHING);
                text += &format!(
                    " {}{} |",
                    cell.value,
                    ratio.map_or(String::new(), |ratio| format!(" ({ratio})"))
                );
            }
        }
        text.push('\n');
    }
    text
}

/// What stands where nothing was measured.
const NOTHING: &str = "-";

struct Cell {
    value: String,
    /// To the base, in all but the base's own cell.
    ratio: Option<String>,
}

impl Cell {
    /// For a terminal.
    fn columns(self) -> impl Iterator<Item = String> {
        std::iter::once(self.value).chain(self.ratio)
    }
}

/// A phase's row of one measure.
fn measured<'a>(
    results: &'a [Named],
    name: &'a str,
    measure: &'a Measure,
) -> impl Iterator<Item = Cell> + 'a {
    let value = move |result: &Named| (measure.value)(result.statistics.phase(name)?);
    cells(results, value, measure.write)
}

/// A row: of each result its `value`, and the ratio to the first.
fn cells<'a>(
    results: &'a [Named],
    value: impl Fn(&Named) -> Option<f64> + 'a,
    write: fn(f64) -> String,
) -> impl Iterator<Item = Cell> + 'a {
    let base = value(&results[0]);
    results.iter().enumerate().map(move |(index, result)| {
        let own = value(result);
        let ratio = match (base, own) {
            (Some(base), Some(own)) if base > 0.0 => format!("{:.2}", own / base),
            _ => String::from(NOTHING),
        };
        Cell {
            value: own.map_or(String::from(NOTHING), write),
            ratio: (index > 0).then_some(ratio),
        }
    })
}

/// All phases, in the order in which they first appear.
pub(super) fn names(results: &[Named]) -> Vec<&str> {
    let mut names = Vec::new();
    for phase in results.iter().flat_map(|result| &result.statistics.phases) {
        if !names.contains(&phase.name.as_str()) {
            names.push(phase.name.as_str());
        }
    }
    names
}

/// What a result is called in heads.
pub(super) fn head(index: usize) -> String {
    if index == 0 { String::from("base") } else { format!("[{index}]") }
}

fn label(result: &Named) -> String {
    let statistics = &result.statistics;
    describe(
        &statistics.hypervisor,
        &statistics.guest_faults,
        &statistics.without,
        &statistics.machine,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Spread;
    use crate::report::tests::statistics;

    fn results() -> [Named; 2] {
        let base = statistics();
        let mut other = statistics();
        other.hypervisor = "none".into();
        other.phases.truncate(1);
        let phase = &mut other.phases[0];
        (phase.exits, phase.memory_exits) = (None, None);
        phase.instructions = phase.instructions.map(|count| count / 4);
        [
            Named { name: "a".into(), statistics: base },
            Named { name: "b".into(), statistics: other },
        ]
    }

    #[test]
    fn ratios_are_to_the_first() {
        let text = table(&results(), Style::Plain);
        assert!(
            text.contains("base: a (umbra bypass -cr3, penryn)")
                && text.contains("[1]: b (none, penryn)"),
            "{text}"
        );
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("demand"))
            .map(|line| line.split_whitespace().skip(1).collect())
            .collect();
        assert_eq!(rows.len(), PLAIN.len());
        assert_eq!(rows[0][1..], ["-", "-"]);
        assert_eq!(rows[2], ["4883", "1221", "0.25"]);
        let metadata = text.lines().find(|line| line.starts_with("bytes of metadata")).unwrap();
        assert_eq!(metadata.split_whitespace().nth(3), Some("3"));
        // The second result does not have it.
        assert!(
            text.lines().any(|line| line.starts_with("phase-99") && line.ends_with('-')),
            "{text}"
        );
    }

    #[test]
    fn repeats_are_shown_by_how_far_they_are_apart() {
        let mut results = results();
        assert!(!table(&results, Style::Plain).contains("max - min"));
        let range =
            Range { min: 95, lower_quartile: 96, median: 100, upper_quartile: 104, max: 105 };
        results[0].statistics.phases[0].spread = Some(Spread {
            runs: 5,
            exits: None,
            memory_exits: None,
            instructions: Some(range),
            tsc: range,
        });
        let text = table(&results, Style::Plain);
        let (_, rows) = text.split_once("max - min").unwrap();
        let row: Vec<&str> = rows.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["demand", "-", "10.0", "-", "-"]);
    }

    #[test]
    fn what_is_not_equal_stands_before_the_figures() {
        let mut unequal = results();
        unequal[1].statistics.memory = 64;
        let plain = table(&unequal, Style::Plain);
        let (before, _) = plain.split_once("\n\n").unwrap();
        assert!(
            before.ends_with("not equal: [1]: guest memory is 64 MiB, and 192 MiB in base"),
            "{plain}"
        );
        let markdown = table(&unequal, Style::Markdown);
        assert!(
            markdown.starts_with("Not equal: none, penryn: guest memory is 64 MiB"),
            "{markdown}"
        );
        assert!(!table(&results(), Style::Plain).contains("not equal"));
    }

    #[test]
    fn markdown_is_one_table() {
        let text = table(&results(), Style::Markdown);
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().all(|line| columns(line) == 2 + 2 * SHORT.len()), "{text}");
        assert!(text.contains("| 1221 (0.25) |"), "{text}");
    }
}
