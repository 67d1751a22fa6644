//! `cargo xtask trial`: a Linux kernel's KVM, judged by what a guest observes of its memory.
//!
//! [`kernel`] fetches the kernel on trial, [`machine`] runs it in QEMU and [`bochs`] in Bochs.
//! [`campaign`] goes through random programs, and [`minimize`] makes those short that find
//! something. [`finding`] is what is written about it, and [`page`] the report for a browser.
//! [`coverage`] tells which code of the kernel has run, and [`merge`] makes one report of several.
//! [`booted`] is the control, an emulator without a hypervisor, and Umbra. [`mutants`] tries the
//! trial itself by mistakes in a KVM, and [`rules`] by broken rules of Umbra.

mod bochs;
mod booted;
mod campaign;
mod coverage;
mod finding;
mod kernel;
mod machine;
pub mod merge;
mod minimize;
pub mod mutants;
mod page;
mod rules;
mod suspect;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use umbra::number::whole;
use umbra_trial::generate;
use umbra_trial::judge::Tally;
use umbra_trial::program::{Program, Step};

use crate::report::Report;
use crate::umbra_run::{Policy, chosen, word};
use crate::{paths, setup};
use bochs::Bochs;
use booted::{Booted, Place};
use campaign::{Campaign, Identity, Limits};
use coverage::Coverage;
use kernel::Kernel;
use machine::Machine;
use setup::Setup;
use suspect::{Found, Outcome, Suspect};

/// The emulated CPU of a kernel on trial in QEMU.
const CPU: &str = "EPYC,+svm";

/// The exit status if something was found.
const FOUND: u8 = 10;

/// Put a hypervisor on trial: the KVM of a Debian kernel, or Umbra.
///
/// Random programs run as guest code under the kernel's KVM with shadow paging (kvm-amd with npt=0
/// in QEMU without hardware virtualization, or kvm-intel with ept=0 in Bochs): no KVM device of
/// this machine is opened. What the guest observes is compared with bare hardware; a BUG or WARNING
/// of the kernel is a finding, too. A program that finds something is made short. The exit status
/// is 0 if nothing was found, 10 if something was, and 1 on errors. The folder with the report is
/// named at the end; the same command goes on where the last one has stopped.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask trial --kernel linux-image-6.1.0-50-cloud-amd64 --minutes 10
  cargo xtask trial --kernel ./linux-image-7.2.deb --seed 1000 --minutes 60
  cargo xtask trial --kernel linux-image-6.12.102+deb13-cloud-amd64 --suite trixie
  cargo xtask trial --kernel linux-image-6.1.0-50-cloud-amd64 --cpus 2
  cargo xtask trial --kernel linux-image-6.1.0-50-cloud-amd64 --replay finding-1.json
  cargo xtask trial --kernel linux-image-6.1.0-50-cloud-amd64 --machine penryn
  cargo xtask trial --control --minutes 2
  cargo xtask trial --control --machine penryn
  cargo xtask trial --hypervisor umbra --machine penryn --guest-faults auto")]
