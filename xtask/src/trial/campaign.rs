//! Random programs, one after the other, for as long as one likes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use umbra_trial::judge::Tally;
use umbra_trial::program::Program;

use super::finding;
use super::minimize::minimize;
use super::page;
use super::suspect::{Found, Outcome, Suspect};

/// What is told of a finding that the program alone does not show.
const NOT_ALONE: &str =
    "(The program alone does not show it again: those before it may matter, or chance.)";

/// How often the user hears of it.
const PROGRESS: Duration = Duration::from_secs(5);

/// When a campaign ends.
pub struct Limits {
    /// After so long, without what making programs short takes.
    pub time: Duration,
    /// After so many programs.
    pub programs: Option<u64>,
    /// How long one program may be made short.
    pub shorten: Duration,
    /// At the first finding.
    pub first: bool,
}

/// What is known so far: the report, and where the next run goes on.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// What is on trial: a package, or the name of a place.
    pub suspect: String,
    /// The options of the command that name it.
    pub options: String,
    /// The emulated CPU.
    pub cpu: String,
    /// The number of the first program.
    pub seed: u64,
    /// Of a merged report: the first number of each campaign, and how many programs have run.
    #[serde(default)]
    pub campaigns: Vec<(u64, u64)>,
    /// Programs that have run.
    pub programs: u64,
    /// What they came to.
    #[serde(flatten)]
    pub tally: Tally,
    /// Seconds that all of this took.
    pub seconds: f64,
    /// How much of the suspect's code has run, if that was asked for.
    #[serde(default)]
    pub coverage: Option<String>,
    /// What was found, by symptom.
    pub findings: Vec<Finding>,
}

impl State {
    /// Reads a report.
    ///
    /// # Errors
    /// There is none, or it is none.
    pub fn read(file: &Path) -> Result<State> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| {
            format!("{} is no report of a trial; remove its folder to begin anew", file.display())
        })
    }

    /// The first number of each campaign, and how many programs have run.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let own = [(self.seed, self.programs)];
        let all = if self.campaigns.is_empty() { own.to_vec() } else { self.campaigns.clone() };
        all.into_iter()
    }

    /// Which programs have run, in words.
    pub fn numbers(&self) -> String {
        let ranges: Vec<String> = self.ranges().map(|(seed, _)| seed.to_string()).collect();
        match ranges.as_slice() {
            [seed] => format!("from number {seed} on"),
            many => format!("from the numbers {} on", many.join(", ")),
        }
    }

    /// How far the campaign is, in a line.
    pub fn line(&self) -> String {
        let State { suspect, programs, tally, seconds, findings, .. } = self;
        let Tally { steps, judged, .. } = *tally;
        let rate = steps as f64 / seconds.max(0.001);
        format!(
            "{suspect}: {programs} programs, {steps} steps ({rate:.0} a second), {judged} accesses judged, {} findings",
            findings.len()
        )
    }
}

/// Something that was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What tells it from others.
    pub symptom: String,
    /// What was seen and expected with the shortest program.
    pub detail: String,
    /// The program that found it.
    pub seed: u64,
    /// So many programs had run before.
    pub after_programs: u64,
    /// So many seconds had gone.
    pub after_seconds: f64,
    /// So many programs have shown it.
    pub times: u64,
    /// Steps of the shortest program.
    pub length: usize,
    /// No single step of it can be left out.
    pub minimal: bool,
}

/// What a campaign is about.
pub struct Identity {
    /// What is on trial: a package, or the name of a place.
    pub suspect: String,
    /// The options of the command that name it.
    pub options: String,
    /// The emulated CPU.
    pub cpu: String,
}

/// A campaign on one suspect.
pub struct Campaign {
    folder: PathBuf,
    state: State,
}

