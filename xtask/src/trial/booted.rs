//! What boots kernels: the bare emulators, which are the control, and Umbra on one of them.
//!
//! The stub becomes a small kernel that goes through many programs, and writes their results to
//! port 0xe9. A judge that convicts a bare emulator is wrong, or the emulator is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use umbra_trial::bare::{Output, multiboot};
use umbra_trial::generate;
use umbra_trial::judge::{Emulator, judge, judge_bare};
use umbra_trial::program::Program;
use umbra_trial::record::{End, Record};

use super::machine::PROGRAM;
use super::suspect::{Found, Outcome, Suspect, alone};
use super::watch::{self, Ended, Patience};
use crate::process;
use crate::umbra_run::{self, Policy, word};

/// How long a start may take, all of its programs included.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long nothing may come of a start before its hypervisor is taken for hung: a program takes
/// half a minute on a busy machine.
const STALL: Duration = Duration::from_secs(180);

/// Steps of a program, before those are left out that need a driver.
const STEPS: usize = 2000;
/// Programs of a start.
const BATCH: usize = 25;

/// QEMU's status when the kernel writes 0x10 to isa-debug-exit.
const ENDED: i32 = 33;

/// `--machine`: the emulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// QEMU's EPYC, without hardware virtualization
    Qemu,
    /// Bochs: Intel Core 2 T9600
    Penryn,
    /// Bochs: Intel Skylake-X
    Skylake,
    /// Bochs: AMD Ryzen 1700
    Ryzen,
}

impl Machine {
    /// The machine of `umbra run`; none for QEMU, where the kernel boots without it.
    pub fn of_umbra(self) -> Option<umbra_run::Machine> {
        match self {
            Machine::Qemu => None,
            Machine::Penryn => Some(umbra_run::Machine::Penryn),
            Machine::Skylake => Some(umbra_run::Machine::Skylake),
            Machine::Ryzen => Some(umbra_run::Machine::Ryzen),
        }
    }

    /// The CPU in words.
    pub fn cpu(self) -> &'static str {
        match self {
            Machine::Qemu => "EPYC (QEMU)",
            Machine::Penryn => "Core 2 T9600 (Bochs)",
            Machine::Skylake => "Skylake-X (Bochs)",
            Machine::Ryzen => "Ryzen 1700 (Bochs)",
        }
    }

    /// Whether programs have to be those of an old CPU.
    pub fn is_old(self) -> bool {
        self == Machine::Penryn
    }

    /// The program of a number for this machine.
    pub fn program(self, seed: u64) -> Program {
        generate::for_bare(generate::program(seed, STEPS), self.is_old())
    }

    /// The same for two virtual CPUs.
    pub fn program_of_two(self, seed: u64) -> Program {
        generate::for_bare(generate::program_of_two(seed, STEPS), self.is_old())
    }
}

/// A machine, and Umbra on it or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The machine.
    pub machine: Machine,
    /// Umbra, and the guest's page faults under it.
    pub umbra: Option<Policy>,
}

impl Place {
    /// Whether it can have two CPUs.
    pub fn has_two_cpus(self) -> bool {
        self == Place { machine: Machine::Qemu, umbra: None }
    }

    /// The name of its folder and its reports.
    pub fn name(self) -> String {
        let machine = word(&self.machine);
        match self.umbra {
            None => format!("control-{machine}"),
            Some(policy) => format!("umbra-{machine}-{}", word(&policy)),
        }
    }

    /// The options of this command that name it.
    pub fn options(self) -> String {
        let machine = word(&self.machine);
        match self.umbra {
            None => format!("--control --machine {machine}"),
            Some(policy) => {
                format!("--hypervisor umbra --machine {machine} --guest-faults {}", word(&policy))
            }
        }
    }
}

/// Boots programs on a [`Place`].
pub struct Booted {
    place: Place,
    folder: PathBuf,
    /// The tool, unless QEMU boots the kernel.
    umbra: Option<PathBuf>,
    strict: bool,
}