pub struct Arguments {
    /// A package of a Debian kernel, or a file of one (.deb)
    #[arg(long, value_name = "PACKAGE|FILE", required_unless_present_any = ["control", "hypervisor"])]
    kernel: Option<String>,
    /// With a package: the suite of Debian's that has it, such as trixie or sid [default: those of
    /// this machine]
    #[arg(long, value_name = "NAME", value_parser = suite_name)]
    suite: Option<String>,
    /// Go through programs for so long; a program is made short in addition to it
    #[arg(
        long,
        default_value = "5",
        value_parser = whole::<u64>(1..=100_000),
        allow_negative_numbers = true
    )]
    minutes: u64,
    /// Stop after so many programs
    #[arg(
        long,
        value_name = "N",
        value_parser = whole::<u64>(1..=u32::MAX.into()),
        allow_negative_numbers = true
    )]
    programs: Option<u64>,
    /// The number of the first program
    #[arg(
        long,
        default_value_t = generate::FIRST_SEED,
        value_parser = whole::<u64>(0..=u64::MAX),
        allow_negative_numbers = true
    )]
    seed: u64,
    /// The emulated CPU of a kernel on trial in QEMU, as that names it [default: EPYC,+svm]
    #[arg(long)]
    cpu: Option<String>,
    /// With --kernel, or --control on qemu: the virtual CPUs of a guest, 1 or 2, and the CPUs of
    /// the machine [default: 1, or as --replay has it]. Programs of two are others than those of one
    #[arg(long, value_name = "N", value_parser = whole::<u8>(1..=2), allow_negative_numbers = true)]
    cpus: Option<u8>,
    /// The hypervisor on trial; KVM is that of --kernel
    #[arg(long, value_name = "NAME", default_value = "kvm")]
    hypervisor: Hypervisor,
    /// The emulated machine [default: qemu; penryn for Umbra]
    #[arg(long, value_name = "NAME")]
    machine: Option<booted::Machine>,
    /// With --hypervisor umbra: which guest faults go straight to the guest [default: auto; trap on
    /// ryzen]
    #[arg(long, value_name = "WHICH")]
    guest_faults: Option<Policy>,
    /// Take so many minutes at most to make a program short
    #[arg(
        long,
        value_name = "N",
        default_value = "10",
        value_parser = whole::<u64>(0..=100_000),
        allow_negative_numbers = true
    )]
    shorten: u64,
    /// Tell how much of KVM's code has run; coverage.txt in the campaign's folder has its functions
    #[arg(long, conflicts_with = "replay")]
    coverage: bool,
    /// Stop at the first finding
    #[arg(long)]
    first: bool,
    /// Run one program again, as a finding names it (.json)
    #[arg(long, value_name = "FILE", conflicts_with = "programs")]
    replay: Option<PathBuf>,
    /// Run the programs on the emulator itself, without a hypervisor: nothing may be found
    #[arg(long, conflicts_with_all = ["kernel", "hypervisor"])]
    control: bool,
    /// With --control: what is known of the emulator is a finding, too
    #[arg(long)]
    strict: bool,
}

/// `--hypervisor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Hypervisor {
    /// Linux KVM with shadow paging, in QEMU
    Kvm,
    /// This one, in Bochs
    Umbra,
}

/// Checks `--suite`.
fn suite_name(name: &str) -> Result<String, String> {
    let well = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if well && !name.is_empty() {
        Ok(name.into())
    } else {
        Err("a suite is a word such as trixie, trixie-security or sid".into())
    }
}

/// Where the kernel of programs boots, if that is asked for.
fn place(arguments: &Arguments) -> Result<Option<Place>> {
    let umbra = arguments.hypervisor == Hypervisor::Umbra;
    ensure!(
        umbra || arguments.guest_faults.is_none(),
        "--guest-faults is an option of --hypervisor umbra"
    );
    let with_kernel = [
        ("--suite", arguments.suite.is_some()),
        ("--coverage", arguments.coverage),
        ("--cpu", arguments.cpu.is_some()),
    ];
    if let Some((option, _)) = with_kernel.iter().find(|(_, given)| *given)
        && (arguments.control || umbra)
    {
        bail!("{option} is an option of --kernel");
    }
    ensure!(arguments.control || !arguments.strict, "--strict is an option of --control");
    if arguments.control {
        let machine = arguments.machine.unwrap_or(booted::Machine::Qemu);
        return Ok(Some(Place { machine, umbra: None }));
    }
    if !umbra {
        return Ok(None);
    }
    ensure!(arguments.kernel.is_none(), "--kernel is an option of --hypervisor kvm");
    let machine = arguments.machine.unwrap_or(booted::Machine::Penryn);
    let only = machine.of_umbra();
    let only = only.context("Umbra is tried on Bochs: give --machine penryn, skylake or ryzen")?;
    let wanted = arguments
        .guest_faults
        .map_or_else(|| vec![Policy::Auto, Policy::Trap], |policy| vec![policy]);
    let (_, policies) = chosen(Some(only), &wanted)?.swap_remove(0);
    let policy = wanted.into_iter().find(|policy| policies.contains(policy));
    Ok(Some(Place { machine, umbra: policy }))
}

