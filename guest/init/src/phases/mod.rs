//! The phases: small pieces of memory work, each between marks and each checked.
//!
//! Names, counts and order are those of the published peer figures, so that they can be laid side by side; the last three
//! phases are ours.

mod anonymous;
mod copy_on_write;
mod crowd;
mod file;
mod pipe;
mod process;
mod protection;
mod ring;
mod system_call;

use anyhow::{Context, Result};

use self::crowd::Crowd;
use crate::console;
use crate::marks::{Marks, PhaseId};

/// Rounds of a repeated phase before its mark: they bring in what only the first round pays for.
const WARM_UP_ROUNDS: usize = 3;

/// Phases that share their preparation.
struct Group {
    phases: &'static [&'static str],
    run: fn(&Run<'_>) -> Result<()>,
}

/// All phases, in the order in which they run.
const GROUPS: &[Group] = &[
    Group { phases: &["getppid"], run: system_call::getppid },
    Group { phases: &["demand", "munmap_1024"], run: anonymous::demand },
    Group { phases: &["zero_read", "zero_write"], run: anonymous::zero_page },
    Group { phases: &["fork_1024", "cow_child", "cow_parent"], run: copy_on_write::fork },
    Group { phases: &["private_file_write"], run: file::private_write },
    Group { phases: &["fork_exit"], run: process::fork_exit },
    Group { phases: &["fork_exec"], run: process::fork_exec },
    Group { phases: &["fork_exec_tiny"], run: process::fork_exec_tiny },
    Group { phases: &["mprotect_segv"], run: protection::segv },
    Group { phases: &["mprotect_toggle"], run: protection::toggle },
    Group { phases: &["pipe"], run: pipe::round_trips },
    Group { phases: &["fault_around"], run: file::fault_around },
    Group { phases: &["mmap_1"], run: anonymous::map_1 },
    Group { phases: &["mmap_8"], run: anonymous::map_8 },
    Group { phases: &["mmap_64"], run: anonymous::map_64 },
    Group { phases: &["dontneed"], run: anonymous::discard },
    Group { phases: &["pipeline"], run: process::pipeline },
    Group { phases: &["read_fresh"], run: file::read_fresh },
    Group { phases: &["shared_dirty"], run: file::shared_dirty },
    Group { phases: &["procs_200"], run: ring::turns },
];

/// The names of all phases.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|group| group.phases).copied()
}

/// Runs the phases: all, or `only` some; beside so many other processes.
pub fn run(marks: Marks, scale: Scale, only: Option<&[String]>, alive: u32) -> Result<()> {
    let run = Run { marks, scale, only };
    let crowd = Crowd::gather(alive)?;
    for group in GROUPS.iter().filter(|group| group.phases.iter().any(|name| run.selected(name))) {
        (group.run)(&run).with_context(|| format!("phase {}", group.phases.join("/")))?;
    }
    crowd.dismiss()
}

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The counts of the peer figures.
    Full,
    /// A tenth of them.
    Quick,
}

/// What the phases of one run share.
struct Run<'a> {
    marks: Marks,
    scale: Scale,
    only: Option<&'a [String]>,
}

impl Run<'_> {
    /// A count of the peer figures, scaled; at least 1.
    fn count(&self, full: u32) -> u32 {
        match self.scale {
            Scale::Full => full,
            Scale::Quick => (full / 10).max(1),
        }
    }

    fn selected(&self, name: &str) -> bool {
        self.only.is_none_or(|only| only.iter().any(|wanted| wanted == name))
    }

    /// Starts a phase, if it is selected.
    fn start(&self, name: &'static str) {
        if self.selected(name) {
            self.marks.start(id(name));
        }
    }

    /// Ends a phase, if it is selected. Not reported yet: writing to the console costs exits.
    fn end(&self, name: &'static str, ops: u32) {
        if self.selected(name) {
            self.marks.end(id(name), ops);
        }
    }

    /// Says that a phase is done, if it is selected.
    fn report(&self, name: &'static str, ops: u32) {
        if self.selected(name) {
            println!("phase {name} ops {ops}");
            console::drain();
        }
    }

    /// Does `body` as a phase of `ops` operations.
    fn phase<T>(&self, name: &'static str, ops: u32, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.start(name);
        let outcome = body()?;
        self.end(name, ops);
        self.report(name, ops);
        Ok(outcome)
    }

    /// Does `round` a few times for warming up and then `rounds` times as a phase.
    fn repeated(&self, name: &'static str, rounds: u32, mut round: impl FnMut() -> Result<()>) -> Result<()> {
        (0..WARM_UP_ROUNDS).try_for_each(|_| round())?;
        self.phase(name, rounds, || (0..rounds).try_for_each(|_| round()))
    }
}

fn id(name: &'static str) -> PhaseId {
    PhaseId::of(name).unwrap_or_else(|| panic!("phase {name} has no id"))
}

#[cfg(test)]
mod tests {
    use umbra_telemetry::PHASE_NAMES;

    #[test]
    fn every_named_phase_is_there_once_and_in_order() {
        assert_eq!(PHASE_NAMES[0], "boot");
        assert!(super::names().eq(PHASE_NAMES[1..].iter().copied()));
    }
}
