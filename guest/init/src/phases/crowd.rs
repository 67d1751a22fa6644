//! Processes that are alive, and wait, while the phases run: what does an operation cost beside
//! them?

use std::os::fd::OwnedFd;

use anyhow::Result;
use nix::unistd::{Pid, pipe};

use super::pipe::{receive, send};
use crate::sys::mapping::Mapping;
use crate::sys::process;

/// Pages of each process's working set.
const PAGES: usize = 8;

/// The processes. Each ends when it has read one byte.
pub struct Crowd {
    members: Vec<Pid>,
    end: OwnedFd,
}

impl Crowd {
    /// Starts so many processes; returns when each has its working set.
    pub fn gather(count: u32) -> Result<Crowd> {
        let (wait, end) = pipe()?;
        let (hear, ready) = pipe()?;
        let mut members = Vec::new();
        for _ in 0..count {
            members.push(process::fork(|| {
                let mut memory = Mapping::anonymous(PAGES)?;
                (0..PAGES).for_each(|page| memory.write(page, 1));
                send(&ready, 1)?;
                receive(&wait).map(drop)
            })?);
            receive(&hear)?;
        }
        Ok(Crowd { members, end })
    }

    /// Ends the processes.
    pub fn dismiss(self) -> Result<()> {
        self.members.iter().try_for_each(|_| send(&self.end, 1))?;
        self.members.into_iter().try_for_each(process::wait_success)
    }
}
