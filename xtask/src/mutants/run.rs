//! The tests that judge mutants.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use umbra_sabotage::VARIABLE;

use crate::woven;

/// Some tests of a target: its name, and which of its tests.
type Part = (&'static str, &'static [&'static str]);

/// Searches and bounds over thousands of entries, which take seconds.
const LONG: &[&str] = &["bound::", "address_space::a_table_that_thousands"];
const OTHERS: &[&str] = &["--skip", LONG[0], "--skip", LONG[1]];

const MMU: &str = "tests of the MMU";
const REFERENCE: &str = "tests of the reference machine";
/// The stage in which this many random programs run: about a minute.
const MANY_PROGRAMS: &str = "a minute of fixed programs";
const PROGRAMS: &str = "1200";

/// What must notice a mutant: a stage, and some of its tests. The cheap ones come first, whatever
/// stage they are of, and of these the ones that notice most.
const PARTS: [(&str, Part); 14] = [
    (MMU, ("umbra_mmu", &[])),
    (MMU, ("mmu", OTHERS)),
    (MMU, ("memory", &[])),
    (REFERENCE, ("formats", &[])),
    (REFERENCE, ("fixed", &[])),
    (REFERENCE, ("regressions", &[])),
    (REFERENCE, ("cve_2026_46113", &[])),
    (REFERENCE, ("cve_2026_53359", &[])),
    (REFERENCE, ("cve_2026_64561", &[])),
    (MMU, ("mmu", LONG)),
    (REFERENCE, ("exhaustive", &[])),
    (REFERENCE, ("schedule", &[])),
    (REFERENCE, ("hostile", &[])),
    (MANY_PROGRAMS, ("fixed", &[])),
];

/// A test that takes this many times longer than it should, and some seconds, does not end.
const PATIENCE: u32 = 4;
const LEAST: Duration = Duration::from_secs(3);
/// KiB of memory for one test program: many times what each needs.
const MEMORY: u32 = 8 << 20;

/// The tests that take several seconds, or the others.
fn parts(long: bool) -> impl Iterator<Item = (&'static str, Part)> {
    PARTS.into_iter().filter(move |&(stage, part)| is_long(stage, part) == long)
}

fn is_long(stage: &str, (target, arguments): Part) -> bool {
    let quick = ["umbra_mmu", "mmu", "memory", "formats", "fixed", "regressions"];
    stage == MANY_PROGRAMS || arguments == LONG || !quick.contains(&target)
}

fn name((target, arguments): Part) -> String {
    [&[target], arguments].concat().join(" ")
}

/// The tests, built.
pub struct Tests {
    programs: BTreeMap<String, PathBuf>,
    /// CPU time that each may take.
    limits: BTreeMap<(&'static str, Part), Duration>,
}

/// How a test program ended.
enum End {
    Passes,
    /// The first test that failed, if one is named.
    Fails(String),
    Hangs,
}

impl Tests {
    /// Builds them.
    pub fn build(copy: &woven::Copy) -> Result<Tests> {
        let mut arguments =
            vec!["test", "--no-run", "--package", "umbra-mmu", "--package", "umbra-reference"];
        arguments.push("--lib");
        let targets: BTreeSet<&str> = PARTS.iter().map(|&(_, (target, _))| target).collect();
        for target in targets.into_iter().filter(|&target| target != "umbra_mmu") {
            arguments.extend(["--test", target]);
        }
        Ok(Tests { programs: copy.build(&arguments)?, limits: BTreeMap::new() })
    }

    /// Sees to it that all pass while no mutant is chosen, and how long each takes.
    pub fn measure(&mut self, long: bool) -> Result<()> {
        for (stage, part) in parts(long) {
            let name = name(part);
            let before = cpu_time()?;
            match self.start(stage, part, 0)? {
                End::Passes => (),
                End::Fails(test) => bail!("{name} {test} fails without a mutant"),
                End::Hangs => bail!("{name} does not end without a mutant"),
            }
            let took = cpu_time()? - before;
            println!("{:6.1} s of CPU without a mutant: {stage}, {name}", took.as_secs_f64());
            self.limits.insert((stage, part), PATIENCE * took + LEAST);
        }
        Ok(())
    }

    /// The limits of other tests, built from other source.
    pub fn with_limits_of(mut self, others: &Tests) -> Tests {
        self.limits.clone_from(&others.limits);
        self
    }

    /// Which stage notices the mutant of this number, and by which test; `None` if none does. The
    /// tests are either those that take seconds, or the others.
    pub fn judge(&self, number: u32, long: bool) -> Result<Option<(String, String)>> {
        for (stage, part) in parts(long) {
            let by = match self.start(stage, part, number)? {
                End::Passes => continue,
                End::Fails(test) => format!("{} {test}", part.0),
                End::Hangs => format!("{} does not end", part.0),
            };
            return Ok(Some((stage.to_owned(), by)));
        }
        Ok(None)
    }

    /// Runs a test program until a test fails.
    fn start(&self, stage: &'static str, part: Part, number: u32) -> Result<End> {
        let (target, arguments) = part;
        let program =
            self.programs.get(target).with_context(|| format!("cargo built no {target}"))?;
        let seconds = self.limits.get(&(stage, part)).map_or(600, Duration::as_secs);
        let limits = format!(r#"ulimit -t {seconds} && ulimit -v {MEMORY} && exec "$0" "$@""#);
        let mut command = Command::new("sh");
        command.arg("-c").arg(limits).arg(program).args(arguments);
        command.env("RUST_TEST_THREADS", "1");
        command.env(VARIABLE, number.to_string()).env("RUST_BACKTRACE", "0");
        if stage == MANY_PROGRAMS {
            command.env("UMBRA_FIXED_PROGRAMS", PROGRAMS);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("starting {target}"))?;
        let output = child.stdout.take().context("the output of a test")?;
        let mut failed = None;
        for line in BufReader::new(output).lines() {
            if let Some(test) = failed_test(&line?) {
                failed = Some(test.to_owned());
                child.kill()?;
                break;
            }
        }
        let status = child.wait()?;
        const SIGXCPU: i32 = 24;
        Ok(match failed {
            Some(test) => End::Fails(test),
            None if status.success() => End::Passes,
            None if status.signal() == Some(SIGXCPU) => End::Hangs,
            None => End::Fails(format!("ends by {status}")),
        })
    }
}

/// The test that this line says has failed.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// What all programs that ended took.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
        Duration::new(time.tv_sec() as u64, 0) + Duration::from_micros(time.tv_usec() as u64)
    });
    Ok(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_fails_is_known_by_its_line() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 1 passed"), None);
    }
}
