//! Running other programs.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Runs a program whose output the user sees.
///
/// # Errors
/// It cannot be started, or fails.
pub fn show(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("starting {line}"))?;
    if !status.success() {
        bail!("{line} failed with {status}");
    }
    Ok(())
}

/// Runs a program and returns what it prints on standard output.
///
/// # Errors
/// It cannot be started, fails, or prints something that is not text.
pub fn capture(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {line}"))?;
    if !output.status.success() {
        bail!(
            "{line} failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of {line}"))
}

/// A cargo of the toolchain that runs this program.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A program that the kernel kills when the thread ends that starts it: whoever kills this program
/// leaves no emulator behind.
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Runs an example of the reference machine, optimized, but with the MMU's assertions on. Its
/// options are checked before it is built.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run_example<A: Parser>(name: &str, options: &[String]) -> Result<ExitCode> {
    let words = std::iter::once(name).chain(options.iter().map(String::as_str));
    if let Err(error) = A::try_parse_from(words) {
        return Ok(crate::show(&error));
    }
    let mut cargo = cargo();
    cargo.args(["run", "--release", "--package", "umbra-reference", "--example", name]);
    cargo.args(["--config", "profile.release.debug-assertions=true", "--"]);
    show(cargo.args(options))?;
    Ok(ExitCode::SUCCESS)
}

/// Program and arguments on one line.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_is_mortal_ends_with_its_parent() {
        let start = || {
            let mut shell = mortal("sh");
            shell.args(["-c", "echo; exec sleep 60"]).stdout(Stdio::piped());
            let mut child = shell.spawn().unwrap();
            // It runs: the kernel knows what to do.
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
