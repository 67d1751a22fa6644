//! Processes that are started and end.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, bail};
use nix::unistd::{dup2_stdout, pipe};

use super::Run;
use crate::sys::process::{self, Program};

/// What a shell does for a pipeline of four programs.
const PIPELINE: &str = "exec 2>/dev/null; ls -l /proc | grep 1 | sort | wc -l";

/// Now and then one program of the pipeline dies of a SIGSEGV that the kernel does not log: in 2 of
/// 400 rounds on QEMU's own CPU without any hypervisor, too (Linux 6.1.192, Debian's busybox). Such
/// a round is repeated.
const PIPELINE_TRIES: u32 = 4;

/// A shell's status if the last program of a pipeline was ended by SIGSEGV.
const OF_SIGSEGV: i32 = 128 + 11;

/// Children that exit at once.
pub fn fork_exit(run: &Run) -> Result<()> {
    run.repeated("fork_exit", run.count(100), || process::wait_success(process::fork(|| Ok(()))?))
}

/// Children that become `true`, an ordinary static program.
pub fn fork_exec(run: &Run) -> Result<()> {
    let program = Program::new("/bin/busybox", &["true"])?;
    run.repeated("fork_exec", run.count(100), || program.run())
}

/// Children that become a program of three instructions: nearly all that is left is exec itself.
pub fn fork_exec_tiny(run: &Run) -> Result<()> {
    let program = Program::new("/bin/tiny", &["tiny"])?;
    run.repeated("fork_exec_tiny", run.count(100), || program.run())
}

/// A shell with a pipeline.
pub fn pipeline(run: &Run) -> Result<()> {
    let shell = Program::new("/bin/busybox", &["sh", "-c", PIPELINE])?;
    let mut output = String::new();
    let mut round = || -> Result<u32> {
        let (result, give_result) = pipe()?;
        let child = process::fork(|| {
            dup2_stdout(&give_result)?;
            shell.exec()
        })?;
        drop(give_result);
        output.clear();
        File::from(result).read_to_string(&mut output).context("the pipeline's output")?;
        match process::wait_exit(child)? {
            0 => (),
            // The last program was the one that died.
            OF_SIGSEGV => return Ok(0),
            status => bail!("the shell exited with status {status}"),
        }
        // How many lines there are depends on the kernel's threads of the moment; this process is
        // among them.
        output.trim().parse::<u32>().with_context(|| format!("the pipeline printed {output:?}"))
    };
    run.repeated("pipeline", run.count(10), || {
        let counted = (0..PIPELINE_TRIES).map(|_| round()).find(|lines| !matches!(lines, Ok(0)));
        counted.context("the pipeline counted nothing")?.map(drop)
    })
}