impl Campaign {
    /// Goes on with the campaign of these options, or begins one.
    ///
    /// # Errors
    /// What an earlier run has left cannot be read, or is another campaign's.
    pub fn open(root: &Path, identity: &Identity, seed: u64) -> Result<Campaign> {
        let Identity { suspect, options, cpu } = identity;
        let folder = root.join(format!("seed-{seed}"));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let report = folder.join("report.json");
        let state = if report.exists() {
            let state = State::read(&report)?;
            ensure!(
                state.cpu == *cpu && state.seed == seed,
                "{} is of CPU {}; remove its folder to begin anew",
                report.display(),
                state.cpu
            );
            state
        } else {
            State {
                suspect: suspect.clone(),
                options: options.clone(),
                cpu: cpu.clone(),
                seed,
                campaigns: Vec::new(),
                programs: 0,
                tally: Tally::default(),
                seconds: 0.0,
                coverage: None,
                findings: Vec::new(),
            }
        };
        Ok(Campaign { folder, state })
    }

    /// Runs programs until a limit is reached. Returns what is known then.
    ///
    /// # Errors
    /// The suspect's, or a report cannot be written.
    pub fn run(
        mut self,
        suspect: &mut impl Suspect,
        limits: &Limits,
        program: impl Fn(u64) -> Program,
    ) -> Result<State> {
        if self.state.programs > 0 {
            eprintln!(
                "xtask: going on behind program {} of {}",
                self.state.programs,
                self.folder.display()
            );
        }
        let (before, start) = (self.state.seconds, Instant::now());
        let first = self.state.programs;
        let mut told = Instant::now();
        let mut shortening = Duration::ZERO;
        loop {
            let spent = start.elapsed().saturating_sub(shortening);
            let enough =
                limits.programs.is_some_and(|programs| self.state.programs - first >= programs);
            if spent >= limits.time || enough || limits.first && !self.state.findings.is_empty() {
                break;
            }
            let rest = limits.programs.map_or(u64::MAX, |all| all - (self.state.programs - first));
            let batch = (suspect.batch() as u64).min(rest);
            let from = self.state.seed.wrapping_add(self.state.programs);
            let programs: Vec<Program> =
                (0..batch).map(|number| program(from.wrapping_add(number))).collect();
            let outcomes = suspect.run_all(&programs)?;
            self.state.seconds = before + (start.elapsed() - shortening).as_secs_f64();
            for (program, outcome) in programs.iter().zip(outcomes) {
                match outcome {
                    Outcome::Clean(tally) => self.state.tally.add(&tally),
                    Outcome::Found(found) => {
                        let begun = Instant::now();
                        self.found(suspect, limits, program, &found)?;
                        shortening += begun.elapsed();
                        self.state.tally.steps += found.step.unwrap_or(0) as u64;
                    }
                }
                self.state.programs += 1;
                if limits.first && !self.state.findings.is_empty() {
                    break;
                }
            }
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                self.save()?;
                eprintln!(
                    "xtask: {}, {:.0} s left",
                    self.state.line(),
                    limits.time.saturating_sub(start.elapsed() - shortening).as_secs_f64()
                );
            }
        }
        if let Some(coverage) = suspect.coverage(&self.folder)? {
            self.state.coverage = Some(coverage);
        }
        self.save()?;
        println!("{}", self.state.line());
        if let Some(coverage) = &self.state.coverage {
            println!("{coverage}");
        }
        for (number, finding) in (1..).zip(&self.state.findings) {
            println!(
                "finding {number}: {}, by program {}, {} steps of it suffice, seen {} times",
                finding.symptom, finding.seed, finding.length, finding.times
            );
        }
        println!("report: {}", self.folder.join("report.html").display());
        Ok(self.state)
    }

    fn found(
        &mut self,
        suspect: &mut impl Suspect,
        limits: &Limits,
        program: &Program,
        found: &Found,
    ) -> Result<()> {
        if let Some(known) =
            self.state.findings.iter_mut().find(|known| known.symptom == found.symptom)
        {
            known.times += 1;
            return Ok(());
        }
        eprintln!("xtask: program {} finds: {}", program.seed, found.symptom);
        let mut told = Instant::now();
        let progress = |steps: usize| {
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                eprintln!("xtask: {steps} steps of it suffice so far");
            }
        };
        // As it is at first: making it short can take minutes, and be broken off.
        self.keep(program, program, found.clone(), false)?;
        let (short, last, minimal) = minimize(suspect, program, found, limits.shorten, progress)?;
        self.state.findings.pop();
        let alone = minimal || short.steps.len() < program.steps.len();
        let detail =
            if alone { last.detail.clone() } else { format!("{}\n{NOT_ALONE}", last.detail) };
        self.keep(
            program,
            &short,
            Found { symptom: found.symptom.clone(), detail, ..last },
            minimal,
        )
    }

    /// Writes a new finding of a program, with a short one that shows it.
    fn keep(
        &mut self,
        program: &Program,
        short: &Program,
        found: Found,
        minimal: bool,
    ) -> Result<()> {
        let finding = Finding {
            symptom: found.symptom.clone(),
            detail: found.detail.clone(),
            seed: program.seed,
            after_programs: self.state.programs,
            after_seconds: self.state.seconds,
            times: 1,
            length: short.steps.len(),
            minimal,
        };
        let number = self.state.findings.len() + 1;
        finding::write(&self.folder, number, &self.state, &finding, short, &found)?;
        self.state.findings.push(finding);
        self.save()
    }

    fn save(&self) -> Result<()> {
        save(&self.folder, &self.state)
    }
}

