//! `cargo xtask machine-fuzz`: random programs on the bare machine and under Umbra.

mod candidate;
mod coverage;
mod known;
mod mode;
mod runner;
mod setting;
mod step;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use umbra::number::whole;
use umbra_forms::generate;

use crate::paths;
use crate::report::{Report, last_lines};
use crate::setup::Setup;
use crate::umbra_run::{self, Machine, Policy};
use candidate::{Candidate, Generator};
use coverage::Coverage;
use mode::MODES;
use runner::{Outcome, Runner};

/// Run random programs, bare and under Umbra.
///
/// Both must do the same.
///
/// A program is several instructions in 64-, 32- or 16-bit code of ring 0 or 3 or in virtual-8086
/// mode, in long mode, under PAE or under 32-bit paging. Its operands lie in memory, in page
/// tables, in devices and nowhere, across pages and limits; its events are exceptions, software
/// interrupts, single steps, breakpoints and interrupts. A guest kernel runs hundreds a start, each
/// from the same state, and makes a hash of every event, register and word of memory. A difference
/// is made as short as it gets, and printed.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only on this machine [default: all]
    #[arg(long)]
    machine: Option<Machine>,

    /// Under these treatments of the guest's page faults [default: trap, and auto where the CPU can
    /// do more]
    #[arg(long)]
    guest_faults: Vec<Policy>,

    /// The seed of the first program; the next one has the next [default: another each day]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0..=u64::MAX.into()), allow_negative_numbers = true)]
    seed: Option<u64>,

    /// How many programs
    #[arg(long, value_name = "N", default_value = "4000", value_parser = whole::<u64>(1..=u32::MAX.into()), allow_negative_numbers = true)]
    programs: u64,

    /// So many programs a start
    #[arg(long, value_name = "N", default_value = "5000", value_parser = whole::<u64>(1..=u32::MAX.into()), allow_negative_numbers = true)]
    chunk: u64,

    /// Make this many of the different programs short, and print them
    #[arg(long, value_name = "N", default_value = "3", value_parser = whole::<usize>(0..=u32::MAX.into()), allow_negative_numbers = true)]
    show: usize,

    /// Make them short in at most this many rounds
    #[arg(long, value_name = "N", default_value = "12", value_parser = whole::<usize>(0..=u32::MAX.into()), allow_negative_numbers = true)]
    rounds: usize,

    /// Judge the Umbra in this tool [default: the one that is built from this checkout]
    #[arg(long, value_name = "FILE")]
    umbra: Option<PathBuf>,
}

/// How often a machine is started for the programs of one start, where programs end the guest.
const STARTS: usize = 12;
/// Lines of a difference that are printed.
const SHOWN_LINES: usize = 12;