/// A command whose options are checked.
struct Job<'a> {
    arguments: &'a Arguments,
    replay: Option<Program>,
    /// Virtual CPUs of a guest.
    cpus: usize,
    root: PathBuf,
}

/// Fetches, boots, runs.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    // Before anything is fetched.
    let replay = arguments.replay.as_deref().map(read_program).transpose()?;
    let place = place(arguments)?;
    let cpus = cpus(arguments, place, replay.as_ref())?;
    let job = Job { arguments, replay, cpus, root: paths::target_dir()?.join("trial") };
    match (place, &arguments.kernel) {
        (Some(place), _) => job.boot(place),
        (None, Some(kernel)) => match bochs_machine(arguments)? {
            Some(machine) => job.try_in_bochs(kernel, machine),
            None => job.try_in_qemu(kernel),
        },
        (None, None) => bail!("--hypervisor kvm needs --kernel"),
    }
}

impl Job<'_> {
    /// The folder of this run: campaigns of several numbers run at the same time.
    fn folder(&self, suspect: &str) -> PathBuf {
        let own = match self.replay {
            Some(_) => String::from("replay"),
            None => format!("seed-{}", self.arguments.seed),
        };
        self.root.join(suspect).join(own)
    }

    /// What tells a campaign of two virtual CPUs from one of one.
    fn of_two(&self, text: &'static str) -> &'static str {
        if self.cpus == 2 { text } else { "" }
    }

    /// Repeats a program, or goes through those of a campaign, which has a folder of this name.
    fn go(
        &self,
        suspect: &mut impl Suspect,
        folder: &str,
        identity: &Identity,
        program: impl Fn(u64) -> Program,
    ) -> Result<ExitCode> {
        if let Some(program) = &self.replay {
            return show_replay(suspect, program);
        }
        let Arguments { minutes, programs, shorten, first, seed, .. } = *self.arguments;
        let limits = Limits {
            time: Duration::from_secs(60 * minutes),
            programs,
            shorten: Duration::from_secs(60 * shorten),
            first,
        };
        let campaign = Campaign::open(&self.root.join(folder), identity, seed)?;
        finish(campaign.run(suspect, &limits, program)?.findings.len())
    }

    /// Umbra, or a bare emulator.
    fn boot(&self, place: Place) -> Result<ExitCode> {
        let needs_host = |program: &Program| program.steps.iter().any(Step::is_host);
        ensure!(
            !self.replay.as_ref().is_some_and(needs_host),
            "the program to repeat has steps of a host, and here is none: give --kernel"
        );
        let strict = self.arguments.strict;
        let mark = |text: &'static str| if strict { text } else { "" };
        let name = format!("{}{}{}", place.name(), self.of_two("-smp"), mark("-strict"));
        let mut booted = Booted::new(place, &self.folder(&name), tool(place)?, strict)?;
        let machine = place.machine;
        let identity = Identity {
            suspect: name.clone(),
            options: place.options() + self.of_two(" --cpus 2") + mark(" --strict"),
            cpu: machine.cpu().into(),
        };
        self.go(&mut booted, &name, &identity, |seed| match self.cpus {
            1 => machine.program(seed),
            _ => machine.program_of_two(seed),
        })
    }

    /// KVM on an Intel CPU.
    fn try_in_bochs(&self, name: &str, machine: booted::Machine) -> Result<ExitCode> {
        let kernel = self.fetch(name, kernel::INTEL)?;
        let folder = format!("{}-{}", kernel.name, word(&machine));
        let only = machine.of_umbra().context("a machine of Bochs")?;
        let umbra = Setup::new()?.umbra()?;
        let mut suspect = Bochs::new(&kernel, only, &self.folder(&folder), umbra)?;
        let identity = Identity {
            suspect: name.into(),
            options: format!("--kernel {name}{} --machine {}", self.suite(), word(&machine)),
            cpu: machine.cpu().into(),
        };
        self.go(&mut suspect, &folder, &identity, |seed| bochs::program(machine, seed))
    }

    /// KVM on an AMD CPU.
    fn try_in_qemu(&self, name: &str) -> Result<ExitCode> {
        let cpu = self.arguments.cpu.as_deref().unwrap_or(CPU);
        ensure!(
            !cpu.is_empty() && !cpu.contains(char::is_whitespace),
            "--cpu takes a model of QEMU's with its features, such as EPYC,+svm"
        );
        setup::need_program(machine::PROGRAM, machine::PACKAGE)?;
        let kernel = self.fetch(name, kernel::AMD)?;
        let folder = kernel.name.clone() + self.of_two("-smp");
        let own = self.folder(&folder);
        let coverage = self.arguments.coverage.then(|| Coverage::of(&kernel, &own)).transpose()?;
        let mut suspect = Machine::new(&kernel, &own, cpu, self.cpus, coverage)?;
        let suite = self.suite();
        let identity = Identity {
            suspect: name.to_owned() + self.of_two(" with two virtual CPUs"),
            options: format!("--kernel {name}{suite} --cpu {cpu}{}", self.of_two(" --cpus 2")),
            cpu: format!("{cpu} (QEMU, without hardware virtualization)"),
        };
        self.go(&mut suspect, &folder, &identity, |seed| match self.cpus {
            1 => kernel_program(seed),
            _ => generate::program_of_two(seed, generate::STEPS),
        })
    }

    fn fetch(&self, name: &str, suspect: kernel::Suspect) -> Result<Kernel> {
        kernel::fetch(name, self.arguments.suite.as_deref(), suspect, &self.root)
    }

    /// The option, as it was given.
    fn suite(&self) -> String {
        let suite = self.arguments.suite.as_ref();
        suite.map_or_else(String::new, |suite| format!(" --suite {suite}"))
    }
}