/// Writes the report, in its three forms.
///
/// # Errors
/// A file cannot be written, or what is written about a finding cannot be read.
pub fn save(folder: &Path, state: &State) -> Result<()> {
    finding::put(&folder.join("report.json"), &serde_json::to_string_pretty(state)?)?;
    finding::put(&folder.join("report.txt"), &finding::report(state))?;
    let numbers = 1..=state.findings.len();
    let texts: Vec<String> =
        numbers.map(|number| finding::read(folder, number)).collect::<Result<_>>()?;
    finding::put(&folder.join("report.html"), &page::page(state, &texts))
}

#[cfg(test)]
pub(super) mod tests {
    use umbra_reference::hardware::Temper;
    use umbra_reference::machine::Bare;
    use umbra_trial::judge::judge;
    use umbra_trial::{generate, simulated};

    use super::*;

    /// A hypervisor on the reference machine that dies of a step, and else is as bare hardware.
    struct Dies(u64);

    impl Suspect for Dies {
        fn run(&mut self, program: &Program) -> Result<Outcome> {
            let deadly = program.seed.is_multiple_of(self.0) && program.steps.len() > 10;
            if deadly {
                let (detail, log) = (String::from("BUG: x"), String::from("[ 1.0] BUG: x\n"));
                return Ok(Outcome::Found(Found {
                    symptom: "host: BUG: x".into(),
                    detail,
                    step: None,
                    log,
                }));
            }
            let start = simulated::start(program, Temper::STICKY);
            Ok(Outcome::Clean(judge(program, &simulated::run(Bare::new(start), program)).unwrap()))
        }
    }

    /// A campaign with findings: symptom, and steps of the shortest program.
    pub fn state(seed: u64, programs: u64, findings: &[(&str, usize)]) -> State {
        let finding = |&(symptom, length): &(&str, usize)| Finding {
            symptom: symptom.into(),
            detail: String::new(),
            seed: seed + 1,
            after_programs: 1,
            after_seconds: 2.5,
            times: 1,
            length,
            minimal: true,
        };
        State {
            suspect: "linux-image-x".into(),
            options: "--kernel linux-image-x".into(),
            cpu: "EPYC".into(),
            seed,
            campaigns: Vec::new(),
            programs,
            tally: Tally { steps: 3600, judged: 2000, excused: 10, faults: 900, defects: 0 },
            seconds: 20.0,
            coverage: None,
            findings: findings.iter().map(finding).collect(),
        }
    }

    /// Finds something in the second program of a batch, and nothing in any that runs alone.
    struct Together;

    impl Suspect for Together {
        fn run(&mut self, _: &Program) -> Result<Outcome> {
            Ok(Outcome::Clean(Tally::default()))
        }

        fn batch(&self) -> usize {
            4
        }

        fn run_all(&mut self, programs: &[Program]) -> Result<Vec<Outcome>> {
            let outcome = |(at, _)| match at {
                1 => Outcome::Found(Found {
                    symptom: "guest: x".into(),
                    detail: "seen: y".into(),
                    step: Some(3),
                    log: String::new(),
                }),
                _ => Outcome::Clean(Tally::default()),
            };
            Ok(programs.iter().enumerate().map(outcome).collect())
        }
    }

