//! `cargo xtask guests`: the small kernels of `guest/kernels` under Umbra.

mod run;
mod verdict;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::paths;
use crate::report::Report;
use crate::setup::{Setup, need_program};
use crate::umbra_run::Policy;
use run::Kernel;
pub use run::Run;

/// Run the small guest kernels under Umbra.
///
/// What each finds must be as on bare hardware.
///
/// Builds them, runs them on the emulated machines with the bypass and without (with `--full`:
/// under every treatment of page faults), as many at a time as there are CPUs, and prints a line
/// for each: what was checked, how much of it was wrong, how long it took. What they print is kept
/// in `target/guest/kernels`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Every case, not a sample of them; this takes hours
    #[arg(long)]
    full: bool,

    /// Only on this machine [default: all]
    #[arg(long)]
    machine: Option<Machine>,

    /// Only with this treatment of the guest's page faults [default: auto and trap; with --full
    /// all]
    #[arg(long)]
    guest_faults: Option<Policy>,

    /// Only these kernels [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<Kernel>,
}

/// How much the kernels do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// A sample of the cases.
    Quick,
    /// All of them.
    Full,
}

/// `--machine` of `umbra run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    Penryn,
    Skylake,
    Ryzen,
    QemuSvm,
}

impl Machine {
    /// Whether its CPU lets the guest have some of its page faults without an exit.
    fn filters_page_faults(self) -> bool {
        matches!(self, Machine::Penryn | Machine::Skylake)
    }
}

/// Runs the chosen ones.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.machine.is_none_or(|machine| machine == Machine::QemuSvm) {
        need_program("qemu-system-x86_64", "qemu-system-x86")?;
    }
    let setup = Setup::new()?;
    let (umbra, kernels) = (setup.umbra()?, setup.small_kernels()?);
    let amount = if arguments.full { Amount::Full } else { Amount::Quick };
    let chosen = |run: &Run| {
        (arguments.names.is_empty() || arguments.names.contains(&run.kernel))
            && arguments.machine.is_none_or(|machine| machine == run.machine)
    };
    let mut report = Report::new();
    steps(
        &mut report,
        &umbra,
        &kernels,
        Run::all(amount, arguments.guest_faults).filter(chosen).collect(),
    )?;
    Ok(report.finish())
}

/// Runs all kernels as steps of a greater whole, and the special runs, too: without the bypass on
/// the fast machine of each vendor, and the basics on AMD's exact one.
///
/// # Errors
/// The folder for results cannot be made.
pub fn all(report: &mut Report, umbra: &Path, kernels: &Path, amount: Amount) -> Result<()> {
    let chosen = |run: &Run| match run.machine {
        Machine::Penryn | Machine::QemuSvm => true,
        Machine::Skylake => run.guest_faults == Policy::Auto,
        Machine::Ryzen => run.kernel == Kernel::Basics,
    };
    let runs = Run::all(amount, None).filter(chosen);
    steps(report, umbra, kernels, runs.chain(Run::special()).collect())
}

fn steps(report: &mut Report, umbra: &Path, kernels: &Path, mut runs: Vec<Run>) -> Result<()> {
    if runs.is_empty() {
        bail!("no run of a kernel fits these options");
    }
    let folder = paths::guest_dir()?.join("kernels");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    // The longest first, so that no CPU idles at the end.
    runs.sort_by_key(|run| std::cmp::Reverse(run.weight()));
    report.steps(&runs, Run::name, |run| run.run(umbra, kernels, &folder));
    Ok(())
}
