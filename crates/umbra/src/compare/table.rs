//! The table of a comparison.

use super::{describe, differences};
use crate::report::{Exits, Mmu, Named, Phase, per_operation, short};

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

type MmuValue = fn(&Mmu) -> Option<u64>;

/// What the shadow MMU did in a whole run.
const MMU: &[(&str, MmuValue)] = &[
    ("shadow pages built", |mmu| Some(mmu.built)),
    ("shadow pages zapped", |mmu| Some(mmu.zapped)),
    ("of these to make room", |mmu| Some(mmu.reclaimed)),
    ("large pages split", |mmu| Some(mmu.splits)),
    ("full TLB flushes", |mmu| Some(mmu.flushes)),
    ("tables detached", |mmu| mmu.detached),
    ("tables attached", |mmu| mmu.attached),
    ("roots moved", |mmu| mmu.roots_moved),
    ("filter switches", |mmu| mmu.filter_switches),
    ("shadow pages at the end", |mmu| mmu.live_pages),
    ("bytes of metadata", |mmu| mmu.metadata_bytes),
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
        Style::Plain => plain(results, PLAIN) + &shadow_mmu(results),
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
        text += &format!("\n{:<32}{:>11}", format!("{} per operation", measure.name), head(0));
        for index in 1..results.len() {
            text += &format!("{:>11}{:>8}", head(index), "ratio");
        }
        for name in names(results) {
            text += &format!("\n{name:<32}");
            for cell in measured(results, name, measure) {
                text += &cell.columns();
            }
        }
        text.push('\n');
    }
    text
}

/// What the shadow MMU did, if one of the results has one.
fn shadow_mmu(results: &[Named]) -> String {
    if results.iter().all(|result| result.statistics.mmu.is_none()) {
        return String::new();
    }
    let mut text = format!("\n{:<32}{:>11}", "shadow MMU in the whole run", head(0));
    (1..results.len()).for_each(|index| text += &format!("{:>11}{:>8}", head(index), "ratio"));
    for (name, count) in MMU {
        text += &format!("\n{name:<32}");
        let value = |result: &Named| Some(count(result.statistics.mmu.as_ref()?)? as f64);
        for cell in cells(results, value, short) {
            text += &cell.columns();
        }
    }
    text.push('\n');
    text
}

fn markdown(results: &[Named]) -> String {
    let unequal = differences(results, |index| label(&results[index]));
    let notes: String = unequal.iter().map(|sentence| format!("Not equal: {sentence}.\n\n")).collect();
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
    fn columns(&self) -> String {
        let ratio = self.ratio.as_ref().map_or(String::new(), |ratio| format!("{ratio:>8}"));
        format!("{:>11}{ratio}", self.value)
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
        Cell { value: own.map_or(String::from(NOTHING), write), ratio: (index > 0).then_some(ratio) }
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

fn head(index: usize) -> String {
    if index == 0 { String::from("base") } else { format!("[{index}]") }
}

fn label(result: &Named) -> String {
    let statistics = &result.statistics;
    describe(&statistics.hypervisor, &statistics.guest_faults, &statistics.without, &statistics.machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::statistics;

    fn results() -> [Named; 2] {
        let base = statistics();
        let mut other = statistics();
        other.hypervisor = "none".into();
        other.phases.truncate(1);
        let phase = &mut other.phases[0];
        (phase.exits, phase.memory_exits) = (None, None);
        phase.instructions = phase.instructions.map(|count| count / 4);
        [Named { name: "a".into(), statistics: base }, Named { name: "b".into(), statistics: other }]
    }

    #[test]
    fn ratios_are_to_the_first() {
        let text = table(&results(), Style::Plain);
        assert!(
            text.contains("base: a (umbra bypass -cr3, penryn)") && text.contains("[1]: b (none, penryn)"),
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
        assert!(text.contains("bytes of metadata                         3"), "{text}");
        // The second result does not have it.
        assert!(text.lines().any(|line| line.starts_with("phase-99") && line.ends_with('-')), "{text}");
    }

    #[test]
    fn what_is_not_equal_stands_before_the_figures() {
        let mut unequal = results();
        unequal[1].statistics.memory = 64;
        let plain = table(&unequal, Style::Plain);
        let (before, _) = plain.split_once("\n\n").unwrap();
        assert!(before.ends_with("not equal: [1]: guest memory is 64 MiB, and 192 MiB in base"), "{plain}");
        let markdown = table(&unequal, Style::Markdown);
        assert!(markdown.starts_with("Not equal: none, penryn: guest memory is 64 MiB"), "{markdown}");
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
