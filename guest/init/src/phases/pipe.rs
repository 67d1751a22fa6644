//! Two processes that wait for each other.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use nix::unistd::{self, pipe, read};

use super::Run;
use crate::sys::process;

/// The byte that asks the echoing process to exit.
const STOP: u8 = 0;

/// A byte to another process and back.
pub fn round_trips(run: &Run) -> Result<()> {
    let (question, give_question) = pipe()?;
    let (answer, give_answer) = pipe()?;
    let child = process::fork(|| {
        loop {
            match receive(&question)? {
                STOP => return Ok(()),
                byte => send(&give_answer, byte)?,
            }
        }
    })?;
    // Only the child can answer from now on: should it die, the parent reads an end of file.
    drop(give_answer);

    let mut last = STOP;
    run.repeated("pipe", run.count(500), || {
        last = last % 255 + 1;
        send(&give_question, last)?;
        let echo = receive(&answer)?;
        ensure!(echo == last, "the echo of {last:#x} is {echo:#x}");
        Ok(())
    })?;
    send(&give_question, STOP)?;
    process::wait_success(child)
}

/// Reads one byte.
pub fn receive(from: impl AsFd) -> Result<u8> {
    let mut byte = [0];
    let length = read(from, &mut byte).context("reading from a pipe")?;
    ensure!(length == 1, "the other end of a pipe is gone");
    Ok(byte[0])
}

/// Writes one byte.
pub fn send(to: impl AsFd, byte: u8) -> Result<()> {
    unistd::write(to, &[byte]).context("writing to a pipe").map(drop)
}
