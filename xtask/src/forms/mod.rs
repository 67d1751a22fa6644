//! `cargo xtask forms`: every memory form of instructions, on the bare machine and under Umbra.

mod compare;
mod exceptions;
mod fuzz;
mod measure;
mod output;
mod select;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use umbra_forms::Case;
use umbra_forms::generate::{self, Entry};

use crate::paths;
use crate::report::{Report, last_lines};
use crate::setup::Setup;
use crate::umbra_run::{self, Machine, Policy};
use compare::Comparison;
use exceptions::Exceptions;
use measure::{Alike, How, Runner, With};
use select::Selection;
use umbra::number::whole;

/// Run every memory form of instructions, bare and under Umbra.
///
/// It does so on every kind of memory, and both must agree.
///
/// A guest kernel runs the forms of iced-x86's table in 64-, 32- and 16-bit code and in rings 0 and
/// 3. The operand lies on memory, on none, on the APIC, on a page table in use, on a read-only page
/// with CR0.WP clear, or across two of them. Registers, flags, exceptions and memory afterwards
/// make a hash. Prints a table by mode of code and kind of memory, and what the first different
/// cases did differently. All that differ are listed in `target/guest/forms`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only on this machine [default: all]
    #[arg(long)]
    machine: Option<Machine>,

    /// Only with this treatment of the guest's page faults [default: all that the CPU can do]
    #[arg(long)]
    guest_faults: Vec<Policy>,

    /// Further options of `umbra run`, as one word each
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    option: Vec<String>,

    /// Which cases
    #[command(flatten)]
    selection: Selection,

    /// Check alignment in ring 3, or single-step each case
    #[arg(long, value_enum)]
    with: Option<With>,

    /// Run this many random programs of several forms instead of single ones; the seed is that of
    /// the sample
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=u32::MAX.into()), allow_negative_numbers = true)]
    programs: Option<usize>,

    /// Judge the Umbra in this tool [default: the one that is built from this checkout]
    #[arg(long, value_name = "FILE")]
    umbra: Option<PathBuf>,

    /// Start each machine at most this often: a guest that is ended is started again behind the
    /// case that ended it
    #[arg(long, value_name = "N", default_value = "20", value_parser = whole::<u32>(1..=u32::MAX.into()), allow_negative_numbers = true)]
    starts: u32,

    /// When a case ends the guest, leave out those of the same
    #[arg(long, value_enum, default_value_t = Alike::Instruction)]
    alike: Alike,

    /// Show what this many of the different cases did differently
    #[arg(long, value_name = "N", default_value = "8", value_parser = whole::<usize>(0..=u32::MAX.into()), allow_negative_numbers = true)]
    show: usize,
}

/// How many lines of a case are shown on each side.
const SHOWN_LINES: usize = 8;

/// Measures and compares.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let policies = match arguments.guest_faults.as_slice() {
        [] => Policy::value_variants(),
        some => some,
    };
    let chosen = umbra_run::chosen(arguments.machine, policies)?;
    let setup = Setup::new()?;
    let (umbra, kernels) = (setup.umbra()?, setup.small_kernels()?);
    let folder = folder()?;
    let table = generate::table();
    let cases = arguments.selection.cases(&table);
    ensure!(!cases.is_empty(), "no case fits these options");
    let exceptions = Exceptions::read()?;
    println!("{} forms, {} cases", table.len(), cases.len());
    let programs = arguments
        .programs
        .map(|count| fuzz::programs(&table, &cases, count, arguments.selection.seed()));
    let runner = Runner {
        bare: &umbra,
        umbra: arguments.umbra.as_deref().unwrap_or(&umbra),
        kernel: &kernels.join("forms.elf"),
        folder: &folder,
        table: &table,
        starts: arguments.starts,
        alike: arguments.alike,
    };
    let mut agree = true;
    for (machine, policies) in chosen {
        let bare = How { machine, policy: None, options: &[], with: arguments.with };
        let judge =
            if programs.is_none() { runner.measure(&cases, &bare)? } else { Default::default() };
        for policy in policies {
            let how = How {
                machine,
                policy: Some(policy),
                options: &arguments.option,
                with: arguments.with,
            };
            if let Some(programs) = &programs {
                agree &= fuzz::run(&runner, programs, &bare, &how, arguments.show)?;
                continue;
            }
            let found = runner.measure(&cases, &how)?;
            let comparison = Comparison::new(&table, &exceptions, &how, &judge, &found);
            println!("\n{}\n{}", how.name(), comparison.table());
            let list = folder.join(format!("{}.txt", how.name().replace(' ', "-")));
            fs::write(&list, comparison.list()).with_context(|| list.display().to_string())?;
            println!("all differences: {}", list.display());
            show(&runner, &bare, &how, &comparison.different(arguments.show))?;
            agree &= comparison.agrees();
        }
    }
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a sample of the cases as steps of a greater whole: on each machine under one treatment of
/// page faults.
pub fn sample(report: &mut Report, umbra: &Path, kernels: &Path) -> Result<()> {
    /// A prime number of cases apart, so that all kinds of memory and instruction take their turn.
    const STRIDE: usize = 41;
    let (folder, table, exceptions) = (folder()?, generate::table(), Exceptions::read()?);
    let cases: Vec<_> = Selection::all().cases(&table).into_iter().step_by(STRIDE).collect();
    let kernel = kernels.join("forms.elf");
    let runner = Runner {
        bare: umbra,
        umbra,
        kernel: &kernel,
        folder: &folder,
        table: &table,
        starts: 1,
        alike: Alike::Instruction,
    };
    for (machine, policy) in [(Machine::Penryn, Policy::Trap), (Machine::Skylake, Policy::Auto)] {
        let how = How { machine, policy: Some(policy), options: &[], with: None };
        report.step(&format!("forms of instructions, {}", how.name()), || {
            let judge = runner.measure(&cases, &How { policy: None, ..how })?;
            let found = runner.measure(&cases, &how)?;
            let comparison = Comparison::new(&table, &exceptions, &how, &judge, &found);
            if !comparison.agrees() {
                bail!("bare machine and Umbra differ\n{}", last_lines(&comparison.list(), 40));
            }
            Ok(format!("{} cases agree", cases.len()))
        });
    }
    Ok(())
}

fn folder() -> Result<PathBuf> {
    let folder = paths::guest_dir()?.join("forms");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Prints what single cases did differently.
fn show(runner: &Runner<'_>, bare: &How<'_>, how: &How<'_>, cases: &[Case]) -> Result<()> {
    if cases.is_empty() {
        return Ok(());
    }
    let (right, found) = (runner.words(cases, bare)?, runner.words(cases, how)?);
    for &case in cases {
        println!("{}", select::describe(runner.table, case));
        let (Some(right), Some(found)) = (right.get(&case), found.get(&case)) else { continue };
        for line in right.iter().filter(|line| !found.contains(line)).take(SHOWN_LINES) {
            println!("  bare  {line}");
        }
        for line in found.iter().filter(|line| !right.contains(line)).take(SHOWN_LINES) {
            println!("  umbra {line}");
        }
    }
    Ok(())
}

/// The table as the kernel reads it.
fn records(table: &[Entry]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.form.to_record()).collect()
}

/// Cases as the kernel reads them.
fn words(cases: &[Case]) -> Vec<u8> {
    cases.iter().flat_map(|case| case.0.to_le_bytes()).collect()
}

/// Writes a file.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| path.display().to_string())
}
