//! Random programs: several forms in a row, with random registers.

use anyhow::Result;
use umbra_cases::random::Random;
use umbra_forms::generate::Entry;
use umbra_forms::{Case, Contents, Form, Mode, Page, Registers, Role, START};

use super::SHOWN_LINES;
use super::measure::{How, Outcome, Runner};
use super::select::describe;

/// Forms in a program, at most.
const LENGTH: u64 = 8;

/// A program: cases of one mode of code and one ring, and a seed for registers, by which it is
/// known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub seed: u32,
    pub cases: Vec<Case>,
}

impl Program {
    /// As the kernel reads it.
    pub fn words(&self) -> impl Iterator<Item = Case> {
        [Case(START), Case(self.seed)].into_iter().chain(self.cases.iter().copied())
    }

    /// The same without one of its cases.
    fn without(&self, index: usize) -> Program {
        let mut cases = self.cases.clone();
        cases.remove(index);
        Program { seed: self.seed, cases }
    }
}

/// What cases of one program have in common: mode of code and ring, CR0.WP and SMAP. In 16-bit code
/// all operands lie in one segment, so they have one kind of memory.
fn setting(table: &[Entry], case: Case) -> (u8, bool, bool, Option<u8>) {
    let mode = table[case.form()].form.mode;
    let kind = case.kind();
    let has = |page| kind.first == page || kind.second == Some(page);
    let place = (mode == Mode::Bits16 || has(Page::UserReadOnly)).then_some(kind.number);
    (mode as u8, case.ring() == umbra_forms::Ring::User, has(Page::ReadOnly), place)
}

/// Whether a form does not depend on what single cases prepare: contents of memory, special
/// registers.
fn is_free(form: &Form) -> bool {
    matches!(form.contents, Contents::Pattern | Contents::Match)
        && matches!(form.registers, Registers::Plain | Registers::Index32)
        && form.role != Role::Frame
}

/// `count` programs of the chosen cases.
pub fn programs(table: &[Entry], cases: &[Case], count: usize, seed: u64) -> Vec<Program> {
    let mut cases: Vec<_> =
        cases.iter().copied().filter(|case| is_free(&table[case.form()].form)).collect();
    cases.sort_by_key(|&case| setting(table, case));
    let settings: Vec<_> =
        cases.chunk_by(|&a, &b| setting(table, a) == setting(table, b)).collect();
    let mut random = Random::new(seed);
    let mut program = |index: usize| {
        let choice = settings[random.index(settings.len())];
        let length = 2 + random.below(LENGTH - 1);
        let cases = (0..length).map(|_| choice[random.index(choice.len())]).collect();
        Program { seed: seed as u32 ^ index as u32, cases }
    };
    if settings.is_empty() { Vec::new() } else { (0..count).map(&mut program).collect() }
}

/// Runs programs bare and under Umbra, makes those short that differ, and prints them. Whether none
/// differs.
///
/// # Errors
/// The kernel did not start.
pub fn run(
    runner: &Runner<'_>,
    programs: &[Program],
    bare: &How<'_>,
    how: &How<'_>,
    show: usize,
) -> Result<bool> {
    let different = different(runner, programs, bare, how)?;
    println!("{}: {} programs, {} different", how.name(), programs.len(), different.len());
    for program in different.iter().take(show) {
        let short = shorten(runner, program, bare, how)?;
        println!("program {:#x}:", short.seed);
        for &case in &short.cases {
            println!("  {}", describe(runner.table, case));
        }
        let (right, found) =
            (runner.program_words(&short, bare)?, runner.program_words(&short, how)?);
        for line in right.iter().filter(|line| !found.contains(line)).take(SHOWN_LINES) {
            println!("    bare  {line}");
        }
        for line in found.iter().filter(|line| !right.contains(line)).take(SHOWN_LINES) {
            println!("    umbra {line}");
        }
    }
    Ok(different.is_empty())
}

/// Those that the bare machine ran, and that did something else under Umbra.
fn different(
    runner: &Runner<'_>,
    programs: &[Program],
    bare: &How<'_>,
    how: &How<'_>,
) -> Result<Vec<Program>> {
    let (right, found) = (runner.programs(programs, bare)?, runner.programs(programs, how)?);
    let outcomes = right.iter().zip(&found).zip(programs);
    let differ = outcomes.filter(|((right, found), _)| {
        matches!(right, Some(Outcome::Hash(_))) && found.is_some() && right != found
    });
    Ok(differ.map(|(_, program)| program.clone()).collect())
}

/// The shortest program that still differs, leaving out one case after the other.
fn shorten(
    runner: &Runner<'_>,
    program: &Program,
    bare: &How<'_>,
    how: &How<'_>,
) -> Result<Program> {
    let mut best = program.clone();
    while best.cases.len() > 1 {
        let shorter: Vec<_> = (0..best.cases.len()).map(|index| best.without(index)).collect();
        match different(runner, &shorter, bare, how)?.into_iter().next() {
            Some(program) => best = program,
            None => break,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use umbra_forms::generate;

    use super::*;
    use crate::forms::select::Selection;

    #[test]
    fn programs_repeat_by_seed_and_have_one_setting() {
        let table = generate::table();
        let cases = Selection::all().cases(&table);
        let programs = programs(&table, &cases, 200, 7);
        assert_eq!(programs.len(), 200);
        assert_eq!(programs, super::programs(&table, &cases, 200, 7));
        for program in &programs {
            let first = setting(&table, program.cases[0]);
            assert!(program.cases.iter().all(|&case| setting(&table, case) == first));
            assert_eq!(program.without(0).cases.len() + 1, program.cases.len());
        }
    }
}