/// Runs and compares.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let policies = match arguments.guest_faults.as_slice() {
        [] => &[Policy::Trap, Policy::Auto],
        some => some,
    };
    let chosen = umbra_run::chosen(arguments.machine, policies)?;
    let setup = Setup::new()?;
    let umbra = match &arguments.umbra {
        Some(umbra) => umbra.clone(),
        None => setup.umbra()?,
    };
    let kernels = setup.small_kernels()?;
    let table = generate::table();
    let generator = Generator::new(&table);
    let mut coverage = Coverage::default();
    let mut alike = true;
    let start = Instant::now();
    let seed = arguments.seed.map_or_else(seed_of_the_day, Ok)?;
    for (machine, policies) in chosen {
        let folder = folder(seed)?;
        let kernel = kernels.join("machine.elf");
        let runner =
            Runner { umbra: &umbra, kernel: &kernel, folder: &folder, starts: STARTS, machine };
        let mut shown = 0;
        let end = seed.saturating_add(arguments.programs);
        for first in (seed..end).step_by(arguments.chunk as usize) {
            let seeds = first..end.min(first + arguments.chunk);
            let candidates: Vec<_> = seeds
                .clone()
                .map(|seed| generator.candidate(seed))
                .filter(|candidate| !ends_the_emulator(machine, candidate))
                .collect();
            let judged = judge(&runner, &candidates)?;
            judged.iter().for_each(|(candidate, outcome)| coverage.add(candidate, outcome));
            for &policy in &policies {
                let different = different(&runner, &judged, policy)?;
                let (known, new): (Vec<_>, Vec<_>) = different
                    .into_iter()
                    .partition(|candidate| known::reason(machine, candidate).is_some());
                println!(
                    "{}: seeds {} to {}: {} programs, {} different, {} more by Bochs ({:.0} s)",
                    umbra_run::name(machine, Some(policy)),
                    seeds.start,
                    seeds.end - 1,
                    judged.len(),
                    new.len(),
                    known.len(),
                    start.elapsed().as_secs_f64()
                );
                for candidate in &new {
                    println!("  seed {}: {}", candidate.seed, candidate.start.mode.name);
                }
                for candidate in &known {
                    let why = known::reason(machine, candidate).unwrap_or_default();
                    println!("  by Bochs: seed {}: {why}", candidate.seed);
                }
                alike &= new.is_empty();
                let count = new.len().min(arguments.show.saturating_sub(shown));
                shown += count;
                show(&runner, &new[..count], policy, arguments.rounds)?;
            }
        }
    }
    println!("{coverage}");
    Ok(if alike { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// VMRUN of Bochs 2.7 stops the emulator at a guest in virtual-8086 mode.
fn ends_the_emulator(machine: Machine, candidate: &Candidate) -> bool {
    machine == Machine::Ryzen && candidate.start.mode.virtual_8086
}

/// Far enough apart that the programs of two days are others.
fn seed_of_the_day() -> Result<u64> {
    const SECONDS: u64 = 86_400;
    const PROGRAMS: u64 = 1 << 20;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(since.as_secs() / SECONDS * PROGRAMS)
}

/// Runs a sample as steps of a greater whole: the same programs every time, so that a failure is
/// one of what is tested. The command by itself takes others each day.
pub fn sample(report: &mut Report, umbra: &Path, kernels: &Path) -> Result<()> {
    const PROGRAMS: u64 = 300;
    /// The first of these writes the entry of the page table in use that the kernel needs.
    const LEFT_SOMETHING: Range<u64> = 40_001_660..40_001_700;
    let (folder, table) = (folder(0)?, generate::table());
    let generator = Generator::new(&table);
    let kernel = kernels.join("machine.elf");
    let candidates: Vec<_> = (0..PROGRAMS).map(|seed| generator.candidate(seed)).collect();
    report.step("random programs leave nothing to the next one", || {
        let machine = Machine::Skylake;
        let runner = Runner { umbra, kernel: &kernel, folder: &folder, starts: STARTS, machine };
        let more = LEFT_SOMETHING.map(|seed| generator.candidate(seed));
        leave_nothing(&runner, &candidates.iter().cloned().chain(more).collect::<Vec<_>>())
    });
    for (machine, policy) in [(Machine::Penryn, Policy::Trap), (Machine::Skylake, Policy::Auto)] {
        let runner = Runner { umbra, kernel: &kernel, folder: &folder, starts: STARTS, machine };
        let name = format!("random programs, {}", umbra_run::name(machine, Some(policy)));
        report.step(&name, || {
            let judged = judge(&runner, &candidates)?;
            ensure!(!judged.is_empty(), "the bare machine judged none");
            let different = different(&runner, &judged, policy)?;
            let new: Vec<_> = different
                .into_iter()
                .filter(|candidate| known::reason(machine, candidate).is_none())
                .collect();
            if !new.is_empty() {
                let words: Vec<_> = new.iter().map(|candidate| candidate.words()).collect();
                bail!(
                    "{} of {} differ\n{}",
                    new.len(),
                    judged.len(),
                    last_lines(&words.join("\n"), 40)
                );
            }
            Ok(format!("{} agree", judged.len()))
        });
    }
    Ok(())
}

/// On the bare machine programs do the same in another order, and programs of every mode get to
/// their first step.
fn leave_nothing(runner: &Runner<'_>, candidates: &[Candidate]) -> Result<String> {
    let there: Vec<_> = candidates.iter().collect();
    let back: Vec<_> = there.iter().rev().copied().collect();
    let (first, mut second) = (runner.run(&there, None)?, runner.run(&back, None)?);
    second.reverse();
    let (mut same, mut idle) = (0, BTreeSet::from(MODES));
    for ((candidate, first), second) in there.iter().zip(&first).zip(&second) {
        let (Some(first), Some(second)) = (first, second) else { continue };
        ensure!(first == second, "another order, other events: {}", candidate.words());
        same += 1;
        if first.last_step().is_some() {
            idle.remove(&candidate.start.mode);
        }
    }
    let idle: Vec<_> = idle.iter().map(|mode| mode.name).collect();
    ensure!(idle.is_empty(), "no program got to its first step in {}", idle.join(", "));
    Ok(format!("{same} do the same in another order"))
}

fn folder(seed: u64) -> Result<PathBuf> {
    let folder = paths::guest_dir()?.join(format!("machine-fuzz/{seed}"));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Those that the bare machine ran, with what they did.
fn judge<'a>(
    runner: &Runner<'_>,
    candidates: &'a [Candidate],
) -> Result<Vec<(&'a Candidate, Outcome)>> {
    let all: Vec<_> = candidates.iter().collect();
    let outcomes = runner.run(&all, None)?;
    Ok(all
        .into_iter()
        .zip(outcomes)
        .filter_map(|(candidate, found)| Some((candidate, found?)))
        .collect())
}

/// Those that did something else under Umbra.
fn different<'a>(
    runner: &Runner<'_>,
    judged: &[(&'a Candidate, Outcome)],
    policy: Policy,
) -> Result<Vec<&'a Candidate>> {
    let candidates: Vec<_> = judged.iter().map(|(candidate, _)| *candidate).collect();
    let found = runner.run(&candidates, Some(policy))?;
    let both = judged.iter().zip(found);
    let different = both
        .filter(|((_, right), found)| found.as_ref().is_none_or(|found| found.hash != right.hash));
    Ok(different.map(|((candidate, _), _)| *candidate).collect())
}

/// Makes programs short that differ, and prints them with what they did differently.
fn show(
    runner: &Runner<'_>,
    candidates: &[&Candidate],
    policy: Policy,
    rounds: usize,
) -> Result<()> {
    if candidates.is_empty() {
        return Ok(());
    }
    let short = shorten(runner, candidates, policy, rounds)?;
    let all: Vec<_> = short.iter().collect();
    let (right, found) = (runner.words(&all, None)?, runner.words(&all, Some(policy))?);
    for ((candidate, right), found) in short.iter().zip(&right).zip(&found) {
        println!("{}", candidate.words());
        if right == found {
            println!("    by itself it does the same: what differs is left by a program before it");
            continue;
        }
        let first = right.iter().zip(found).take_while(|(right, found)| right == found).count();
        let event = right[..first].iter().rposition(|line| line.starts_with("vector")).unwrap_or(0);
        let events = right[..first].iter().filter(|line| line.starts_with("vector")).count();
        println!(
            "    the same up to event {events}: {}",
            right[event..first.min(event + 5)].join(", ")
        );
        for (name, lines) in [("bare ", right), ("umbra", found)] {
            lines
                .iter()
                .skip(first)
                .take(SHOWN_LINES)
                .for_each(|line| println!("    {name} {line}"));
        }
    }
    Ok(())
}

/// The shortest programs that still differ. All of them have their next ones run at once.
fn shorten(
    runner: &Runner<'_>,
    candidates: &[&Candidate],
    policy: Policy,
    rounds: usize,
) -> Result<Vec<Candidate>> {
    let mut best: Vec<Candidate> = candidates.iter().map(|&candidate| candidate.clone()).collect();
    for _ in 0..rounds {
        let simpler: Vec<_> = best.iter().flat_map(Candidate::simpler).collect();
        let judged = judge(runner, &simpler)?;
        let different = different(runner, &judged, policy)?;
        let mut changed = false;
        for candidate in &mut best {
            let next = different.iter().find(|other| other.seed == candidate.seed);
            if let Some(&next) = next {
                *candidate = next.clone();
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    Ok(best)
}
