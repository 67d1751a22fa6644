//! The phases: small pieces of memory work, each between marks and each checked.
//!
//! Names, counts and order are those of the published peer figures, so that they can be laid side
//! by side; the last three phases are ours.

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
use crate::marks::Marks;
use crate::phase_id::PhaseId;

/// Rounds of a repeated phase before its mark: they bring in what only the first round pays for.
const WARM_UP_ROUNDS: usize = 3;

/// Phases that share their preparation.
struct Group {
    phases: &'static [&'static str],
    run: fn(&Run) -> Result<()>,
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

/// Runs the phases: all, or those up to the last one `wanted`; beside so many other processes.
pub fn run(marks: Marks, scale: Scale, wanted: Option<&[String]>, alive: u32) -> Result<()> {
    let run = Run { marks, scale };
    let crowd = Crowd::gather(alive)?;
    for group in up_to(wanted) {
        (group.run)(&run).with_context(|| format!("phase {}", group.phases.join("/")))?;
    }
    crowd.dismiss()
}

/// What has to run for the phases that are `wanted`.
///
/// What a phase costs depends on the phases before it: they leave page tables, a page cache and a
/// scheduler behind, and the hypervisor's guesses. So none is skipped, and each has its marks and
/// its line: then a phase is the same alone and in the whole workload.
fn up_to(wanted: Option<&[String]>) -> &'static [Group] {
    let Some(wanted) = wanted else { return GROUPS };
    let is_wanted =
        |group: &Group| group.phases.iter().any(|name| wanted.iter().any(|wanted| wanted == name));
    let count = GROUPS.iter().rposition(is_wanted).map_or(0, |last| last + 1);
    &GROUPS[..count]
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
struct Run {
    marks: Marks,
    scale: Scale,
}

impl Run {
    /// A count of the peer figures, scaled; at least 1.
    fn count(&self, full: u32) -> u32 {
        match self.scale {
            Scale::Full => full,
            Scale::Quick => (full / 10).max(1),
        }
    }

    /// Starts a phase.
    fn start(&self, name: &'static str) {
        self.marks.start(id(name));
    }

    /// Ends a phase. Not reported yet: writing to the console costs exits.
    fn end(&self, name: &'static str, ops: u32) {
        self.marks.end(id(name), ops);
    }

    /// Says that a phase is done.
    fn report(&self, name: &'static str, ops: u32) {
        println!("phase {name} ops {ops}");
        console::drain();
    }

    /// Does `body` as a phase of `ops` operations.
    fn phase<T>(
        &self,
        name: &'static str,
        ops: u32,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.start(name);
        let outcome = body()?;
        self.end(name, ops);
        self.report(name, ops);
        Ok(outcome)
    }

    /// Does `round` a few times for warming up and then `rounds` times as a phase.
    fn repeated(
        &self,
        name: &'static str,
        rounds: u32,
        mut round: impl FnMut() -> Result<()>,
    ) -> Result<()> {
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

    #[test]
    fn what_comes_before_a_wanted_phase_runs_too() {
        let run = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.into()).collect();
            super::up_to(Some(&wanted))
                .iter()
                .flat_map(|group| group.phases)
                .copied()
                .collect::<Vec<_>>()
        };
        assert_eq!(run(&["getppid"]), ["getppid"]);
        // The whole group: the phases of one share what prepares them.
        assert_eq!(run(&["demand"]), ["getppid", "demand", "munmap_1024"]);
        assert_eq!(run(&["pipe", "zero_read"]).last(), Some(&"pipe"));
        assert!(super::up_to(None).len() == super::GROUPS.len() && run(&["procs_200"]).len() == 24);
    }
}
