//! The kernel on trial, booted on an Intel CPU of Bochs.
//!
//! No line leads into this machine, so each start has a batch of programs in its initramfs. Replies
//! go to port 0xe9, and come out among the text of the kernel's console.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use umbra_trial::console::{Trouble, trouble};
use umbra_trial::generate;
use umbra_trial::judge::judge;
use umbra_trial::program::Program;
use umbra_trial::record::Record;
use umbra_trial::wire::{Reply, Request, encode, take, unshield};

use super::booted;
use super::kernel::Kernel;
use super::machine::{APPEND, MEMORY};
use super::suspect::{Found, Outcome, Suspect, alone};
use super::watch::{self, Patience};
use crate::{setup, umbra_run};

/// Programs of a start: Linux takes minutes to boot here.
const BATCH: usize = 25;
/// A kernel that boots prints nothing for minutes.
const PATIENCE: Patience =
    Patience { whole: Duration::from_secs(7200), silence: Duration::from_secs(1200) };

/// The last line of what Linux says of a BUG or WARNING.
const END_OF_TRACE: &str = "---[ end trace";

/// The program of a number for this machine.
pub fn program(machine: booted::Machine, seed: u64) -> Program {
    let program = generate::program(seed, generate::STEPS);
    if machine.is_old() { generate::for_old(program) } else { program }
}

/// The kernel, booted anew for each batch.
pub struct Bochs {
    /// The tool.
    umbra: PathBuf,
    kernel: PathBuf,
    /// The driver, and the kernel's modules.
    initrd: Vec<u8>,
    machine: umbra_run::Machine,
    folder: PathBuf,
}

impl Bochs {
    /// Builds the driver and packs it with the kernel's modules. `umbra` is the tool.
    ///
    /// # Errors
    /// The driver cannot be built.
    pub fn new(
        kernel: &Kernel,
        machine: umbra_run::Machine,
        folder: &Path,
        umbra: PathBuf,
    ) -> Result<Bochs> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let initrd = setup::trial_initramfs(&kernel.modules)?;
        let (kernel, folder) = (kernel.image.clone(), folder.to_path_buf());
        Ok(Bochs { umbra, kernel, initrd, machine, folder })
    }

    /// Boots once. Returns what came over the line, and the tool's last sentence.
    fn start(&self, programs: &[Program]) -> Result<(Vec<u8>, String)> {
        let file = |name: &str| self.folder.join(name);
        let (initrd, line, errors) = (file("trial.cpio.gz"), file("line"), file("errors.txt"));
        let batch: Vec<u8> =
            programs.iter().flat_map(|program| encode(&Request::Run(program.clone()))).collect();
        let archive = [self.initrd.as_slice(), &setup::trial_batch(&batch)?].concat();
        fs::write(&initrd, archive).with_context(|| initrd.display().to_string())?;
        let mut command = umbra_run::command(&self.umbra, &self.kernel, self.machine, None);
        command.arg("--initrd").arg(&initrd).args(["--memory", MEMORY, "--append", APPEND]);
        command.stdin(Stdio::null()).stdout(File::create(&line)?).stderr(File::create(&errors)?);
        watch::run(&mut command, &line, PATIENCE, &|line| Line::read(line).has_told_trouble())?;
        let said = fs::read_to_string(&errors).unwrap_or_default();
        let line = fs::read(&line).with_context(|| line.display().to_string())?;
        Ok((line, String::from(umbra_run::end(&said))))
    }
}

/// What a machine has said so far.
#[derive(Default)]
struct Line {
    /// It has booted, and the driver runs programs.
    ready: bool,
    refused: Option<String>,
    records: Vec<Record>,
    /// The console's text.
    text: String,
    /// What the kernel said first of its trouble since then.
    trouble: Option<Told>,
}

/// A sign of trouble.
struct Told {
    trouble: Trouble,
    /// So many programs had run.
    before: usize,
    /// Linux has said that this is all of it.
    whole: bool,
}

impl Line {
    fn read(line: &[u8]) -> Line {
        let mut read = Line::default();
        let mut frames = Vec::new();
        // Only the console has lines.
        for part in line.split_inclusive(|&byte| byte == b'\n') {
            let (more, words) = unshield(part);
            frames.extend(more);
            while let Some(frame) = take(&mut frames) {
                match frame {
                    Ok(Reply::Ready { .. }) => read.ready = true,
                    Ok(Reply::Refused(why)) => read.refused = read.refused.or(Some(why)),
                    Ok(Reply::Ran(record)) => read.records.push(record),
                    // What the firmware prints is no frame.
                    Err(_) => (),
                }
            }
            let words = String::from_utf8_lossy(&words);
            match &mut read.trouble {
                Some(told) => told.whole |= words.contains(END_OF_TRACE),
                None if read.ready => {
                    let before = read.records.len();
                    read.trouble =
                        trouble(&words).map(|trouble| Told { trouble, before, whole: false });
                }
                None => (),
            }
            read.text += &words;
        }
        read
    }

    /// The kernel has told all of its trouble: by its own word, or as the next program has ended.
    fn has_told_trouble(&self) -> bool {
        self.trouble.as_ref().is_some_and(|told| told.whole || self.records.len() > told.before + 1)
    }