    #[test]
    fn a_batch_ends_where_the_limit_is_and_what_needs_it_is_told() {
        let root = tempfile::tempdir().unwrap();
        let campaign = Campaign::open(root.path(), &identity("EPYC"), 1).unwrap();
        let found = campaign.run(&mut Together, &limits(6), |seed| generate::program(seed, 60));
        assert_eq!(found.unwrap().findings.len(), 1);
        let folder = root.path().join("seed-1");
        let report = fs::read_to_string(folder.join("report.json")).unwrap();
        let state: State = serde_json::from_str(&report).unwrap();
        let finding = &state.findings[0];
        assert_eq!((state.programs, finding.seed, finding.times), (6, 2, 2));
        assert_eq!((finding.length, finding.minimal), (60, false));
        let page = fs::read_to_string(folder.join("finding-1.txt")).unwrap();
        assert!(page.contains(NOT_ALONE), "{page}");
    }

    /// Finds something at once, and cannot be run again.
    struct Once(bool);

    impl Suspect for Once {
        fn run(&mut self, _: &Program) -> Result<Outcome> {
            ensure!(!std::mem::replace(&mut self.0, true), "broken off");
            Ok(Outcome::Found(Found {
                symptom: "host: BUG: x".into(),
                detail: "BUG: x".into(),
                step: None,
                log: String::new(),
            }))
        }
    }

    #[test]
    fn a_finding_is_kept_though_making_it_short_is_broken_off() {
        let root = tempfile::tempdir().unwrap();
        let campaign = Campaign::open(root.path(), &identity("EPYC"), 1).unwrap();
        let run = campaign.run(&mut Once(false), &limits(3), |seed| generate::program(seed, 60));
        assert_eq!(run.unwrap_err().to_string(), "broken off");
        let folder = root.path().join("seed-1");
        let state = State::read(&folder.join("report.json")).unwrap();
        assert_eq!((state.findings.len(), state.findings[0].length), (1, 60));
        let page = fs::read_to_string(folder.join("finding-1.txt")).unwrap();
        assert!(page.contains("host: BUG: x"), "{page}");
    }

    fn identity(cpu: &str) -> Identity {
        Identity {
            suspect: "linux-image-x".into(),
            options: "--kernel linux-image-x".into(),
            cpu: cpu.into(),
        }
    }

    fn limits(programs: u64) -> Limits {
        let time = Duration::from_secs(600);
        Limits { time, programs: Some(programs), shorten: time, first: false }
    }

    #[test]
    fn a_campaign_reports_and_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let run = |programs| {
            let campaign = Campaign::open(root.path(), &identity("EPYC"), 1).unwrap();
            campaign
                .run(&mut Dies(4), &limits(programs), |seed| generate::program(seed, 60))
                .unwrap()
                .findings
                .len()
        };
        assert_eq!(run(3), 0);
        assert_eq!(run(6), 1);
        let folder = root.path().join("seed-1");
        let report = fs::read_to_string(folder.join("report.json")).unwrap();
        let state: State = serde_json::from_str(&report).unwrap();
        assert_eq!((state.programs, state.findings.len()), (9, 1));
        let finding = &state.findings[0];
        assert_eq!((finding.seed, finding.times, finding.after_programs), (4, 2, 3));
        assert_eq!((finding.length, finding.minimal), (11, true));
        let page = fs::read_to_string(folder.join("finding-1.txt")).unwrap();
        for part in ["host: BUG: x", "--replay", "guest: ", "linux-image-x", "[ 1.0] BUG: x"] {
            assert!(page.contains(part), "{part} is missing: {page}");
        }
        let html = fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(html.contains("The kernel's log"), "{html}");
        let again = super::super::read_program(&folder.join("finding-1.json")).unwrap();
        assert_eq!(again.steps.len(), 11);
        let other = Campaign::open(root.path(), &identity("Opteron_G4"), 1).err().unwrap();
        assert!(other.to_string().contains("is of CPU EPYC"), "{other}");
    }
}
