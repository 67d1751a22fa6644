//! The interactive shell.

use std::ffi::CString;
use std::fs::OpenOptions;

use anyhow::{Context, Result};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::sys::process::{self, Program};
use crate::sys::terminal;

const CONSOLE: &str = "/dev/ttyS0";

/// Runs a shell on the serial console until it ends.
pub fn run() -> Result<()> {
    Program::new("/bin/busybox", &["busybox", "--install", "-s", "/bin"])?.run()?;
    println!("umbra-init: shell on {CONSOLE}; exit powers off");
    let shell = Program::new("/bin/busybox", &["sh"])?.env(&[
        CString::from(c"HOME=/"),
        CString::from(c"PATH=/bin"),
        CString::from(c"TERM=vt100"),
        CString::from(c"PS1=umbra:\\w# "),
    ]);
    let child = process::fork(|| {
        // A session of its own with the console as controlling terminal: job control and Ctrl-C
        // need it.
        setsid().context("setsid")?;
        let console = OpenOptions::new().read(true).write(true).open(CONSOLE).context(CONSOLE)?;
        terminal::make_controlling(&console).context(CONSOLE)?;
        dup2_stdin(&console)?;
        dup2_stdout(&console)?;
        dup2_stderr(&console)?;
        shell.exec()
    })?;
    // Whatever the shell's last command said, the machine has done what it was asked for.
    process::wait_reaping(child)
}
