//! What the hypervisor tells the host.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::trace::Chunk;
use crate::{BootConfig, ExitCounts, GuestFaults};

/// One message of the hypervisor.
#[expect(clippy::large_enum_variant, reason = "the large one is sent once, at the end")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first message: the hypervisor runs.
    Hello {
        /// [`PROTOCOL`](crate::PROTOCOL) of the hypervisor.
        protocol: u32,
    },
    /// What the hypervisor was told and where it runs: so that a stream of messages explains
    /// itself.
    Setup {
        /// What it was told.
        config: BootConfig,
        /// What the CPU calls itself; empty if it has no name.
        cpu: String,
    },
    /// A line for the user, without line end.
    Log {
        /// How important it is.
        level: LogLevel,
        /// One line.
        text: String,
    },
    /// Bytes that the guest wrote to its COM1.
    Console(Vec<u8>),
    /// Bytes that the guest wrote to its port 0xe9.
    DebugConsole(Vec<u8>),
    /// The text on the guest's screen: [`SCREEN_ROWS`] rows of [`SCREEN_COLUMNS`] characters of
    /// code page 437. Sent if [`BootConfig::screen`] asks for it.
    Screen(Vec<u8>),
    /// The guest's first instruction comes next.
    GuestEntered,
    /// The next stretch of the trace.
    Trace(Chunk),
    /// What was counted from guest entry up to now: the answer to
    /// [`command::COUNT`](crate::command::COUNT).
    Counts {
        /// Exits by cause.
        exits: ExitCounts,
        /// Time-stamp counter ticks.
        tsc: u64,
    },
    /// The guest has ended; nothing follows.
    End(Stats),
    /// The hypervisor cannot go on: one clear sentence with the way out. Nothing follows.
    Failure(String),
}

/// Rows of a [`Message::Screen`].
pub const SCREEN_ROWS: usize = 25;

/// Characters in a row of a [`Message::Screen`].
pub const SCREEN_COLUMNS: usize = 80;

/// The importance of a [`Message::Log`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogLevel {
    /// Something the user must see.
    Warning,
    /// What was found and chosen.
    Info,
}

/// How the guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestExit {
    /// ACPI S5.
    AcpiOff,
    /// The text `Shutdown` to port 0x8900.
    Shutdown,
    /// A write to an exit port (0x501 or 0xf4): zero is success.
    ExitPort {
        /// The port.
        port: u16,
        /// What was written.
        value: u32,
    },
    /// A reset through the keyboard controller, port 0xcf9 or the ACPI reset register.
    Reset,
    /// A fault while delivering a double fault.
    TripleFault,
    /// HLT with interrupts off, for good.
    Halted,
    /// The host asked for the end ([`command::FINISH`](crate::command::FINISH)).
    Stopped,
    /// The guest did something this hypervisor does not support: one clear sentence.
    Unsupported(String),
    /// The auditor found a violation, in words.
    AuditFailed(String),
    /// Host memory that is neither the guest's nor the hypervisor's has changed.
    CanaryBroken {
        /// Where, host-physical: the first 8-byte word.
        hpa: u64,
    },
}

impl GuestExit {
    /// Whether the guest ended the way a guest ends that has done its work.
    pub fn is_success(&self) -> bool {
        matches!(
            self,
            GuestExit::AcpiOff | GuestExit::Shutdown | GuestExit::ExitPort { value: 0, .. }
        )
    }
}

/// What the shadow MMU did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmuCounters {
    /// Shadow pages built.
    pub built: u64,
    /// Shadow pages zapped, for whatever reason.
    pub zapped: u64,
    /// Of these, zapped to make room.
    pub reclaimed: u64,
    /// Large guest pages that had to be mapped by smaller ones.
    pub splits: u64,
    /// Full TLB flushes that the MMU asked for.
    pub flushes: u64,
    /// Shadow pages of detached tables that were linked again.
    pub attached: u64,
    /// Guest tables that were detached: writes to them are not seen until they are attached again.
    pub detached: u64,
    /// Shadow roots that changed their frames, for the CPU's CR3 to equal the guest's.
    pub roots_moved: u64,
    /// Changes of the page-fault filter.
    pub filter_switches: u64,
    /// Shadow pages in use at the end of that time: no count.
    pub live_pages: u64,
    /// Bytes of the MMU's tables beside the shadow pages at the end of that time: no count.
    pub metadata_bytes: u64,
}

