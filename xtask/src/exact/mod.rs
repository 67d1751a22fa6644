//! `cargo xtask exact`: what a guest observes, on the bare machine and under Umbra.

mod lines;
mod machine;
mod msrs;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use crate::report::Report;
use crate::setup::Setup;
use lines::Lines;
pub use machine::{Machine, Policy};

/// Compare what a guest observes on the bare machine and under Umbra: every model-specific register.
///
/// A guest kernel prints what it finds, with no opinion of its own. Where Umbra differs from the bare
/// machine, the table of registers (`crates/msrs`) must say so, and why: each such place is listed.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only on this machine [default: both]
    #[arg(long)]
    machine: Option<Machine>,

    /// Only with this treatment of the guest's page faults [default: all]
    #[arg(long)]
    guest_faults: Vec<Policy>,
}

/// Compares, and prints every difference with its reason.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let setup = Setup::new()?;
    let (umbra, kernels) = (setup.umbra()?, setup.small_kernels()?);
    let kernel = kernels.join("exact.elf");
    let mut agree = true;
    for &machine in Machine::value_variants() {
        if arguments.machine.is_some_and(|only| only != machine) {
            continue;
        }
        let cpu = machine.cpu();
        let bare = Lines::read(&machine.observe(&umbra, &kernel, None)?)?;
        let mut reasons = String::new();
        for &policy in Policy::value_variants() {
            if !arguments.guest_faults.is_empty() && !arguments.guest_faults.contains(&policy) {
                continue;
            }
            let found = Lines::read(&machine.observe(&umbra, &kernel, Some(policy))?)?;
            let msrs = msrs::compare(&cpu, &bare, &found);
            println!("{}: {msrs}", machine.name(Some(policy)));
            agree &= msrs.wrong.is_empty();
            reasons = msrs::reasons(&cpu, &bare, &found);
        }
        println!("{}: the registers that differ from the bare machine\n{reasons}", machine.name(None));
    }
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares as steps of a greater whole: each machine under one treatment of page faults.
pub fn sample(report: &mut Report, umbra: &Path, kernels: &Path) -> Result<()> {
    let kernel = kernels.join("exact.elf");
    for (machine, policy) in [(Machine::Penryn, Policy::Trap), (Machine::Skylake, Policy::Auto)] {
        report.step(&format!("observations of a guest, {}", machine.name(Some(policy))), || {
            let bare = Lines::read(&machine.observe(umbra, &kernel, None)?)?;
            let found = Lines::read(&machine.observe(umbra, &kernel, Some(policy))?)?;
            let msrs = msrs::compare(&machine.cpu(), &bare, &found);
            if !msrs.wrong.is_empty() {
                bail!("{msrs}");
            }
            ensure!(msrs.alike > 0, "no register is as on the bare machine");
            Ok(msrs.to_string())
        });
    }
    Ok(())
}