/// The CPU of Bochs that a kernel is tried on, unless it is QEMU's.
fn bochs_machine(arguments: &Arguments) -> Result<Option<booted::Machine>> {
    let machine = arguments.machine.filter(|&machine| machine != booted::Machine::Qemu);
    ensure!(
        machine.is_none() || arguments.cpu.is_none(),
        "--cpu names a CPU of QEMU's; leave it out, or --machine"
    );
    ensure!(
        machine.is_none() || !arguments.coverage,
        "--coverage is QEMU's: leave it out, or --machine"
    );
    ensure!(
        machine != Some(booted::Machine::Ryzen),
        "KVM with npt=0 does not get through on Bochs's ryzen; give --machine penryn or skylake, or \
         none for QEMU's EPYC"
    );
    Ok(machine)
}

/// The program of a number for a kernel.
fn kernel_program(seed: u64) -> Program {
    generate::program(seed, generate::STEPS)
}

/// How many CPUs are asked for.
fn cpus(arguments: &Arguments, place: Option<Place>, replay: Option<&Program>) -> Result<usize> {
    let wanted = arguments.cpus.map(usize::from);
    if let (Some(wanted), Some(program)) = (wanted, replay) {
        let has = program.cpus();
        ensure!(wanted == has, "--cpus is {wanted}, and the program to repeat is one for {has}");
    }
    let cpus = replay.map(Program::cpus).or(wanted).unwrap_or(1);
    ensure!(
        cpus == 1 || place.is_none_or(Place::has_two_cpus),
        "programs of two virtual CPUs are for --kernel, and for --control on qemu: Umbra and Bochs \
         have one here"
    );
    Ok(cpus)
}

/// The tool that boots kernels on this place, unless QEMU does.
fn tool(place: Place) -> Result<Option<PathBuf>> {
    if place.machine == booted::Machine::Qemu {
        setup::need_program(machine::PROGRAM, machine::PACKAGE)?;
        return Ok(None);
    }
    Ok(Some(Setup::new()?.umbra()?))
}

/// What is part of all tests: each place, and how many of the first programs run there.
const SAMPLE: [(Place, u64); 3] = [
    (Place { machine: booted::Machine::Qemu, umbra: None }, 20),
    (Place { machine: booted::Machine::Penryn, umbra: None }, 4),
    (Place { machine: booted::Machine::Penryn, umbra: Some(Policy::Auto) }, 2),
];

