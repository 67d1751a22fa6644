//! The differential test for as long as one likes: random guest programs through the shadow MMU.
//! Each comes from a seed that is printed, or, with a corpus, from a recipe that is kept if it
//! fails; both can be replayed.

#[path = "../arguments/mod.rs"]
mod arguments;
mod corpus;
mod kinds;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use arguments::campaign::Arguments;
use clap::Parser;
use corpus::Corpus;
use fastrand::Rng;
use kinds::Kinds;
use umbra_reference::Divergence;
use umbra_reference::coverage::Coverage;
use umbra_reference::minimize::minimize_plain;
use umbra_reference::recipe::Recipe;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match (&arguments.replay, &arguments.corpus) {
        (Some(file), _) => corpus::read_one(file).and_then(|recipe| replay(&recipe)),
        (None, Some(into)) if !arguments.merge.is_empty() => merge(&arguments, into),
        _ => run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("campaign: {error:#}");
        ExitCode::from(2)
    })
}

fn replay(recipe: &Recipe) -> Result<ExitCode> {
    match recipe.run() {
        Ok(coverage) => {
            println!("{coverage}{} steps, 0 divergences", recipe.words.len());
            Ok(ExitCode::SUCCESS)
        }
        Err(divergence) => {
            println!("{}", shortest(recipe, &divergence));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn shortest(recipe: &Recipe, divergence: &Divergence) -> String {
    let shortest = minimize_plain(&recipe.program(), &recipe.config());
    shortest.map_or_else(|| divergence.to_string(), |failure| failure.to_string())
}

fn merge(arguments: &Arguments, into: &PathBuf) -> Result<ExitCode> {
    let mut merged = Corpus::in_folder(into)?;
    let mut recipes = Vec::new();
    for folder in arguments.merge.iter().chain([into]) {
        recipes.extend(corpus::read(folder)?);
    }
    recipes.sort_by(|one, other| {
        one.words.len().cmp(&other.words.len()).then_with(|| one.to_bytes().cmp(&other.to_bytes()))
    });
    recipes.dedup();
    for recipe in &recipes {
        match recipe.run() {
            Ok(coverage) => merged.offer(recipe, &coverage)?,
            Err(divergence) => return failed(arguments, recipe, &divergence, None),
        };
    }
    merged.prune()?;
    println!(
        "{} programs, of which {} reach all {} combinations",
        recipes.len(),
        merged.recipes().len(),
        merged.reached()
    );
    Ok(ExitCode::SUCCESS)
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Ok(time) = Duration::try_from_secs_f64(arguments.minutes * 60.0) else {
        bail!("--minutes {} is no length of time; give a positive number", arguments.minutes);
    };
    let first = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("first seed {first}");
    let (start, mut coverage, mut steps) = (Instant::now(), Coverage::default(), 0);
    let mut corpus = Corpus::default();
    let mut kinds = Kinds::default();
    if let Some(folder) = &arguments.corpus {
        corpus = Corpus::in_folder(folder)?;
        for recipe in corpus::read(folder)? {
            match recipe.run() {
                Ok(met) => {
                    coverage.merge(&met);
                    steps += met.get("steps");
                    corpus.offer(&recipe, &met)?;
                }
                Err(divergence) => return failed(arguments, &recipe, &divergence, None),
            }
        }
        println!("{} programs reach {} combinations", corpus.recipes().len(), corpus.reached());
    }
    let mut done = 0;
    while done < arguments.programs && steps < arguments.total_steps && start.elapsed() < time {
        let seed = first.wrapping_add(done);
        let fresh = Recipe::random(seed, arguments.steps);
        let mut random = Rng::with_seed(!seed);
        // Mutants of what is known find the rare, fresh programs the unknown.
        let recipe = match corpus.recipes() {
            [] => fresh,
            _ if random.u8(..4) == 0 => fresh,
            recipes => {
                let mut pick = || &recipes[random.usize(..recipes.len())];
                let (one, other) = (pick(), pick());
                one.mutated(other, &mut random, arguments.steps)
            }
        };
        match recipe.run() {
            Ok(met) => {
                if arguments.corpus.is_some() {
                    corpus.offer(&recipe, &met)?;
                }
                coverage.merge(&met);
                kinds.add(&recipe, &met);
                steps += met.get("steps");
            }
            Err(divergence) => return failed(arguments, &recipe, &divergence, Some(seed)),
        }
        done += 1;
    }
    println!("{coverage}");
    if arguments.coverage {
        println!("\n{kinds}\n");
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{done} programs, {steps} steps in {seconds:.0} s, 0 divergences");
    if arguments.corpus.is_some() {
        println!(
            "the corpus: {} programs reach {} combinations",
            corpus.recipes().len(),
            corpus.reached()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Says how a program fails and how to see it again.
fn failed(
    arguments: &Arguments,
    recipe: &Recipe,
    divergence: &Divergence,
    seed: Option<u64>,
) -> Result<ExitCode> {
    println!("{}", shortest(recipe, divergence));
    match (&arguments.corpus, seed) {
        (None, Some(seed)) => {
            println!("replay: --seed {seed} --programs 1 --steps {}", arguments.steps);
        }
        (folder, _) => {
            let folder = folder.clone().context("a program that has no seed is from a corpus")?;
            let file = corpus::keep(&folder, recipe, "failure")?;
            println!("replay: --replay {}", file.display());
        }
    }
    Ok(ExitCode::FAILURE)
}
