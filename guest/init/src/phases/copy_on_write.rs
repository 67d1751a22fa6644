//! Memory shared by fork until one side writes.

use anyhow::Result;
use nix::unistd::pipe;

use super::Run;
use super::anonymous::{check, fill, pattern};
use super::pipe::{receive, send};
use crate::sys::mapping::Mapping;
use crate::sys::process;

/// A process with written pages forks; the child writes them all while the parent waits; after the
/// child's exit the parent writes them all.
pub fn fork(run: &Run) -> Result<()> {
    let pages = run.count(1024);
    let mut memory = Mapping::anonymous(pages as usize)?;
    fill(&mut memory, pattern);
    let (go, give_go) = pipe()?;
    let (done, give_done) = pipe()?;

    run.start("fork_1024");
    let child = process::fork(|| {
        receive(&go)?;
        run.start("cow_child");
        fill(&mut memory, childs_pattern);
        run.end("cow_child", pages);
        check(&memory, "the child's copy", childs_pattern)?;
        send(&give_done, 1)
    })?;
    run.end("fork_1024", pages);

    // Only the child can answer from now on: should it die, the parent reads an end of file.
    drop(give_done);
    send(&give_go, 1)?;
    receive(&done)?;
    check(&memory, "the parent's copy after the child wrote its own", pattern)?;
    process::wait_success(child)?;
    run.report("fork_1024", pages);
    run.report("cow_child", pages);

    run.phase("cow_parent", pages, || {
        fill(&mut memory, parents_pattern);
        Ok(())
    })?;
    check(&memory, "the parent's copy", parents_pattern)
}

fn childs_pattern(page: usize) -> u8 {
    pattern(page).wrapping_add(1)
}

fn parents_pattern(page: usize) -> u8 {
    pattern(page).wrapping_add(2)
}