/// The controls and Umbra, as far as they are part of all tests.
///
/// # Errors
/// QEMU is not there and cannot be installed.
pub fn sample(report: &mut Report, umbra: &Path) -> Result<()> {
    setup::need_program(machine::PROGRAM, machine::PACKAGE)?;
    for (place, programs) in SAMPLE {
        let folder = paths::target_dir()?.join("trial/test").join(place.name());
        let tool = (place.machine != booted::Machine::Qemu).then(|| umbra.to_path_buf());
        let mut suspect = Booted::new(place, &folder, tool, false)?;
        let numbers = generate::FIRST_SEED..generate::FIRST_SEED + programs;
        let one: Vec<Program> = numbers.clone().map(|seed| place.machine.program(seed)).collect();
        report.step(&format!("trial: nothing is found on {}", place.name()), || {
            let total = run_clean(&mut suspect, &one)?;
            Ok(format!("{} steps, {} accesses judged", total.steps, total.judged))
        });
        if place.has_two_cpus() {
            let two: Vec<Program> =
                numbers.map(|seed| place.machine.program_of_two(seed)).collect();
            report.step(
                &format!("trial: nothing is found on {} with two CPUs", place.name()),
                || {
                    let total = run_clean(&mut suspect, &two)?;
                    Ok(format!("{} steps, {} accesses judged", total.steps, total.judged))
                },
            );
        }
    }
    Ok(())
}

/// Runs programs. All must be clean.
fn run_clean(suspect: &mut Booted, programs: &[Program]) -> Result<Tally> {
    let mut total = Tally::default();
    for (program, outcome) in programs.iter().zip(suspect.run_all(programs)?) {
        match outcome {
            Outcome::Clean(tally) => total.add(&tally),
            Outcome::Found(found) => {
                let (seed, Found { step, symptom, detail, .. }) = (program.seed, found);
                bail!("program {seed}, step {step:?}: {symptom}\n{detail}");
            }
        }
    }
    ensure!(total.judged > 1000 * programs.len() as u64, "too little was judged: {total:?}");
    Ok(total)
}

fn finish(findings: usize) -> Result<ExitCode> {
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// Reads a program from the file that a finding left.
fn read_program(file: &Path) -> Result<Program> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let program: Program = serde_json::from_str(&text).map_err(|error| {
        let what = if error.is_eof() { "is cut off" } else { "is no program of a finding" };
        anyhow::anyhow!("{} {what}, at line {}", file.display(), error.line())
    })?;
    program.check().with_context(|| format!("{} cannot be run", file.display()))?;
    Ok(program)
}