impl Booted {
    /// Keeps its files in this folder. `umbra` is the tool. `strict`: what is
    /// known of bare emulators is a finding, too.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(
        place: Place,
        folder: &Path,
        umbra: Option<PathBuf>,
        strict: bool,
    ) -> Result<Booted> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Booted { place, folder: folder.to_path_buf(), umbra, strict })
    }

    fn command(&self, kernel: &Path, results: &Path, cpus: usize) -> Result<Command> {
        if let (Some(umbra), Some(machine)) = (&self.umbra, self.place.machine.of_umbra()) {
            let mut command = umbra_run::command(umbra, kernel, machine, self.place.umbra);
            command.args(["--timeout", &PATIENCE.as_secs().to_string()]);
            command.stdout(File::create(results)?);
            return Ok(command);
        }
        let mut qemu = process::mortal(PROGRAM);
        qemu.args(["-accel", "tcg", "-cpu", "EPYC", "-m", "128", "-nodefaults"]);
        qemu.args(["-no-user-config", "-display", "none", "-no-reboot", "-net", "none"]);
        qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        qemu.args(["-smp", &cpus.to_string()]);
        qemu.arg("-debugcon").arg(format!("file:{}", results.display()));
        qemu.arg("-kernel").arg(kernel).stdout(Stdio::null());
        Ok(qemu)
    }

    /// Runs programs until one finds something: a hypervisor's death before the first one, too.
    ///
    /// # Errors
    /// The machine cannot be started.
    pub fn run_until_found(&self, programs: &[Program]) -> Result<Vec<Outcome>> {
        let judged = |records: &[Record]| -> Vec<Outcome> {
            let all = programs.iter().zip(records);
            all.map(|(program, record)| self.judge(program, record)).collect()
        };
        let found = |outcome: &Outcome| matches!(outcome, Outcome::Found(_));
        let enough = |bytes: &[u8]| {
            let records = Output::parse(bytes, &End::Hung).records;
            let whole = records.iter().take_while(|record| record.end == End::Complete).count();
            judged(&records[..whole]).iter().any(found)
        };
        let Run { records, why, .. } = self.start(programs, STALL, &enough)?;
        let mut outcomes = judged(&records);
        if let Some(why) = why {
            outcomes.pop();
            outcomes.push(ended(why));
        }
        let first = outcomes.iter().position(found);
        outcomes.truncate(first.map_or(outcomes.len(), |first| first + 1));
        Ok(outcomes)
    }

    /// Starts the machine once. It is ended as soon as its results are `enough`, or if none come
    /// for too long.
    fn start(
        &self,
        programs: &[Program],
        silence: Duration,
        enough: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Run> {
        let file = |name: &str| self.folder.join(name);
        let (kernel, results, errors) = (file("programs.elf"), file("results"), file("errors.txt"));
        fs::write(&kernel, multiboot(programs)).with_context(|| kernel.display().to_string())?;
        let _ = fs::remove_file(&results);
        let mut command = self.command(&kernel, &results, programs[0].cpus())?;
        command.stdin(Stdio::null()).stderr(File::create(&errors)?);
        let patience = Patience { whole: PATIENCE + Duration::from_secs(30), silence };
        let ended = watch::run(&mut command, &results, patience, enough)?;
        let said = fs::read_to_string(&errors).unwrap_or_default();
        let bytes = fs::read(&results).unwrap_or_default();
        let end = if matches!(ended, Ended::Late) { End::Hung } else { End::TripleFault };
        let Output { records, complete } = Output::parse(&bytes, &end);
        let why = match (ended, &self.umbra) {
            (Ended::Enough, _) => None,
            (Ended::Late, _) => Some(String::from("the machine hangs")),
            (Ended::Itself(status), Some(_)) => {
                let well = status.success() && complete;
                (!well).then(|| String::from(umbra_run::end(&said)))
            }
            (Ended::Itself(status), None) => {
                let well = status.code() == Some(ENDED) && complete;
                (!well).then(|| format!("QEMU ends with {status}"))
            }
        };
        Ok(Run { records, why, said })
    }

    fn judge(&self, program: &Program, record: &Record) -> Outcome {
        let emulator = match self.place.machine {
            Machine::Qemu => Emulator::Qemu,
            Machine::Penryn | Machine::Skylake | Machine::Ryzen => Emulator::Bochs,
        };
        let is_bare = self.place.umbra.is_none() && !self.strict;
        if is_bare { judge_bare(program, record, emulator) } else { judge(program, record) }.into()
    }
}

/// What a start came to.
struct Run {
    /// The runs of the first programs.
    records: Vec<Record>,
    /// What the machine said of its end if that came too early.
    why: Option<String>,
    /// All that it said.
    said: String,
}

/// The machine has ended on its own.
fn ended(why: String) -> Outcome {
    let symptom = format!("host: {why}");
    Outcome::Found(Found { symptom, detail: why, step: None, log: String::new() })
}

impl Suspect for Booted {
    fn batch(&self) -> usize {
        BATCH
    }

    fn run(&mut self, program: &Program) -> Result<Outcome> {
        alone(self, program)
    }

    fn run_all(&mut self, programs: &[Program]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        while outcomes.len() < programs.len() {
            let left = &programs[outcomes.len()..];
            let Run { records, why, said } = self.start(left, PATIENCE, &|_| false)?;
            if records.is_empty() {
                let name = self.place.name();
                bail!("{name} ends before program {} begins: {}", left[0].seed, said.trim_end());
            }
            let judged = left.iter().zip(&records);
            outcomes.extend(judged.map(|(program, record)| self.judge(program, record)));
            // The machine has ended in the last program that has begun: what it says comes first.
            if let (Some(why), Some(last)) = (why, outcomes.last_mut()) {
                *last = ended(why);
            }
        }
        Ok(outcomes)
    }
}