impl MmuCounters {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &MmuCounters) -> MmuCounters {
        MmuCounters {
            built: self.built - earlier.built,
            zapped: self.zapped - earlier.zapped,
            reclaimed: self.reclaimed - earlier.reclaimed,
            splits: self.splits - earlier.splits,
            flushes: self.flushes - earlier.flushes,
            attached: self.attached - earlier.attached,
            detached: self.detached - earlier.detached,
            roots_moved: self.roots_moved - earlier.roots_moved,
            filter_switches: self.filter_switches - earlier.filter_switches,
            live_pages: self.live_pages,
            metadata_bytes: self.metadata_bytes,
        }
    }

    /// Adds the counts of a later stretch of time.
    pub fn add(&mut self, other: &MmuCounters) {
        self.built += other.built;
        self.zapped += other.zapped;
        self.reclaimed += other.reclaimed;
        self.splits += other.splits;
        self.flushes += other.flushes;
        self.attached += other.attached;
        self.detached += other.detached;
        self.roots_moved += other.roots_moved;
        self.filter_switches += other.filter_switches;
        self.live_pages = other.live_pages;
        self.metadata_bytes = other.metadata_bytes;
    }
}

/// What happened in one phase of the guest, over all its repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseStats {
    /// The id in the guest's marks; 0 is `boot`.
    pub id: u32,
    /// Operations, as the guest said.
    pub ops: u64,
    /// Exits by cause, without those of the marks.
    pub exits: ExitCounts,
    /// What the MMU did.
    pub mmu: MmuCounters,
    /// Time-stamp counter ticks of the machine, guest and hypervisor together.
    pub tsc: u64,
    /// Counters of another hypervisor by its own names, in its own order.
    pub counters: Vec<(String, u64)>,
}

/// Names of the phases that have one, by id.
pub const PHASE_NAMES: &[&str] = &[
    "boot",
    "getppid",
    "demand",
    "munmap_1024",
    "zero_read",
    "zero_write",
    "fork_1024",
    "cow_child",
    "cow_parent",
    "private_file_write",
    "fork_exit",
    "fork_exec",
    "fork_exec_tiny",
    "mprotect_segv",
    "mprotect_toggle",
    "pipe",
    "fault_around",
    "mmap_1",
    "mmap_8",
    "mmap_64",
    "dontneed",
    "pipeline",
    "read_fresh",
    "shared_dirty",
    "procs_200",
];

/// The name of a phase: its entry in [`PHASE_NAMES`], or `phase-N`.
pub fn phase_name(id: u32) -> String {
    match PHASE_NAMES.get(id as usize) {
        Some(name) => String::from(*name),
        None => alloc::format!("phase-{id}"),
    }
}

/// The final report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// How the guest ended.
    pub guest_exit: GuestExit,
    /// What was really done about guest faults (a failed probe turns everything into `Trap`).
    pub guest_faults: GuestFaults,
    /// The page-fault filter in force at the end: one of
    /// [`FILTER_NAMES`](crate::trace::FILTER_NAMES).
    pub filter: String,
    /// Exits by cause over the whole run.
    pub exits: ExitCounts,
    /// What the MMU did over the whole run.
    pub mmu: MmuCounters,
    /// Time-stamp counter ticks from guest entry to the end.
    pub tsc: u64,
    /// Counters of another hypervisor over the whole run ([`PhaseStats::counters`]).
    pub counters: Vec<(String, u64)>,
    /// Phases in the order of their first start.
    pub phases: Vec<PhaseStats>,
    /// Violations checked for by the auditor: (per-exit checks, full checks), zero if it was off.
    pub audits: (u64, u64),
    /// Bytes of host memory that are neither the guest's nor the hypervisor's, and that were found
    /// unchanged at the end; `None` if they were not.
    pub canary: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_differences_and_levels_are_not() {
        let at =
            |detached, live_pages| MmuCounters { detached, live_pages, ..MmuCounters::default() };
        let mut sum = at(5, 30).since(&at(2, 50));
        assert_eq!(sum, at(3, 30));
        sum.add(&at(9, 20).since(&at(8, 10)));
        assert_eq!(sum, at(4, 20));
    }
}
