//! `cargo xtask exact`: what a guest observes, on the bare machine and under Umbra.

mod events;
mod lines;
mod machine;
mod msrs;
mod rows;
mod table;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use crate::report::Report;
use crate::setup::Setup;
use crate::umbra_run::{self, Machine, Policy};
use machine::Kernels;
use table::{Column, Table};

/// Print what a guest observes, bare and under Umbra, as a table.
///
/// Two guest kernels run on each machine, bare and under each treatment of page faults. `exact` has
/// no opinion: it reads every model-specific register and flips each of its bits, and runs 9600
/// cases of event delivery. What differs from the bare machine needs a reason: in the table of
/// registers (`crates/msrs`), or in xtask's list. `basics` knows what is right. Every difference is
/// printed with its reason.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only on this machine [default: all]
    #[arg(long)]
    machine: Option<Machine>,

    /// Only with this treatment of the guest's page faults [default: all that the CPU can do]
    #[arg(long)]
    guest_faults: Vec<Policy>,
}

/// Compares, and prints the table and every difference with its reason.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let policies = match arguments.guest_faults.as_slice() {
        [] => Policy::value_variants(),
        some => some,
    };
    let chosen = umbra_run::chosen(arguments.machine, policies)?;
    let setup = Setup::new()?;
    let (umbra, folder) = (setup.umbra()?, setup.small_kernels()?);
    let kernels = Kernels { umbra: &umbra, folder: &folder };
    let mut table = Table::default();
    for (machine, policies) in chosen {
        let bare = kernels.observe(machine, None)?;
        table.push(Column::bare(machine, &bare)?);
        for policy in policies {
            let found = kernels.observe(machine, Some(policy))?;
            let column = Column::umbra(machine, policy, &bare, &found)?;
            if let Some(line) = column.first_wrong_event() {
                println!("{}", kernels.difference(machine, policy, line)?);
            }
            table.push(column);
        }
    }
    println!("{table}");
    Ok(if table.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares as steps of a greater whole: each machine under one treatment of page faults.
pub fn sample(report: &mut Report, umbra: &Path, folder: &Path) -> Result<()> {
    let kernels = Kernels { umbra, folder };
    for (machine, policy) in [(Machine::Penryn, Policy::Trap), (Machine::Skylake, Policy::Auto)] {
        report.step(
            &format!("observations of a guest, {}", umbra_run::name(machine, Some(policy))),
            || {
                let (bare, found) =
                    (kernels.lines(machine, None)?, kernels.lines(machine, Some(policy))?);
                let msrs = msrs::compare(&machine::cpu(machine), &bare, &found);
                let events = events::compare(&bare, &found);
                if !msrs.wrong.is_empty() || !events.wrong.is_empty() {
                    bail!("{msrs}\n{events}");
                }
                ensure!(msrs.alike > 0 && events.alike > 0, "nothing is as on the bare machine");
                Ok(format!("{msrs}; {events}"))
            },
        );
    }
    Ok(())
}
