//! Waits for an emulator whose output goes to a file.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a machine may take.
#[derive(Clone, Copy)]
pub struct Patience {
    /// In all.
    pub whole: Duration,
    /// Without any output.
    pub silence: Duration,
}

/// How often its output is looked at: all of it is read each time.
const LOOK: Duration = Duration::from_millis(500);

/// How a machine ended.
pub enum Ended {
    /// Its program has ended.
    Itself(ExitStatus),
    /// It took too long, or nothing came any more.
    Late,
    /// What came was enough.
    Enough,
}

/// Runs a machine until it ends, is late, or its output is enough.
///
/// # Errors
/// It cannot be started, or its output cannot be read.
pub fn run(
    command: &mut Command,
    output: &Path,
    patience: Patience,
    enough: &dyn Fn(&[u8]) -> bool,
) -> Result<Ended> {
    let mut child = command.spawn().context("starting the machine")?;
    let start = Instant::now();
    let (mut seen, mut told, mut looked) = (0, start, start);
    let ended = loop {
        if let Some(status) = child.try_wait().context("waiting for the machine")? {
            return Ok(Ended::Itself(status));
        }
        if start.elapsed() > patience.whole || told.elapsed() > patience.silence {
            break Ended::Late;
        }
        sleep(Duration::from_millis(20));
        if looked.elapsed() < LOOK {
            continue;
        }
        looked = Instant::now();
        let length = output.metadata().map_or(0, |file| file.len());
        if length != seen {
            (seen, told) = (length, Instant::now());
            if enough(&fs::read(output)?) {
                break Ended::Enough;
            }
        }
    };
    child.kill().context("ending the machine")?;
    child.wait()?;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn ended(script: &str, silence: u64, enough: &dyn Fn(&[u8]) -> bool) -> Ended {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("output");
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdout(File::create(&output).unwrap());
        let patience =
            Patience { whole: Duration::from_secs(60), silence: Duration::from_millis(silence) };
        run(&mut shell, &output, patience, enough).unwrap()
    }

    #[test]
    fn a_machine_ends_or_is_ended() {
        let never = |_: &[u8]| false;
        assert!(matches!(ended("exit 3", 60_000, &never), Ended::Itself(s) if s.code() == Some(3)));
        assert!(matches!(ended("echo a; exec sleep 60", 100, &never), Ended::Late));
        let enough = |bytes: &[u8]| bytes == b"a\n";
        assert!(matches!(ended("echo a; exec sleep 60", 60_000, &enough), Ended::Enough));
    }
}
