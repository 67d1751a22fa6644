//! Child processes. `std::process` starts them by vfork or posix_spawn, which share the parent's
//! memory: the copying that fork does is what is wanted here.

use std::convert::Infallible;
use std::ffi::CString;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait, waitpid};
use nix::unistd::{ForkResult, Pid, execve};

use crate::power;

/// Forks. The child runs `body` and exits with status 0; a failure of `body` ends the machine.
pub fn fork<T>(body: impl FnOnce() -> Result<T>) -> Result<Pid> {
    // SAFETY: this program has one thread, so no lock can be held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => match body() {
            // SAFETY: _exit runs nothing of this process any more.
            Ok(_) => unsafe { libc::_exit(0) },
            Err(error) => power::fail(&format!("in a child: {error:#}")),
        },
    }
}

/// Waits for a child that must exit with status 0.
pub fn wait_success(child: Pid) -> Result<()> {
    match wait_exit(child)? {
        0 => Ok(()),
        status => bail!("a child exited with status {status}"),
    }
}

/// Waits until the child has exited: its status.
///
/// # Errors
/// A signal has ended it.
pub fn wait_exit(child: Pid) -> Result<i32> {
    match waitpid(child, None).context("wait")? {
        WaitStatus::Exited(_, status) => Ok(status),
        WaitStatus::Signaled(_, signal, _) => bail!("a child was ended by {signal}"),
        other => bail!("a child neither exited nor was ended: {other:?}"),
    }
}

/// Waits until that child is gone, however it ended, and reaps orphans meanwhile as process 1 must.
pub fn wait_reaping(child: Pid) -> Result<()> {
    loop {
        match wait() {
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
                if status.pid() == Some(child) =>
            {
                return Ok(());
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait"),
        }
    }
}

/// A program and its arguments, ready for execve: nothing is allocated between fork and exec.
pub struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// The program at `path`; `arguments` start with its own name.
    ///
    /// # Errors
    /// A zero byte in a string.
    pub fn new(path: &str, arguments: &[&str]) -> Result<Program> {
        let arguments =
            arguments.iter().map(|&argument| CString::new(argument)).collect::<Result<_, _>>()?;
        Ok(Program {
            path: CString::new(path)?,
            arguments,
            environment: vec![CString::from(c"PATH=/bin")],
        })
    }

    /// With another environment than the plain `PATH=/bin`.
    pub fn env(mut self, environment: &[CString]) -> Program {
        self.environment = environment.to_vec();
        self
    }

    /// Becomes that program.
    pub fn exec(&self) -> Result<Infallible> {
        execve(&self.path, &self.arguments, &self.environment)
            .with_context(|| format!("execve of {}", self.path.to_string_lossy()))
    }

    /// Forks, lets the child become that program, and waits until it exits with status 0.
    pub fn run(&self) -> Result<()> {
        wait_success(fork(|| self.exec())?)
    }
}
