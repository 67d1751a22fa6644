//! Compares what the guest saw with what bare hardware allows.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use arrayvec::ArrayVec;
use umbra_paging::{Access, AccessKind, Gva, Pfec};
use umbra_reference::hardware::{End as WalkEnd, PageFault, walk};
use umbra_reference::memory::{PhysAddr, PhysicalMemory};
use umbra_reference::oracle::{Change, Observed, Oracle, Piece};
use umbra_reference::registers::Registers;
use umbra_reference::universe::{Universe, tree_page};

use crate::image;
use crate::layout::{ARENA, CODE_WORD, HOT, PAGE, REGION, REGIONS, SLOTS, direct};
use crate::program::{HostEvent, Program, Step};
use crate::record::{End, Record, Seen, parse};
use crate::stub::{BREAKPOINT, DONE, PAGE_FAULT, Stub};

/// The linear pages of programs: both choices of an index at each level, and the hot frames in the
/// direct map.
pub fn universe() -> Rc<Universe> {
    thread_local! {
        static UNIVERSE: Rc<Universe> = {
            let hot = HOT.iter().map(|frame| direct(frame * PAGE));
            Rc::new(Universe::new((0..16).map(tree_page).chain(hot).collect()))
        };
    }
    UNIVERSE.with(Rc::clone)
}

/// What kind of thing went wrong: findings of one kind have one cause, as far as a program can
/// tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An access read a value, or wrote to a place, that it must not reach.
    Place,
    /// A page fault came that must not, or with another error code or address.
    Fault,
    /// A page fault did not come.
    NoFault,
    /// Another exception came.
    Exception,
    /// Memory, accessed or dirty bits are not what they must be.
    Memory,
    /// A page that was written is not in the dirty log.
    DirtyLog,
    /// The guest's run ended early.
    Ended,
}

impl Kind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Place => "an access reaches what it must not",
            Kind::Fault => "a page fault that must not be",
            Kind::NoFault => "a page fault is missing",
            Kind::Exception => "an exception that must not be",
            Kind::Memory => "memory or accessed and dirty bits differ",
            Kind::DirtyLog => "a written page is not in the dirty log",
            Kind::Ended => "the guest's run ends early",
        }
    }
}

/// The hypervisor let its guest see what no bare hardware shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conviction {
    /// In which step.
    pub step: usize,
    /// What kind of thing.
    pub kind: Kind,
    /// What was seen.
    pub seen: String,
    /// What bare hardware allows.
    pub expected: String,
}

impl fmt::Display for Conviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}: seen {}; {}", self.step, self.kind.name(), self.seen, self.expected)
    }
}

/// What a judged program came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Steps that were taken.
    pub steps: u64,
    /// Accesses that were judged.
    pub judged: u64,
    /// Accesses that were not: see [`Excuse`].
    pub excused: u64,
    /// Page faults among the judged.
    pub faults: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Tally) {
        self.steps += other.steps;
        self.judged += other.judged;
        self.excused += other.excused;
        self.faults += other.faults;
    }
}

/// A difference from hardware that whoever documents the hypervisor says is there, or that follows
/// from what the host did. One predicate each, as narrow as it gets; each has a test that a
/// neighbouring wrong value is still convicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// The host has written where tables have entries, and the hypervisor cannot know: a VMM's
    /// store through its own mapping is no event for it. Until all shadows are thrown away (a slot
    /// is deleted) nothing that the guest sees is judged, but the host must live.
    HostWroteTables,
    /// A region is read-only. Linux, `arch/x86/kvm/mmu/paging_tmpl.h`, update_accessed_dirty_bits:
    /// "If the slot is read-only, simply do not process the accessed and dirty bits." The monitor
    /// carries the writes out. Not judged until the slot is writable again.
    ReadOnlyRegion,
    /// An entry names a table where no memory is. Hardware reads ones there, which have reserved
    /// bits; KVM cannot read the table, and its walk ends as at an entry that is not present.
    TableOutsideMemory,
    /// Code is executed where no memory is: KVM cannot emulate instructions that it cannot read.
    CodeOutsideMemory,
}

struct Judge<'a> {
    program: &'a Program,
    registers: Registers,
    oracle: Oracle,
    stub: Stub,
    tally: Tally,
    /// Why accesses are not judged now.
    excuse: Option<Excuse>,
    /// By region: whether it is read-only.
    read_only: [bool; REGIONS as usize],
    /// By region: the frames that the guest has changed since the dirty log was taken, if it is on.
    dirty: [Option<BTreeSet<u64>>; REGIONS as usize],
}

