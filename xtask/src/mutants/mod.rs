//! `cargo xtask mutants`: changes the source of the MMU in ways that nobody chose, and counts what
//! no test notices.
//!
//! cargo-mutants names the changes. They are woven into a copy of the tree, all at once, and one
//! build of it has the change whose number its environment names. So a mutant costs no build, only
//! the tests up to the first that notices it. The few that do not compile beside the others are
//! built alone.

mod compile;
mod list;
mod results;
mod run;
mod weave;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::tool::CargoTool;
use crate::woven;
use compile::Mutants;
use list::Mutant;
use results::{Results, Summary, Verdict};
use run::Tests;

/// Change the shadow MMU's source at random, and show which changes no test notices (installs
/// cargo-mutants).
///
/// A fixed sample of the mutants that cargo-mutants makes of crates/mmu, without the auditor and
/// what only prints. Each runs through the MMU's tests; a survivor through the reference machine's,
/// then through random programs of fixed seeds. What is known of a mutant is kept in the target
/// folder, so that the next run goes on.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many mutants the sample has.
    #[arg(long, value_name = "N", default_value_t = 300)]
    sample: usize,
    /// Only what stands in files whose paths have this in them: all mutants there, no sample.
    #[arg(long, value_name = "PART")]
    file: Vec<String>,
    /// Judge those anew that survived when they were judged last.
    #[arg(long)]
    survivors: bool,
    /// Print the mutants and what is known of them, and end.
    #[arg(long)]
    list: bool,
}

/// Runs the mutants.
pub fn run(Arguments { sample, file, survivors, list }: &Arguments) -> Result<ExitCode> {
    let program = CargoTool { name: "cargo-mutants", version: "^26" }.install()?;
    let mut mutants = list::all(&program)?;
    match file.as_slice() {
        [] => mutants = list::sample(mutants, *sample),
        parts => mutants.retain(|mutant| parts.iter().any(|part| mutant.file.contains(part))),
    }
    let copy = woven::Copy::fresh("mutants")?;
    let mut results = Results::read(&copy.folder.join("results.tsv"))?;
    if !list {
        let pending = mutants.iter().filter(|mutant| match results.get(&mutant.name) {
            None => true,
            Some(verdict) => *survivors && *verdict == Verdict::Survives,
        });
        let pending: Mutants = (1..).zip(pending.cloned()).collect();
        judge(&copy, pending, &mut results)?;
    }
    let verdicts =
        mutants.iter().filter_map(|mutant| Some((&*mutant.name, results.get(&mutant.name)?)));
    if *list {
        for Mutant { name, .. } in &mutants {
            println!("{name}\t{}", results.get(name).map(Verdict::to_string).unwrap_or_default());
        }
    }
    let summary = Summary::of(verdicts);
    println!("{summary}");
    Ok(if summary.survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge(copy: &woven::Copy, mut mutants: Mutants, results: &mut Results) -> Result<()> {
    if mutants.is_empty() {
        return Ok(());
    }
    let others = compile::together(copy, &mut mutants)?;
    println!("{} mutants beside each other, {} alone", mutants.len(), others.len());
    let mut tests = Tests::build(copy)?;
    tests.measure(false)?;
    // All pass through the quick tests first: so the likely survivors are known early.
    let mut unnoticed = Vec::new();
    for (number, Mutant { name, .. }) in &mutants {
        match tests.judge(*number, false)? {
            Some((stage, test)) => results.add(name, Verdict::Noticed(stage, test))?,
            None => {
                println!("unnoticed by quick tests\t{name}");
                unnoticed.push((*number, name));
            }
        }
    }
    tests.measure(true)?;
    for (number, name) in unnoticed {
        results.add(name, tests.judge(number, true)?.into())?;
    }
    // They are built where the others were.
    for mutant in others.values() {
        if !compile::alone(copy, mutant)? {
            results.add(&mutant.name, Verdict::DoesNotCompile)?;
            continue;
        }
        let built = Tests::build(copy).with_context(|| mutant.name.clone())?;
        let alone = built.with_limits_of(&tests);
        let noticed = match alone.judge(0, false)? {
            None => alone.judge(0, true)?,
            noticed => noticed,
        };
        results.add(&mutant.name, noticed.into())?;
    }
    Ok(())
}
