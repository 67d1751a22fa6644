//! Traces: every exit and every event of the shadow MMU, in chunks.
//!
//! A [`Chunk`] stands for itself: its records are differences to the one before, and the first
//! one's to zero. A gap between the numbers of two chunks tells how many records were lost on the
//! way.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ExitCause;

/// One exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Ticks from guest entry to this exit, without the time of tracing and audits.
    pub time: u64,
    /// Ticks that the hypervisor took until it was ready to enter the guest again; time asleep in
    /// HLT included.
    pub ticks: u64,
    /// The virtual CPU.
    pub vcpu: u32,
    /// Where the guest was.
    pub rip: u64,
    /// The guest's own CR3 at the exit.
    pub cr3: u64,
    /// Why it exited. `None` for the phase marks, which do not count.
    pub cause: Option<ExitCause>,
    /// Where: a gva for page faults and INVLPG, a port, an MSR, a CPUID leaf.
    pub address: Option<u64>,
    /// What: the hardware's error code for page faults, else the value written or read.
    pub value: Option<u64>,
    /// The gpa behind a write to a table or an access to a device.
    pub gpa: Option<u64>,
    /// The vector of the event that the next entry delivers.
    pub delivers: Option<u8>,
}

/// What the shadow MMU did. `table` is the guest's table that a page shadows, or the first frame
/// that an identity page maps (`level` then has [`MmuEvent::IDENTITY`] added); levels count from 1,
/// the one of PTEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MmuEvent {
    /// A shadow page was built.
    Built {
        /// The guest frame.
        table: u64,
        /// Of the table.
        level: u8,
    },
    /// A shadow page was zapped.
    Zapped {
        /// The guest frame.
        table: u64,
        /// Of the table.
        level: u8,
        /// To make room.
        reclaimed: bool,
    },
    /// A large guest page had to be mapped by smaller ones, at this guest frame.
    Split(
        /// The first guest frame.
        u64,
    ),
    /// Everything that the CPUs had cached was flushed.
    Flushed,
    /// Writes to this guest table are not seen until the guest's next flush.
    Unsynced(
        /// The guest frame.
        u64,
    ),
    /// Writes to this guest table are seen again.
    Resynced(
        /// The guest frame.
        u64,
    ),
    /// This guest table was detached: writes to it are not seen until it is attached again.
    Detached(
        /// The guest frame.
        u64,
    ),
    /// The shadow of a detached table was linked again.
    Attached {
        /// The guest frame.
        table: u64,
        /// Of the table.
        level: u8,
        /// How many of its entries had changed meanwhile.
        changed: u16,
    },
    /// The shadow root of this guest table changed its frame.
    RootMoved(
        /// The guest frame.
        u64,
    ),
    /// The page-fault filter changed.
    Filter(
        /// To this one of [`FILTER_NAMES`].
        u8,
    ),
}

/// Names of the page-fault filters, by number.
pub const FILTER_NAMES: &[&str] = &["trap", "present", "user"];

impl MmuEvent {
    /// Added to the level of an identity page.
    pub const IDENTITY: u8 = 0x80;

    /// Names of the kinds of events.
    pub const KINDS: &[&str] = &[
        "built",
        "zapped",
        "reclaimed",
        "split",
        "flushed",
        "unsynced",
        "resynced",
        "detached",
        "attached",
        "root_moved",
        "filter",
    ];

    /// Which of [`MmuEvent::KINDS`] it is.
    pub const fn kind(self) -> &'static str {
        match self {
            MmuEvent::Built { .. } => "built",
            MmuEvent::Zapped { reclaimed: false, .. } => "zapped",
            MmuEvent::Zapped { reclaimed: true, .. } => "reclaimed",
            MmuEvent::Split(_) => "split",
            MmuEvent::Flushed => "flushed",
            MmuEvent::Unsynced(_) => "unsynced",
            MmuEvent::Resynced(_) => "resynced",
            MmuEvent::Detached(_) => "detached",
            MmuEvent::Attached { .. } => "attached",
            MmuEvent::RootMoved(_) => "root_moved",
            MmuEvent::Filter(_) => "filter",
        }
    }
}

