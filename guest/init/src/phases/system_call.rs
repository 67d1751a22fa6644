//! The border between user and kernel mode: what page-table isolation costs shows here.

use anyhow::{Result, ensure};

use super::Run;

/// System calls that do next to nothing.
pub fn getppid(run: &Run) -> Result<()> {
    run.repeated("getppid", run.count(1000), || {
        let parent = nix::unistd::getppid().as_raw();
        ensure!(parent == 1, "the parent is process {parent} instead of 1");
        Ok(())
    })
}