/// Judges a run of a program.
///
/// # Errors
/// The first step that bare hardware would not have done so.
pub fn judge(program: &Program, record: &Record) -> Result<Tally, Box<Conviction>> {
    let registers = image::registers();
    let controls = [registers.control(&image::cpu(program))];
    let mut judge = Judge {
        program,
        registers,
        oracle: Oracle::new(universe(), image::arena(program), &controls),
        stub: Stub::assemble(),
        tally: Tally::default(),
        excuse: None,
        read_only: [false; REGIONS as usize],
        dirty: [const { None }; REGIONS as usize],
    };
    judge.run(record).map_err(Box::new)?;
    Ok(judge.tally)
}

impl Judge<'_> {
    fn run(&mut self, record: &Record) -> Result<(), Conviction> {
        let wrong = |step, kind, seen: String, expected: &str| {
            Err(Conviction { step, kind, seen, expected: String::from(expected) })
        };
        let seen = match parse(&record.results) {
            Ok(seen) => seen,
            Err(garbled) => {
                return wrong(garbled.0, Kind::Memory, garbled.to_string(), "the stub's memory is its own");
            }
        };
        for (at, (step, seen)) in self.program.steps.iter().zip(&seen).enumerate() {
            self.step(at, step, seen, record)?;
            self.tally.steps += 1;
        }
        let at = seen.len();
        match &record.end {
            End::Complete if at == self.program.steps.len() => (),
            End::Complete => {
                return wrong(at, Kind::Ended, "too few results".into(), "the stub writes one a step");
            }
            _ if self.ends_by_code_outside_memory(at) => self.tally.excused += 1,
            End::TripleFault => {
                return wrong(at, Kind::Ended, "a triple fault".into(), "the stub and its tables are there");
            }
            End::GaveUp(why) => return wrong(at, Kind::Ended, why.clone(), "the CPU goes on"),
            End::Hung => return wrong(at, Kind::Ended, "a guest that does not return".into(), "a step ends"),
        }
        if let Some((gpa, value)) = record.strays.first() {
            let seen = format!("the word at {gpa:#x} is {value:#x} at the end");
            return wrong(at, Kind::Memory, seen, "no step has written there");
        }
        Ok(())
    }

    /// [`Excuse::CodeOutsideMemory`].
    fn ends_by_code_outside_memory(&self, at: usize) -> bool {
        let Some(&Step::Fetch { gva, user }) = self.program.steps.get(at) else { return false };
        let access = Access { kind: AccessKind::Fetch, user, smap_override: false };
        let candidates = self.oracle.candidates(0, Gva::new(gva), access);
        let outside = |at: &PhysAddr| !self.oracle.memory().contains(*at);
        candidates.iter().any(|candidate| candidate.result.as_ref().is_ok_and(outside))
            || self.excuse.is_some()
    }

    fn step(&mut self, at: usize, step: &Step, seen: &Seen, record: &Record) -> Result<(), Conviction> {
        let changes: Vec<Change> =
            seen.changes.iter().map(|&(gpa, value)| Change { at: PhysAddr::new(gpa), value }).collect();
        let wrong = |kind, seen: String, expected: String| Err(Conviction { step: at, kind, seen, expected });
        let before = self.registers;
        match *step {
            Step::Read { gva, size, user, ac } => {
                let access = Access { kind: AccessKind::Read, user, smap_override: ac && !user };
                let rip = self.stub.read_rip(size, user);
                self.access(at, Gva::new(gva), access, (size, 0), rip, seen, &changes)?;
            }
            Step::Write { gva, size, user, ac, value } => {
                let access = Access { kind: AccessKind::Write, user, smap_override: ac && !user };
                let rip = self.stub.write_rip(size, user);
                self.access(at, Gva::new(gva), access, (size, value), rip, seen, &changes)?;
            }
            Step::Fetch { gva, user } => {
                let access = Access { kind: AccessKind::Fetch, user, smap_override: false };
                self.access(at, Gva::new(gva), access, (8, 0), gva, seen, &changes)?;
            }
            Step::Host(event) => {
                self.host(at, event, &changes, record)?;
            }
            _ => {
                if let Some(instruction) = image::privileged(step) {
                    let invalidation = self.registers.execute(instruction);
                    self.quiet(at, &changes)?;
                    let control = self.registers.control(&image::cpu(self.program));
                    self.oracle.executed(0, control, invalidation);
                }
            }
        }
        let plain = !matches!(step, Step::Read { .. } | Step::Write { .. } | Step::Fetch { .. });
        if plain && !seen.is_plain() {
            let change = if before == self.registers { "" } else { ", which changes control registers" };
            let expected = format!("this step{change} raises nothing");
            return wrong(Kind::Exception, exception(seen), expected);
        }
        for &(gpa, _) in &seen.changes {
            let by_host = matches!(step, Step::Host(_));
            if let Some(dirty) = &mut self.dirty[(gpa / REGION) as usize]
                && !by_host
            {
                dirty.insert(gpa / PAGE);
            }
        }
        Ok(())
    }

    /// Nothing may have changed.
    fn quiet(&mut self, at: usize, changes: &[Change]) -> Result<(), Conviction> {
        if self.excuse.is_some() {
            self.adopt(changes);
            return Ok(());
        }
        self.oracle.judge_write(PhysAddr::new(0), &[], changes).map_err(|why| memory(at, why))
    }

    /// Takes memory as it is.
    fn adopt(&mut self, changes: &[Change]) {
        for change in changes {
            // A store of the whole word explains the change.
            let explained =
                self.oracle.judge_write(change.at, &change.value.to_le_bytes(), std::slice::from_ref(change));
            debug_assert!(explained.is_ok());
        }
    }

    fn host(
        &mut self,
        at: usize,
        event: HostEvent,
        changes: &[Change],
        record: &Record,
    ) -> Result<(), Conviction> {
        match event {
            HostEvent::Write { gpa, value } => {
                let place = PhysAddr::new(gpa);
                if self.excuse.is_some() {
                    self.adopt(changes);
                } else {
                    let bytes = value.to_le_bytes();
                    self.oracle.judge_write(place, &bytes, changes).map_err(|why| memory(at, why))?;
                }
                if SLOTS.contains(&(gpa % PAGE / 8)) && self.excuse.is_none() {
                    self.excuse = Some(Excuse::HostWroteTables);
                }
                return Ok(());
            }
            HostEvent::Cycle { region, .. } | HostEvent::Move { region } | HostEvent::Shift { region } => {
                if let HostEvent::Cycle { read_only, .. } = event {
                    self.read_only[region as usize] = read_only;
                }
                self.excuse = self.read_only.contains(&true).then_some(Excuse::ReadOnlyRegion);
                // The log of a new slot is empty.
                if let Some(dirty) = &mut self.dirty[region as usize] {
                    dirty.clear();
                }
            }
            HostEvent::Log { region, on } => {
                let dirty = &mut self.dirty[region as usize];
                match (on, &dirty) {
                    (true, None) => *dirty = Some(BTreeSet::new()),
                    (false, _) => *dirty = None,
                    (true, Some(_)) => (),
                }
            }
            HostEvent::Harvest { region } => {
                if let Some(dirty) = &mut self.dirty[region as usize] {
                    let taken = record.harvests.iter().find(|(step, _)| *step == at);
                    let named = taken.map(|(_, frames)| frames.as_slice()).unwrap_or_default();
                    let missing = dirty.iter().find(|frame| !named.contains(frame)).copied();
                    dirty.clear();
                    if let Some(frame) = missing.filter(|_| self.excuse.is_none()) {
                        return Err(Conviction {
                            step: at,
                            kind: Kind::DirtyLog,
                            seen: format!("a dirty log that names the frames {named:x?}"),
                            expected: format!("the guest has changed frame {frame:#x} since the last one"),
                        });
                    }
                }
            }
            _ => (),
        }
        self.quiet(at, changes)
    }

    #[allow(clippy::too_many_arguments)]
    fn access(
        &mut self,
        at: usize,
        gva: Gva,
        access: Access,
        (size, value): (u8, u64),
        rip: u64,
        seen: &Seen,
        changes: &[Change],
    ) -> Result<(), Conviction> {
        if self.excuse.is_some() {
            self.tally.excused += 1;
            self.adopt(changes);
            return Ok(());
        }
        self.tally.judged += 1;
        let convict = |kind, expected| Err(Conviction { step: at, kind, seen: exception(seen), expected });
        let bytes: ArrayVec<u8, 8> = match access.kind {
            AccessKind::Write => value.to_le_bytes()[..usize::from(size)].iter().copied().collect(),
            AccessKind::Read | AccessKind::Fetch => ArrayVec::new(),
        };
        let piece = [Piece { gva, bytes }];
        let fetch = access.kind == AccessKind::Fetch;
        match seen.vector {
            PAGE_FAULT => {
                self.tally.faults += 1;
                if seen.rip != rip {
                    return convict(Kind::Exception, format!("the instruction at {rip:#x} raises the fault"));
                }
                let fault = PageFault { code: Pfec::from_bits_retain(seen.error), gva: Gva::new(seen.cr2) };
                if self.table_outside_memory(gva) && !fault.code.contains(Pfec::PRESENT) && fault.gva == gva {
                    self.tally.excused += 1;
                    self.adopt(changes);
                    return Ok(());
                }
                let observed = Observed::Fault(fault);
                self.oracle
                    .judge_access(0, access, &piece, &observed, changes)
                    .or_else(|why| convict(Kind::Fault, self.allowed(gva, access, size, why)))
            }
            vector if vector == if fetch { BREAKPOINT } else { DONE } => {
                self.done(at, gva, access, size, &piece, seen, changes)
            }
            _ => convict(Kind::Exception, String::from("this access takes place, or raises #PF")),
        }
    }

    /// An access took place: finds a place that explains what it read, and the memory that it left.
    #[allow(clippy::too_many_arguments)]
    fn done(
        &mut self,
        at: usize,
        gva: Gva,
        access: Access,
        size: u8,
        piece: &[Piece; 1],
        seen: &Seen,
        changes: &[Change],
    ) -> Result<(), Conviction> {
        let mut places: Vec<PhysAddr> = Vec::new();
        for candidate in self.oracle.candidates(0, gva, access) {
            if let Ok(place) = candidate.result
                && !places.contains(&place)
            {
                places.push(place);
            }
        }
        let kind = if places.is_empty() { Kind::NoFault } else { Kind::Place };
        let mut refusal = None;
        for place in places {
            let mut changes = changes.to_vec();
            let word = place.word();
            if access.kind == AccessKind::Write {
                // A store may leave a word as it was, although the walk had set bits in it.
                if !changes.iter().any(|change| change.at == word) {
                    changes.push(Change { at: word, value: self.oracle.memory().read(word) });
                }
            } else {
                // The walk may have set bits in the very word that is read.
                let now = changes.iter().find(|change| change.at == word).map(|change| change.value);
                let now = now.unwrap_or_else(|| self.oracle.memory().read(word));
                if visible(now, place, access, size) != seen.value {
                    continue;
                }
            }
            let observed = Observed::Done([place].into_iter().collect::<ArrayVec<PhysAddr, 2>>());
            match self.oracle.judge_access(0, access, piece, &observed, &changes) {
                Ok(()) => return Ok(()),
                Err(why) => refusal = Some(why),
            }
        }
        if let Some(why) = refusal {
            return Err(memory(at, why));
        }
        let expected = self.allowed(gva, access, size, String::new());
        Err(Conviction { step: at, kind, seen: exception(seen), expected })
    }

    /// What bare hardware allows, in words.
    fn allowed(&self, gva: Gva, access: Access, size: u8, why: String) -> String {
        let mut all: Vec<String> = Vec::new();
        for candidate in self.oracle.candidates(0, gva, access) {
            let text = match candidate.result {
                Ok(at) if access.kind == AccessKind::Write => format!("the write to {at:?}"),
                Ok(at) => format!(
                    "{:#x} from {at:?}",
                    visible(self.oracle.memory().read(at.word()), at, access, size)
                ),
                Err(code) => format!("#PF with error code {:#x} and CR2 {:#x}", code.bits(), gva.raw()),
            };
            if !all.contains(&text) {
                all.push(text);
            }
        }
        let text = format!("bare hardware allows {}", all.join(", or "));
        if why.is_empty() || why.starts_with("bare hardware allows") {
            text
        } else {
            format!("{text}; {why}")
        }
    }

    /// [`Excuse::TableOutsideMemory`].
    fn table_outside_memory(&self, gva: Gva) -> bool {
        let found = walk(self.oracle.memory(), self.oracle.control(0), gva);
        let last = found.visits.last().map(|visit| visit.next().table);
        found.end == WalkEnd::Reserved && last.is_some_and(|table| table.raw() >= ARENA)
    }
}

/// What the guest sees of an access that reaches this place, of a word with these contents.
fn visible(word: u64, place: PhysAddr, access: Access, size: u8) -> u64 {
    match access.kind {
        AccessKind::Fetch => image::code_value(word),
        AccessKind::Read | AccessKind::Write => image::part(word, place.raw(), size),
    }
}

fn memory(step: usize, why: String) -> Conviction {
    let (seen, expected) = why.split_once(": ").unwrap_or((&why, "bare hardware leaves memory as it was"));
    Conviction { step, kind: Kind::Memory, seen: String::from(seen), expected: String::from(expected) }
}

/// How an access ended, in words.
fn exception(seen: &Seen) -> String {
    match seen.vector {
        DONE | BREAKPOINT => format!("the value {:#x}", seen.value),
        PAGE_FAULT => {
            format!("#PF with error code {:#x} and CR2 {:#x} at {:#x}", seen.error, seen.cr2, seen.rip)
        }
        vector => format!("exception {vector} with error code {:#x} at {:#x}", seen.error, seen.rip),
    }
}

/// The offset of the code in each page.
pub const CODE_OFFSET: u64 = CODE_WORD * 8;