/// One line of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// An exit. What the MMU did in answer to it stands before it.
    Exit(Exit),
    /// Something that the MMU did in answer to the next exit.
    Mmu(MmuEvent),
    /// So many MMU events of the next exit were dropped: there were too many.
    Dropped(u64),
    /// A phase starts.
    PhaseStart(u32),
    /// A phase ends.
    PhaseEnd(u32),
}

/// A record on the wire; times and addresses as differences.
#[derive(Serialize, Deserialize)]
enum Wire {
    Exit {
        time: i64,
        ticks: u64,
        vcpu: u32,
        rip: i64,
        cr3: i64,
        cause: Option<ExitCause>,
        address: Option<i64>,
        value: Option<u64>,
        gpa: Option<u64>,
        delivers: Option<u8>,
    },
    Mmu(MmuEvent),
    Dropped(u64),
    PhaseStart(u32),
    PhaseEnd(u32),
}

/// A stretch of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The number of its first record, counted from zero over the whole trace.
    pub first: u64,
    /// How many records it has.
    pub count: u32,
    bytes: Vec<u8>,
}

/// A chunk whose bytes are not what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl Chunk {
    /// The records.
    ///
    /// # Errors
    /// The bytes are damaged.
    pub fn records(&self) -> Result<Vec<Record>, Damaged> {
        let (mut last, mut rest) = (Exit::default(), self.bytes.as_slice());
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (wire, after) = postcard::take_from_bytes(rest).map_err(|_| Damaged)?;
            records.push(decode(wire, &mut last));
            rest = after;
        }
        if records.len() as u64 == u64::from(self.count) { Ok(records) } else { Err(Damaged) }
    }
}

/// Collects records into chunks.
#[derive(Debug)]
pub struct Writer {
    last: Exit,
    chunk: Chunk,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer { last: Exit::default(), chunk: Chunk { first: 0, count: 0, bytes: Vec::new() } }
    }
}

impl Writer {
    /// A chunk of so many bytes is worth sending.
    pub const FULL: usize = 32 << 10;

    /// Adds a record.
    pub fn push(&mut self, record: &Record) {
        let wire = encode(record, &mut self.last);
        // Bytes are moved, not copied, and a growing vector takes everything.
        let bytes = core::mem::take(&mut self.chunk.bytes);
        self.chunk.bytes = postcard::to_extend(&wire, bytes)
            .expect("a record always serializes into a growing vector");
        self.chunk.count += 1;
    }

    /// Whether it is time to take the chunk.
    pub fn is_full(&self) -> bool {
        self.chunk.bytes.len() >= Writer::FULL
    }

    /// Takes what was collected, and starts the next chunk. `None` if there is nothing.
    pub fn take(&mut self) -> Option<Chunk> {
        if self.chunk.count == 0 {
            return None;
        }
        self.last = Exit::default();
        let first = self.chunk.first + u64::from(self.chunk.count);
        // A little more than a full chunk, so that the next one need not grow.
        let bytes = Vec::with_capacity(Writer::FULL + 256);
        Some(core::mem::replace(&mut self.chunk, Chunk { first, count: 0, bytes }))
    }
}

fn difference(new: u64, old: u64) -> i64 {
    new.wrapping_sub(old).cast_signed()
}

