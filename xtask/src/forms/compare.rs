//! Bare machine and Umbra beside each other.

use std::collections::BTreeMap;
use std::fmt::Write;

use umbra_forms::generate::{self, Entry};
use umbra_forms::{Case, Kind};

use super::exceptions::Exceptions;
use super::measure::{How, Measurements, Outcome};
use super::select::{MODES, describe};

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Equal,
    /// Both ran, and differ.
    Different,
    /// It ended the guest under Umbra.
    Ended,
    /// It was left out, as one like it ended the guest.
    NotRun,
    /// It may differ, and does.
    Excepted,
}

/// All cases that the bare machine could judge.
pub struct Comparison<'a> {
    table: &'a [Entry],
    verdicts: BTreeMap<Case, Verdict>,
    reasons: BTreeMap<Case, &'a str>,
}

impl<'a> Comparison<'a> {
    /// Compares.
    pub fn new(
        table: &'a [Entry],
        exceptions: &Exceptions,
        how: &How<'_>,
        judge: &Measurements,
        found: &'a Measurements,
    ) -> Comparison<'a> {
        let mut reasons = BTreeMap::new();
        let judged = judge.iter().filter(|(_, right)| matches!(right, Outcome::Hash(_)));
        let verdicts = judged.map(|(&case, right)| {
            let excepted = exceptions.has(how, &table[case.form()], case);
            let verdict = match found.get(&case) {
                Some(found) if found == right => Verdict::Equal,
                _ if excepted => Verdict::Excepted,
                Some(Outcome::Hash(_)) => Verdict::Different,
                Some(Outcome::Ended(reason)) => {
                    reasons.insert(case, reason.as_str());
                    Verdict::Ended
                }
                None => Verdict::NotRun,
            };
            (case, verdict)
        });
        let verdicts = verdicts.collect();
        Comparison { table, verdicts, reasons }
    }

    /// Whether nothing differs that may not.
    pub fn agrees(&self) -> bool {
        self.verdicts.values().all(|verdict| matches!(verdict, Verdict::Equal | Verdict::Excepted))
    }

    /// The first cases that differ: of each instruction and kind of memory one.
    pub fn different(&self, count: usize) -> Vec<Case> {
        let mut groups = BTreeMap::new();
        for (&case, verdict) in &self.verdicts {
            if *verdict == Verdict::Different {
                let mnemonic = self.table[case.form()].mnemonic() as u32;
                groups.entry((mnemonic, case.kind().number)).or_insert(case);
            }
        }
        let mut cases: Vec<_> = groups.into_values().collect();
        cases.sort();
        cases.truncate(count);
        cases
    }

    /// Sums by mode of code and kind of memory.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:4} {:10} {:>7} {:>7} {:>9} {:>6} {:>7} {:>8}\n",
            "code", "operand", "cases", "equal", "different", "ended", "not run", "excepted"
        );
        for mode in MODES {
            for kind in &Kind::ALL {
                let here = self.verdicts.iter().filter(|(case, _)| {
                    self.table[case.form()].form.mode == mode && case.kind().number == kind.number
                });
                let mut sums: BTreeMap<&Verdict, u32> = BTreeMap::new();
                here.for_each(|(_, verdict)| *sums.entry(verdict).or_default() += 1);
                let sum = |verdict| sums.get(&verdict).copied().unwrap_or(0);
                let total: u32 = sums.values().sum();
                if total > 0 {
                    let bits = generate::bits(mode);
                    let _ = writeln!(
                        text,
                        "{bits:4} {:10} {total:7} {:7} {:9} {:6} {:7} {:8}",
                        kind.name,
                        sum(Verdict::Equal),
                        sum(Verdict::Different),
                        sum(Verdict::Ended),
                        sum(Verdict::NotRun),
                        sum(Verdict::Excepted)
                    );
                }
            }
        }
        text
    }

    /// All cases that are not equal.
    pub fn list(&self) -> String {
        let mut text = String::new();
        for (&case, verdict) in
            self.verdicts.iter().filter(|(_, verdict)| **verdict != Verdict::Equal)
        {
            let reason = self.reasons.get(&case).copied().unwrap_or_default();
            let _ = writeln!(text, "{verdict:?} {} {reason}", describe(self.table, case));
        }
        text
    }
}
