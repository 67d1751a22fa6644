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

use std::collections::BTreeSet;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};
use std::thread;

use anyhow::{Context, Result};
use umbra::number::whole;

use crate::tool::CargoTool;
use crate::{paths, woven};
use compile::Mutants;
use list::Mutant;
use results::{Results, Summary, Verdict};
use run::Tests;

/// Change the MMU at random, and show what no test notices.
///
/// It installs cargo-mutants.
///
/// A fixed sample of the mutants that cargo-mutants makes of crates/mmu, without the auditor and
/// what only prints. Each runs through the MMU's tests; a survivor through the reference machine's,
/// then through random programs of fixed seeds. What is known of a mutant is kept in the target
/// folder, so that the next run goes on.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many mutants the sample has.
    #[arg(
        long,
        value_name = "N",
        default_value = "300",
        value_parser = whole::<usize>(1..=1_000_000),
        allow_negative_numbers = true
    )]
    sample: usize,
    /// Beside the sample all mutants in files whose paths have this in them.
    #[arg(long, value_name = "PART")]
    file: Vec<String>,
    /// Judge those anew that survived when they were judged last.
    #[arg(long)]
    survivors: bool,
    /// Only the tests that take seconds: what they do not notice stays open.
    #[arg(long)]
    quick: bool,
    /// Print the mutants and what is known of them, and end.
    #[arg(long)]
    list: bool,
}

/// Runs the mutants.
pub fn run(Arguments { sample, file, survivors, quick, list }: &Arguments) -> Result<ExitCode> {
    let program = CargoTool { name: "cargo-mutants", version: "^26" }.install()?;
    let mutants = list::all(&program)?;
    let named = |mutant: &&Mutant| file.iter().any(|part| mutant.file.contains(part));
    let also: Vec<Mutant> = mutants.iter().filter(named).cloned().collect();
    let mut mutants = list::sample(mutants, *sample);
    let known: BTreeSet<String> = mutants.iter().map(|mutant| mutant.name.clone()).collect();
    mutants.extend(also.into_iter().filter(|mutant| !known.contains(&mutant.name)));
    let mut results = Results::read(&paths::target_dir()?.join(FOLDER).join("results.tsv"))?;
    if !list {
        let pending = mutants.iter().filter(|mutant| match results.get(&mutant.name) {
            None => true,
            Some(verdict) => *survivors && *verdict == Verdict::Survives,
        });
        let pending: Mutants = (1..).zip(pending.cloned()).collect();
        judge(pending, *quick, &mut results)?;
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

/// In the target folder.
const FOLDER: &str = "mutants";
const UNNOTICED: &str = "unnoticed by quick tests\t";

fn judge(mut mutants: Mutants, quick: bool, results: &mut Results) -> Result<()> {
    if mutants.is_empty() {
        return Ok(());
    }
    let copy = &woven::Copy::fresh(FOLDER)?;
    let others = compile::together(copy, &mut mutants)?;
    println!("{} mutants beside each other, {} alone", mutants.len(), others.len());
    let mut alone = Vec::new();
    for mutant in others.values() {
        match compile::alone(copy, mutant)? {
            true => alone.push(mutant),
            false => results.add(&mutant.name, Verdict::DoesNotCompile)?,
        }
    }
    // Each of these was written over the others.
    compile::together(copy, &mut mutants)?;
    let mut tests = Tests::build(copy)?;
    tests.measure(false)?;
    // All pass through the quick tests first: so the likely survivors are known early.
    let results = Mutex::new(results);
    let unnoticed = Mutex::new(Vec::new());
    in_parallel(mutants.iter().collect(), |(number, mutant)| {
        match tests.judge(*number, false)? {
            Some(by) => lock(&results).add(&mutant.name, Some(by).into()),
            None => {
                println!("{UNNOTICED}{}", mutant.name);
                lock(&unnoticed).push((*number, &mutant.name));
                Ok(())
            }
        }
    })?;
    if !quick {
        tests.measure(true)?;
        in_parallel(lock(&unnoticed).drain(..).collect(), |(number, name)| {
            let verdict = tests.judge(number, true)?.into();
            lock(&results).add(name, verdict)
        })?;
    }
    // They are built where the others were.
    for mutant in alone {
        compile::alone(copy, mutant)?;
        let built = Tests::build(copy).with_context(|| mutant.name.clone())?;
        let built = built.with_limits_of(&tests);
        let noticed = match built.judge(0, false)? {
            None if quick => {
                println!("{UNNOTICED}{}", mutant.name);
                continue;
            }
            None => built.judge(0, true)?,
            noticed => noticed,
        };
        lock(&results).add(&mutant.name, noticed.into())?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a thread that fails ends the run")
}

/// Does this to all of them, as many at once as there are CPUs, in their order.
fn in_parallel<T: Send>(of: Vec<T>, what: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let next = Mutex::new(of.into_iter());
    let work = || {
        loop {
            let Some(one) = lock(&next).next() else { return Ok(()) };
            what(one)?;
        }
    };
    thread::scope(|scope| {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it returns errors"))
    })
}