fn show_replay(suspect: &mut impl Suspect, program: &Program) -> Result<ExitCode> {
    print!("{program}");
    match suspect.run(program)? {
        Outcome::Clean(tally) => {
            println!("nothing: {} steps, {} accesses judged", tally.steps, tally.judged);
            finish(0)
        }
        Outcome::Found(found) => {
            println!("{}\n{}", found.symptom, found.detail);
            if !found.log.is_empty() {
                println!("\n{}", found.log.trim_end());
            }
            finish(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("finding-1.json");
        std::fs::write(&file, text).unwrap();
        let error = read_program(&file).unwrap_err();
        format!("{error:#}").replace(&*file.to_string_lossy(), "F")
    }

    #[test]
    fn a_bad_replay_file_is_one_sentence() {
        let good = serde_json::to_string_pretty(&generate::program(1, 20)).unwrap();
        assert_eq!(sentence(&good[..good.len() / 2]).lines().count(), 1);
        assert!(sentence(&good[..good.len() / 2]).starts_with("F is cut off, at line "));
        assert!(sentence("").starts_with("F is cut off"));
        assert_eq!(sentence("[1]"), "F is no program of a finding, at line 1");
        let wild = good.replacen("\"maxphyaddr\": ", "\"maxphyaddr\": 1", 1);
        assert!(
            sentence(&wild).starts_with("F cannot be run: MAXPHYADDR is 1"),
            "{}",
            sentence(&wild)
        );
        let missing = read_program(Path::new("/nowhere/x.json")).unwrap_err();
        assert_eq!(
            format!("{missing:#}"),
            "reading /nowhere/x.json: No such file or directory (os error 2)"
        );
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_kernel_runs_on_a_machine_that_fits() {
        let machine = |words: &[&str]| {
            let line = [&["trial", "--kernel", "x"], words].concat();
            let Line { arguments } = clap::Parser::try_parse_from(line).unwrap();
            bochs_machine(&arguments).map_err(|error| error.to_string())
        };
        assert_eq!(machine(&["--cpu", "EPYC,+svm"]), Ok(None));
        assert_eq!(machine(&["--machine", "qemu"]), Ok(None));
        assert_eq!(machine(&["--machine", "penryn"]), Ok(Some(booted::Machine::Penryn)));
        let ryzen = machine(&["--machine", "ryzen"]).unwrap_err();
        assert!(ryzen.ends_with("give --machine penryn or skylake, or none for QEMU's EPYC"));
        let both = machine(&["--machine", "skylake", "--cpu", "EPYC"]).unwrap_err();
        assert_eq!(both, "--cpu names a CPU of QEMU's; leave it out, or --machine");
    }

    #[test]
    fn options_of_a_kernel_are_refused_without_one() {
        let place = |options: &str| {
            let words = ["trial"].into_iter().chain(options.split(' '));
            let Line { arguments } = clap::Parser::try_parse_from(words).unwrap();
            place(&arguments).map(|_| ()).map_err(|error| error.to_string())
        };
        let refused = |option: &str| Err(format!("{option} is an option of --kernel"));
        assert_eq!(place("--control --cpu EPYC"), refused("--cpu"));
        assert_eq!(place("--control --suite sid"), refused("--suite"));
        assert_eq!(place("--hypervisor umbra --coverage"), refused("--coverage"));
        assert_eq!(place("--kernel x --coverage --suite sid --cpu EPYC"), Ok(()));
        let strict = place("--kernel x --strict");
        assert_eq!(strict, Err("--strict is an option of --control".into()));
    }

    #[test]
    fn two_cpus_are_for_a_kernel_and_what_is_replayed_decides() {
        let asked = |options: &str, replay: Option<&Program>| {
            let words = ["trial"].into_iter().chain(options.split(' '));
            let Line { arguments } = clap::Parser::try_parse_from(words).unwrap();
            let cpus = cpus(&arguments, place(&arguments).unwrap(), replay);
            cpus.map_err(|error| error.to_string())
        };
        let (one, two) = (generate::program(1, 20), generate::program_of_two(1, 20));
        assert_eq!(asked("--kernel x", None), Ok(1));
        assert_eq!(asked("--kernel x --cpus 2", None), Ok(2));
        assert_eq!(asked("--kernel x", Some(&two)), Ok(2));
        assert_eq!(
            asked("--kernel x --cpus 2", Some(&one)),
            Err("--cpus is 2, and the program to repeat is one for 1".into())
        );
        let refused = Err(String::from(
            "programs of two virtual CPUs are for --kernel, and for --control on qemu: Umbra and \
             Bochs have one here",
        ));
        assert_eq!(asked("--control --cpus 2", None), Ok(2));
        assert_eq!(asked("--control --machine ryzen --cpus 2", None), refused);
        assert_eq!(asked("--hypervisor umbra", Some(&two)), refused);
        assert_eq!(asked("--hypervisor umbra", Some(&one)), Ok(1));
    }

    #[test]
    fn programs_of_findings_before_there_were_two_cpus_are_read() {
        let program = generate::program(1, 20);
        let mut json = serde_json::to_value(&program).unwrap();
        json.as_object_mut().unwrap().remove("turns").unwrap();
        assert_eq!(serde_json::from_value::<Program>(json).unwrap(), program);
    }

    #[test]
    fn a_good_one_is_read() {
        let program = generate::program(7, 50);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, serde_json::to_string(&program).unwrap()).unwrap();
        assert_eq!(read_program(&file).unwrap(), program);
    }
}
