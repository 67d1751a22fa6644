//! The tree with all mutations woven into it, built once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use umbra_sabotage::{Catcher, Mutation, Switch, VARIABLE};

use crate::{process, woven};

/// So many random programs a broken rule may survive.
const PROGRAMS: &str = "2000";
/// So many must pass while no rule is broken.
const CONTROL: &str = "100";
/// So long one catcher may take: the slowest takes a minute on an idle machine.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What became of a catcher.
pub enum Outcome {
    /// It noticed nothing. What it printed.
    Passes(String),
    /// It noticed something. What it printed.
    Fails(String),
    /// It was ended after a long time.
    Hangs,
}

/// The copy.
pub struct Copy {
    folder: PathBuf,
    /// The programs built from it, by the names of their targets.
    programs: BTreeMap<String, PathBuf>,
}

impl Copy {
    /// Copies the tree, weaves the mutations in, and builds what catches them.
    pub fn build(mutations: &[Mutation]) -> Result<Copy> {
        let copy = woven::Copy::fresh("sabotage")?;
        copy.write_first(&umbra_sabotage::weave(&copy.src(), mutations, Switch::Environment)?)?;
        let programs = compile(&copy, mutations)?;
        Ok(Copy { folder: copy.folder, programs })
    }

    /// Copies the tree, weaves the mutations in, and sees to it that the compiler takes them.
    pub fn check(mutations: &[Mutation]) -> Result<()> {
        let copy = woven::Copy::fresh("sabotage")?;
        copy.write_first(&umbra_sabotage::weave(&copy.src(), mutations, Switch::Environment)?)?;
        let mut cargo = process::cargo();
        cargo.current_dir(&copy.tree).args(["check", "--package", "umbra-mmu", "--target-dir"]);
        process::capture(cargo.arg(copy.folder.join("check"))).map(drop)
    }

    /// Sees to it that all of these pass while no rule is broken, and so do the tests beside them:
    /// the copy does what the tree does.
    pub fn check_intact<'a>(&self, catchers: impl Iterator<Item = &'a Catcher>) -> Result<()> {
        let catchers = catchers.collect::<BTreeSet<_>>();
        for catcher in &catchers {
            match self.run(catcher, 0)? {
                // A test that is not there passes, too.
                Outcome::Passes(output)
                    if **catcher != Catcher::RandomPrograms && !output.contains("1 passed") =>
                {
                    bail!("there is no test {catcher}")
                }
                outcome => expect_pass(&catcher.to_string(), outcome)?,
            }
        }
        for target in
            catchers.iter().filter_map(|catcher| catcher.target()).collect::<BTreeSet<_>>()
        {
            expect_pass(target, self.start(target, &[], 0)?)?;
        }
        Ok(())
    }

    /// Runs a catcher while the rule of this number is broken; 0 is none.
    pub fn run(&self, catcher: &Catcher, number: u32) -> Result<Outcome> {
        match catcher {
            Catcher::RandomPrograms => self.start(
                "hunt",
                &["--programs", if number == 0 { CONTROL } else { PROGRAMS }],
                number,
            ),
            Catcher::Test { target, test, .. } => self.start(target, &["--exact", test], number),
            Catcher::Guest { .. } => {
                bail!("{catcher} runs the whole hypervisor, not the MMU alone")
            }
        }
    }

    fn start(&self, target: &str, arguments: &[&str], number: u32) -> Result<Outcome> {
        let program =
            self.programs.get(target).with_context(|| format!("cargo built no {target}"))?;
        let log = self.folder.join("output.txt");
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).env(VARIABLE, number.to_string());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let start = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("starting {}", process::describe(&command)))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                return Ok(Outcome::Hangs);
            }
            thread::sleep(Duration::from_millis(20));
        };
        let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok(if status.success() { Outcome::Passes(output) } else { Outcome::Fails(output) })
    }
}

fn expect_pass(name: &str, outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Passes(_) => Ok(()),
        Outcome::Fails(output) => bail!("{name}: fails with no rule broken:\n{output}"),
        Outcome::Hangs => bail!("{name}: does not end with no rule broken"),
    }
}

/// Builds all catchers; returns where they are.
fn compile(copy: &woven::Copy, mutations: &[Mutation]) -> Result<BTreeMap<String, PathBuf>> {
    let (mut packages, mut tests) = (BTreeSet::new(), BTreeSet::new());
    for catcher in mutations.iter().flat_map(|mutation| &mutation.caught_by) {
        if let Catcher::Test { package, target, .. } = catcher {
            packages.insert(package.as_str());
            tests.insert(target.as_str());
        }
    }
    let mut programs =
        copy.build(&["build", "--package", "umbra-reference", "--example", "hunt"])?;
    let mut arguments = vec!["test", "--no-run"];
    arguments.extend(packages.iter().flat_map(|package| ["--package", package]));
    arguments.extend(tests.iter().flat_map(|test| ["--test", test]));
    programs.extend(copy.build(&arguments)?);
    Ok(programs)
}
