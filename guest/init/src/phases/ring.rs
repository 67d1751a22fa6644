//! Many processes that are alive at once and take turns.

use anyhow::{Result, ensure};
use nix::unistd::pipe;

use super::pipe::{receive, send};
use super::{Run, WARM_UP_ROUNDS};
use crate::sys::mapping::Mapping;
use crate::sys::process;

const PROCESSES: u32 = 200;

/// Pages of each process's working set.
const PAGES: usize = 8;

/// How often the turn goes round while it is counted.
const ROUNDS: u32 = 5;

/// The byte that each process hands on and exits.
const STOP: u8 = 0;

/// A ring of processes. One operation is one turn of one process: it is switched to, reads and
/// writes each page of its own working set, and wakes the next one.
pub fn turns(run: &Run) -> Result<()> {
    let processes = run.count(PROCESSES);
    let (first, give_first) = pipe()?;
    let mut input = first;
    let mut children = Vec::new();
    for _ in 0..processes {
        let (next, give_next) = pipe()?;
        children.push(process::fork(|| {
            let mut memory = Mapping::anonymous(PAGES)?;
            let mut last = 0;
            loop {
                let byte = receive(&input)?;
                if byte != STOP {
                    for page in 0..memory.pages() {
                        let found = memory.read(page);
                        ensure!(
                            found == last,
                            "page {page} of a working set holds {found:#x} instead of {last:#x}"
                        );
                        memory.write(page, byte);
                    }
                    last = byte;
                }
                send(&give_next, byte)?;
                if byte == STOP {
                    return Ok(());
                }
            }
        })?);
        // Only the next process reads what this one writes.
        input = next;
    }

    let mut round = 0;
    let mut go_round = || {
        round += 1;
        send(&give_first, round)?;
        let back = receive(&input)?;
        ensure!(back == round, "the turn comes back as {back:#x} instead of {round:#x}");
        Ok(())
    };
    (0..WARM_UP_ROUNDS).try_for_each(|_| go_round())?;
    run.phase("procs_200", processes * ROUNDS, || (0..ROUNDS).try_for_each(|_| go_round()))?;
    send(&give_first, STOP)?;
    receive(&input)?;
    children.into_iter().try_for_each(process::wait_success)
}