    /// What programs have come to. `end` is how the machine ended.
    fn outcomes(&self, programs: &[Program], end: &str) -> Result<Vec<Outcome>> {
        if let Some(why) = &self.refused {
            bail!("this kernel cannot be tried: {why}");
        }
        if !self.ready {
            let last = trouble(&self.text).map(|trouble| trouble.line);
            bail!("the kernel on trial has not booted: {}", last.as_deref().unwrap_or(end));
        }
        let ended = || {
            let text = String::from("the host ends without a word, or hangs");
            Trouble { line: format!("{text}: {end}"), symptom: text }
        };
        let whole = self.records.len();
        let dead = match &self.trouble {
            Some(Told { trouble, before, .. }) => {
                Some((trouble.clone(), (*before).min(programs.len() - 1)))
            }
            None => (whole < programs.len()).then(|| (ended(), whole)),
        };
        let lived = dead.as_ref().map_or(whole, |(_, at)| *at);
        let judged = programs.iter().zip(&self.records).take(lived);
        let mut outcomes: Vec<Outcome> =
            judged.map(|(program, record)| judge(program, record).into()).collect();
        if let Some((Trouble { line, symptom }, _)) = dead {
            outcomes.push(Outcome::Found(Found {
                symptom: format!("host: {symptom}"),
                detail: line,
                step: None,
                log: self.text.clone(),
            }));
        }
        Ok(outcomes)
    }
}

impl Suspect for Bochs {
    fn batch(&self) -> usize {
        BATCH
    }

    fn run(&mut self, program: &Program) -> Result<Outcome> {
        alone(self, program)
    }

    fn run_all(&mut self, programs: &[Program]) -> Result<Vec<Outcome>> {
        let (line, end) = self.start(programs)?;
        Line::read(&line).outcomes(programs, &end)
    }
}

#[cfg(test)]
mod tests {
    use umbra_reference::hardware::Temper;
    use umbra_reference::machine::Bare;
    use umbra_trial::simulated;
    use umbra_trial::wire::shield;

    use super::*;

    fn programs() -> Vec<Program> {
        (1..4).map(|seed| generate::program(seed, 40)).collect()
    }

    fn reply(reply: &Reply) -> Vec<u8> {
        shield(&encode(reply)).collect()
    }

    fn ran(program: &Program) -> Vec<u8> {
        let start = simulated::start(program, Temper::STICKY);
        reply(&Reply::Ran(simulated::run(Bare::new(start), program)))
    }

    fn symptoms(line: &[u8], programs: &[Program]) -> Vec<Option<String>> {
        let outcomes = Line::read(line).outcomes(programs, "triple fault").unwrap();
        let symptom = |outcome| match outcome {
            Outcome::Clean(_) => None,
            Outcome::Found(found) => Some(found.symptom),
        };
        outcomes.into_iter().map(symptom).collect()
    }

    #[test]
    fn trouble_is_that_of_the_program_that_runs() {
        let programs = programs();
        let boot = b"SeaBIOS\nWARNING: an old CPU\n---[ end trace 0 ]---\n".to_vec();
        let ready =
            [boot.clone(), reply(&Reply::Ready { release: "6.1".into(), text: None })].concat();
        let warning = b"[ 9.0] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2 [kvm]\n".to_vec();
        let all: Vec<Vec<u8>> = programs.iter().map(ran).collect();
        let quiet = [vec![ready.clone()], all.clone()].concat().concat();
        assert_eq!(symptoms(&quiet, &programs), [None, None, None]);
        // What comes behind it is run again.
        let loud = [&ready, &all[0], &warning, &all[1], &all[2]].map(Clone::clone).concat();
        let found = Some(String::from("host: WARNING: at a.c:1 f [kvm]"));
        assert_eq!(symptoms(&loud, &programs), [None, found]);
        assert!(Line::read(&loud).has_told_trouble());
        // No more than a part of the line has come.
        let cut = [&ready[..], &all[0], &warning[..20]].concat();
        assert!(!Line::read(&cut).has_told_trouble());
        let so_far = [&ready, &all[0], &warning, &all[1]].map(Clone::clone).concat();
        assert!(!Line::read(&so_far).has_told_trouble());
        let told = [&so_far, &b"[ 9.1] ---[ end trace 0000000000000000 ]---\n".to_vec()];
        assert!(Line::read(&told.map(Clone::clone).concat()).has_told_trouble());
        let dead = [&ready, &all[0]].map(Clone::clone).concat();
        let end = Some(String::from("host: the host ends without a word, or hangs"));
        assert_eq!(symptoms(&dead, &programs), [None, end]);
        let why = |line: &[u8]| {
            let outcomes = Line::read(line).outcomes(&programs, "triple fault");
            outcomes.err().unwrap().to_string()
        };
        let not_booted = "the kernel on trial has not booted: ";
        assert_eq!(why(&boot), format!("{not_booted}WARNING: an old CPU"));
        assert_eq!(why(b""), format!("{not_booted}triple fault"));
        let refused = reply(&Reply::Refused(String::from("no KVM")));
        assert_eq!(why(&refused), "this kernel cannot be tried: no KVM");
    }
}
