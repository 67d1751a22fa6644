//! Waiting for another apt: package managers run one at a time, and none of them takes long.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;

/// How long another apt may take. An upgrade of a whole system does.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How often it is tried again meanwhile.
const PAUSE: Duration = Duration::from_secs(2);

/// How apt says that another process holds a lock, in the language that [`run`] sets.
const LOCKED: &[&str] =
    &["E: Could not get lock", "E: Unable to acquire the dpkg frontend lock", "E: Unable to lock"];

fn is_lock(line: &str) -> bool {
    LOCKED.iter().any(|words| line.starts_with(words))
}

/// How one try has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempt {
    succeeded: bool,
    /// In words.
    status: String,
    /// What it said on standard error.
    said: String,
}

/// Runs apt; the user sees what it says. While another process holds a lock, it is tried again.
///
/// `DPkg::Lock::Timeout` makes apt itself wait, but only for dpkg's locks: `apt-get update` fails
/// at once where the lock of the package lists is held, and `apt-get download` where that of its
/// cache is.
///
/// # Errors
/// It cannot be started, or fails; or the lock was held all the time.
pub fn run(command: &mut Command) -> Result<()> {
    let line = process::describe(command);
    command.args(["-o", &format!("DPkg::Lock::Timeout={}", PATIENCE.as_secs())]);
    // Its words are looked at.
    command.env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    wait(&line, || attempt(command), || start.elapsed(), thread::sleep)
}

/// Tries until it succeeds, fails for another reason than a lock, or patience has ended.
fn wait(
    line: &str,
    mut attempt: impl FnMut() -> Result<Attempt>,
    elapsed: impl Fn() -> Duration,
    mut pause: impl FnMut(Duration),
) -> Result<()> {
    let mut waits = false;
    loop {
        let Attempt { succeeded, status, said } = attempt()?;
        if succeeded {
            return Ok(());
        }
        let Some(lock) = said.lines().find(|line| is_lock(line)) else {
            bail!("{line} failed with {status}");
        };
        if elapsed() + PAUSE > PATIENCE {
            bail!(
                "another process has held a lock of Debian's package manager for {} minutes ({}); end it, \
                 or wait for its end, and try again",
                PATIENCE.as_secs() / 60,
                lock.trim_start_matches("E: ")
            );
        }
        if !waits {
            eprintln!(
                "xtask: waiting for another package manager, for {} minutes at most",
                PATIENCE.as_secs() / 60
            );
            waits = true;
        }
        pause(PAUSE);
    }
}

/// Runs it once, and passes on what it says on standard error.
fn attempt(command: &mut Command) -> Result<Attempt> {
    let program = command.get_program().display().to_string();
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let stderr = child.stderr.take().context("apt has a standard error")?;
    let mut said = String::new();
    for line in BufReader::new(stderr).split(b'\n') {
        let line = line.with_context(|| format!("reading what {program} says"))?;
        let line = String::from_utf8_lossy(&line);
        if !is_lock(&line) {
            eprintln!("{line}");
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status: ExitStatus = child.wait().with_context(|| format!("waiting for {program}"))?;
    Ok(Attempt { succeeded: status.success(), status: status.to_string(), said })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const HELD: &str =
        "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 5 (apt-get)\n";

    fn failed(said: &str) -> Attempt {
        Attempt { succeeded: false, status: "exit status: 100".into(), said: said.into() }
    }

    fn succeeded() -> Attempt {
        Attempt {
            succeeded: true,
            status: "exit status: 0".into(),
            said: "W: something else\n".into(),
        }
    }

    /// An apt whose tries end like that, one after the other, and the last one for ever. Returns
    /// how it went, after how many tries, and after which time.
    fn try_with(ends: &[Attempt]) -> (Result<()>, usize, Duration) {
        let (tries, time) = (Cell::new(0), Cell::new(Duration::ZERO));
        let attempt = || {
            let end = ends.get(tries.get()).or(ends.last()).cloned();
            tries.set(tries.get() + 1);
            end.context("an apt that ends")
        };
        let outcome =
            wait("apt-get update", attempt, || time.get(), |pause| time.set(time.get() + pause));
        (outcome, tries.get(), time.get())
    }

    #[test]
    fn a_lock_is_waited_for() {
        let dpkg =
            failed("E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend)\n");
        let (outcome, tries, _) = try_with(&[failed(HELD), failed(HELD), dpkg, succeeded()]);
        assert!(outcome.is_ok());
        assert_eq!(tries, 4);
    }

    #[test]
    fn patience_ends_in_one_sentence() {
        let (outcome, _, time) = try_with(&[failed(HELD)]);
        let sentence = outcome.unwrap_err().to_string();
        assert!(
            sentence.contains("for 10 minutes (Could not get lock /var/lib/apt/lists/lock."),
            "{sentence}"
        );
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(time <= PATIENCE && time + 2 * PAUSE > PATIENCE, "{time:?}");
    }

    #[test]
    fn another_failure_is_not_waited_for() {
        // Apt says this while it waits by itself.
        let waited = "Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend.\nE: No space left\n";
        for said in ["", "E: Unable to locate package nothing\n", waited] {
            let (outcome, tries, _) = try_with(&[failed(said), succeeded()]);
            let sentence = outcome.unwrap_err().to_string();
            assert_eq!(
                (sentence.as_str(), tries),
                ("apt-get update failed with exit status: 100", 1),
                "{said}"
            );
        }
    }

    /// The whole way, with a program that finds the lock held once.
    #[test]
    fn a_program_is_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut apt = Command::new("sh");
        apt.current_dir(folder.path()).args([
            "-c",
            "test -e done || { touch done; echo 'E: Unable to lock x' >&2; exit 100; }",
        ]);
        run(&mut apt).unwrap();
        let mut broken = Command::new("sh");
        broken.args(["-c", "echo 'E: broken' >&2; exit 100"]);
        assert!(
            run(&mut broken).unwrap_err().to_string().ends_with("failed with exit status: 100")
        );
    }
}