fn encode(record: &Record, last: &mut Exit) -> Wire {
    let exit = match *record {
        Record::Exit(exit) => exit,
        Record::Mmu(event) => return Wire::Mmu(event),
        Record::Dropped(count) => return Wire::Dropped(count),
        Record::PhaseStart(id) => return Wire::PhaseStart(id),
        Record::PhaseEnd(id) => return Wire::PhaseEnd(id),
    };
    let before = core::mem::replace(last, exit);
    let known_address = before.address.unwrap_or(0);
    last.address = exit.address.or(before.address);
    Wire::Exit {
        time: difference(exit.time, before.time),
        ticks: exit.ticks,
        vcpu: exit.vcpu,
        rip: difference(exit.rip, before.rip),
        cr3: difference(exit.cr3, before.cr3),
        cause: exit.cause,
        address: exit.address.map(|address| difference(address, known_address)),
        value: exit.value,
        gpa: exit.gpa,
        delivers: exit.delivers,
    }
}

fn decode(wire: Wire, last: &mut Exit) -> Record {
    let add = |old: u64, difference: i64| old.wrapping_add_signed(difference);
    match wire {
        Wire::Exit { time, ticks, vcpu, rip, cr3, cause, address, value, gpa, delivers } => {
            let known_address = last.address.unwrap_or(0);
            let exit = Exit {
                time: add(last.time, time),
                ticks,
                vcpu,
                rip: add(last.rip, rip),
                cr3: add(last.cr3, cr3),
                cause,
                address: address.map(|address| add(known_address, address)),
                value,
                gpa,
                delivers,
            };
            let address = exit.address.or(last.address);
            *last = Exit { address, ..exit };
            Record::Exit(exit)
        }
        Wire::Mmu(event) => Record::Mmu(event),
        Wire::Dropped(count) => Record::Dropped(count),
        Wire::PhaseStart(id) => Record::PhaseStart(id),
        Wire::PhaseEnd(id) => Record::PhaseEnd(id),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn exit(time: u64, address: Option<u64>) -> Record {
        Record::Exit(Exit {
            time,
            ticks: time / 3,
            vcpu: 2,
            rip: 0xffff_ffff_8100_0000 ^ time,
            cr3: 0x1000 * (time % 3),
            cause: time.is_multiple_of(2).then_some(ExitCause::HostFaultInstall),
            address,
            value: Some(7),
            gpa: time.is_multiple_of(5).then_some(time << 12),
            delivers: Some(14),
        })
    }

    fn records() -> Vec<Record> {
        vec![
            Record::PhaseStart(3),
            exit(10, Some(0x7fff_ffff_f000)),
            Record::Mmu(MmuEvent::Zapped { table: 9, level: 1, reclaimed: true }),
            Record::Mmu(MmuEvent::Flushed),
            Record::Mmu(MmuEvent::Detached(8)),
            Record::Mmu(MmuEvent::Attached { table: 8, level: 1, changed: 512 }),
            Record::Mmu(MmuEvent::RootMoved(1)),
            Record::Mmu(MmuEvent::Filter(2)),
            Record::Dropped(12),
            exit(15, None),
            exit(21, Some(0xffff_8000_0000_0000)),
            Record::PhaseEnd(3),
        ]
    }

    #[test]
    fn chunks_stand_for_themselves_and_are_numbered() {
        let mut writer = Writer::default();
        assert!(writer.take().is_none());
        let mut chunks = Vec::new();
        for part in records().chunks(3) {
            part.iter().for_each(|record| writer.push(record));
            chunks.extend(writer.take());
        }
        assert_eq!(
            chunks.iter().map(|chunk| (chunk.first, chunk.count)).collect::<Vec<_>>(),
            [(0, 3), (3, 3), (6, 3), (9, 3)]
        );
        let back: Vec<_> = chunks.iter().rev().map(|chunk| chunk.records().unwrap()).collect();
        assert_eq!(back.into_iter().rev().flatten().collect::<Vec<_>>(), records());
    }

    #[test]
    fn a_damaged_chunk_is_an_error() {
        let mut writer = Writer::default();
        records().iter().for_each(|record| writer.push(record));
        let whole = writer.take().unwrap();
        for length in 0..whole.bytes.len() {
            let cut = Chunk { bytes: whole.bytes[..length].to_vec(), ..whole.clone() };
            assert_eq!(cut.records(), Err(Damaged), "{length}");
        }
    }
}
