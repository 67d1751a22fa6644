//! Without a hypervisor there is nobody to see the marks: the time of the phases is taken here, and
//! told to the tool as a hypervisor would, by the machine's port 0xe9.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use umbra_telemetry::{
    ExitCounts, GuestExit, GuestFaults, Message, MmuCounters, PHASE_NAMES, PROTOCOL, PhaseStats,
    Stats, frame,
};

use crate::phase_id::PhaseId;
use crate::sys::ports::{Port, Ports};
use crate::sys::{shared, time};

/// Set once, before any process is started.
static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// Numbers of a phase: when it was started (zero: never), its ticks, its operations.
const NUMBERS: usize = 3;

/// The times of the phases. Children write to the same.
#[derive(Debug)]
pub struct Journal {
    ports: Ports,
    numbers: &'static [AtomicU64],
}

/// The journal, if there is no hypervisor.
pub fn journal() -> Option<&'static Journal> {
    JOURNAL.get()
}

/// From now on there is a journal. Says so to the tool.
///
/// # Errors
/// The kernel has no memory for it.
pub fn start(ports: Ports) -> Result<()> {
    let count = const { NonZeroUsize::new(PHASE_NAMES.len() * NUMBERS).unwrap() };
    let numbers = shared::numbers(count)?;
    let journal = JOURNAL.get_or_init(|| Journal { ports, numbers });
    journal.send(&Message::Hello { protocol: PROTOCOL });
    journal.send(&Message::GuestEntered);
    Ok(())
}

impl Journal {
    /// A phase starts.
    pub fn start(&self, phase: PhaseId) {
        self.of(phase)[0].store(time::tsc(), Ordering::Relaxed);
    }

    /// A phase ends in which `ops` operations were done.
    pub fn end(&self, phase: PhaseId, ops: u32) {
        let now = time::tsc();
        let [started, ticks, operations] = self.of(phase) else {
            unreachable!("a phase has three numbers")
        };
        ticks.fetch_add(now - started.load(Ordering::Relaxed), Ordering::Relaxed);
        operations.fetch_add(ops.into(), Ordering::Relaxed);
    }

    /// Reports and ends the machine; returns if the machine has no such end.
    pub fn finish(&self, guest_exit: GuestExit) {
        let phases = (0..).zip(self.numbers.chunks(NUMBERS)).filter_map(|(id, numbers)| {
            let [started, tsc, ops] = [0, 1, 2].map(|i| numbers[i].load(Ordering::Relaxed));
            (started != 0).then(|| PhaseStats { id, ops, tsc, ..PhaseStats::default() })
        });
        self.send(&Message::End(Stats {
            guest_exit,
            guest_faults: GuestFaults::Auto,
            filter: String::from("none"),
            exits: ExitCounts::default(),
            mmu: MmuCounters::default(),
            tsc: time::tsc(),
            counters: Vec::new(),
            phases: phases.collect(),
            audits: (0, 0),
            canary: None,
        }));
        b"Shutdown".iter().for_each(|&byte| self.ports.write_byte(Port::SHUTDOWN, byte));
    }

    fn of(&self, phase: PhaseId) -> &[AtomicU64] {
        &self.numbers[phase.index() * NUMBERS..][..NUMBERS]
    }

    fn send(&self, message: &Message) {
        frame::encode(message)
            .into_iter()
            .for_each(|byte| self.ports.write_byte(Port::DEBUG_CONSOLE, byte));
    }
}
