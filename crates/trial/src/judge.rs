//! Compares what the guest saw with what bare hardware allows.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};
use umbra_paging::{Access, AccessKind, Gva, Pfec};
use umbra_reference::hardware::{Control, End as WalkEnd, PageFault, walk};
use umbra_reference::memory::{PhysAddr, PhysicalMemory};
use umbra_reference::oracle::{Change, Observed, Oracle, Piece};
use umbra_reference::registers::{Invalidation, Registers};
use umbra_reference::universe::{Universe, tree_page};

use crate::image::{self, A, D, PS};
use crate::layout::{ARENA, CODE_WORD, HOT, PAGE, REGION, REGIONS, SLOTS, direct};
use crate::program::{HostEvent, Program, Step};
use crate::record::{End, Record, Seen, parse};
use crate::stub::{BREAKPOINT, DONE, INVALID_OPCODE, PAGE_FAULT, Stub};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Steps that were taken.
    pub steps: u64,
    /// Accesses that were judged.
    pub judged: u64,
    /// Accesses that were not: see [`Excuse`].
    pub excused: u64,
    /// Page faults among the judged.
    pub faults: u64,
    /// Known defects of the emulator that were met: see [`judge_bare`].
    pub defects: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Tally) {
        self.steps += other.steps;
        self.judged += other.judged;
        self.excused += other.excused;
        self.faults += other.faults;
        self.defects += other.defects;
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
    /// Code is executed where no memory is. KVM, Documentation/virt/kvm/api.rst,
    /// KVM_CAP_EXIT_ON_EMULATION_FAILURE: what KVM cannot emulate ends the guest's run or gives
    /// #UD.
    CodeOutsideMemory,
    /// An access reaches no memory: the monitor carries it out, and which accessed and dirty bits
    /// are set on the way is not judged.
    NoMemory,
    /// CR0.WP is clear, and the kernel writes to a read-only page of user mode with SMAP on. Linux,
    /// Documentation/virt/kvm/x86/mmu.rst, "Emulating cr0.wp": "since the page has been changed to
    /// a kernel page, it can not be reused when CR4.SMAP is enabled. [...] Note, here we do not
    /// care the case that CR4.SMAP is enabled". So the page may be reached without AC, too.
    SmapWithoutWp,
    /// EFER.NXE is clear. Linux, `arch/x86/kvm/mmu/mmu.c`: "KVM forces EFER.NX=1 when TDP is
    /// disabled, reflect it in the MMU role." An entry with XD set may serve as if NXE were set.
    ForcedNx,
}

/// An access as it was meant.
struct Call {
    step: usize,
    cpu: usize,
    gva: Gva,
    access: Access,
    size: u8,
    /// Where its instruction stands.
    rip: u64,
    piece: [Piece; 1],
}

struct Judge<'a> {
    program: &'a Program,
    /// The emulator, if there is no hypervisor: see [`judge_bare`].
    bare: Option<Emulator>,
    /// By virtual CPU.
    registers: Vec<Registers>,
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
    judge_on(program, record, None)
}

/// An emulator without a hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// QEMU's TCG, 7.2.
    Qemu,
    /// Bochs, 2.7.
    Bochs,
}

/// Judges a run on an emulator without a hypervisor.
///
/// These defects are known of QEMU:
///
/// - A page fault for a reserved bit has P = 0 in its error code (0x8, 0xa, 0xc and so on). SDM,
///   "Page-Fault Exceptions": RSVD is 1 only with P = 1. The fault is judged as if P were set.
/// - It sets the accessed bit in the very entry that has the reserved bit, if that maps a large
///   page. SDM, "Accessed and Dirty Flags": a flag is set when an entry is used for a translation.
/// - A page fault leaves cached translations of its address in place. SDM, "Operations that
///   Invalidate TLBs and Paging-Structure Caches": it invalidates them.
/// - Reads where no memory is give zeros, which is as good as ones.
///
/// And these of Bochs:
///
/// - A page fault of a read or write leaves what is cached for instruction fetches, and the other
///   way round: it has two TLBs, and drops the entry of the access alone.
/// - It caches a large page as small ones, and a page fault drops the one of its address alone.
///   SDM, "Details of TLB Use": the others have to go only as far as the paging structures still
///   specify the page. So this is no defect, but the oracle does not expect it of a CPU, as guests
///   do not.
///
/// # Errors
/// As [`judge`].
pub fn judge_bare(
    program: &Program,
    record: &Record,
    emulator: Emulator,
) -> Result<Tally, Box<Conviction>> {
    judge_on(program, record, Some(emulator))
}

fn judge_on(
    program: &Program,
    record: &Record,
    bare: Option<Emulator>,
) -> Result<Tally, Box<Conviction>> {
    let registers = vec![image::registers(program); program.cpus()];
    let control = |registers: &Registers| registers.control(&image::cpu(program));
    let controls: Vec<Control> = registers.iter().map(control).collect();
    let mut judge = Judge {
        program,
        bare,
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
    fn is_qemu(&self) -> bool {
        self.bare == Some(Emulator::Qemu)
    }

    fn run(&mut self, record: &Record) -> Result<(), Conviction> {
        let wrong = |step, kind, seen: String, expected: &str| {
            Err(Conviction { step, kind, seen, expected: String::from(expected) })
        };
        let seen = match parse(&record.results) {
            Ok(seen) => seen,
            Err(garbled) => {
                return wrong(
                    garbled.0,
                    Kind::Memory,
                    garbled.to_string(),
                    "the stub's memory is its own",
                );
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
                return wrong(
                    at,
                    Kind::Ended,
                    "too few results".into(),
                    "the stub writes one a step",
                );
            }
            _ if self.ends_by_code_outside_memory(at) => self.tally.excused += 1,
            End::TripleFault => {
                return wrong(
                    at,
                    Kind::Ended,
                    "a triple fault".into(),
                    "the stub and its tables are there",
                );
            }
            End::GaveUp(why) => return wrong(at, Kind::Ended, why.clone(), "the CPU goes on"),
            End::Hung => {
                return wrong(
                    at,
                    Kind::Ended,
                    "a guest that does not return".into(),
                    "a step ends",
                );
            }
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
        let candidates = self.oracle.candidates(self.program.cpu(at), Gva::new(gva), access);
        let outside = |at: &PhysAddr| !self.oracle.memory().contains(*at);
        candidates.iter().any(|candidate| candidate.result.as_ref().is_ok_and(outside))
            || self.excuse.is_some()
    }

    fn step(
        &mut self,
        at: usize,
        step: &Step,
        seen: &Seen,
        record: &Record,
    ) -> Result<(), Conviction> {
        let changes: Vec<Change> = seen
            .changes
            .iter()
            .map(|&(gpa, value)| Change { at: PhysAddr::new(gpa), value })
            .collect();
        let wrong = |kind, seen: String, expected: String| {
            Err(Conviction { step: at, kind, seen, expected })
        };
        let cpu = self.program.cpu(at);
        let before = self.registers[cpu];
        match *step {
            Step::Read { .. } | Step::Write { .. } | Step::Fetch { .. } => {
                let call = self.call(at, step);
                self.access(&call, seen, &changes)?;
            }
            Step::Host(event) => {
                self.host(at, event, &changes, record)?;
            }
            _ => {
                if let Some(instruction) = image::privileged(step) {
                    let registers = &mut self.registers[cpu];
                    let invalidation = registers.execute(instruction);
                    let control = registers.control(&image::cpu(self.program));
                    self.oracle.executed(cpu, control, invalidation);
                    self.quiet(at, &changes)?;
                }
            }
        }
        let plain = !matches!(step, Step::Read { .. } | Step::Write { .. } | Step::Fetch { .. });
        if plain && !seen.is_plain() {
            let change = if before == self.registers[cpu] {
                ""
            } else {
                ", which changes control registers"
            };
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

    /// The access of a step that is one.
    fn call(&self, at: usize, step: &Step) -> Call {
        let (kind, gva, size, user, ac, value, rip) = match *step {
            Step::Write { gva, size, user, ac, value } => {
                (AccessKind::Write, gva, size, user, ac, value, self.stub.write_rip(size, user))
            }
            Step::Fetch { gva, user } => (AccessKind::Fetch, gva, 8, user, false, 0, gva),
            Step::Read { gva, size, user, ac } => {
                (AccessKind::Read, gva, size, user, ac, 0, self.stub.read_rip(size, user))
            }
            _ => unreachable!("only accesses are asked about"),
        };
        let written = if kind == AccessKind::Write { usize::from(size) } else { 0 };
        let bytes = value.to_le_bytes()[..written].iter().copied().collect::<ArrayVec<u8, 8>>();
        let gva = Gva::new(gva);
        let access = Access { kind, user, smap_override: ac && !user };
        let cpu = self.program.cpu(at);
        Call { step: at, cpu, gva, access, size, rip, piece: [Piece { gva, bytes }] }
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
            let explained = self.oracle.judge_write(
                change.at,
                &change.value.to_le_bytes(),
                std::slice::from_ref(change),
            );
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
                    self.oracle
                        .judge_write(place, &bytes, changes)
                        .map_err(|why| memory(at, why))?;
                }
                if SLOTS.contains(&(gpa % PAGE / 8)) && self.excuse.is_none() {
                    self.excuse = Some(Excuse::HostWroteTables);
                }
                return Ok(());
            }
            HostEvent::Cycle { region, .. }
            | HostEvent::Move { region }
            | HostEvent::Shift { region } => {
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
                            expected: format!(
                                "the guest has changed frame {frame:#x} since the last one"
                            ),
                        });
                    }
                }
            }
            _ => (),
        }
        self.quiet(at, changes)
    }

    fn access(&mut self, call: &Call, seen: &Seen, changes: &[Change]) -> Result<(), Conviction> {
        if self.excuse.is_some() {
            self.tally.excused += 1;
            self.adopt(changes);
            return Ok(());
        }
        self.tally.judged += 1;
        self.tally.faults += u64::from(seen.vector == PAGE_FAULT);
        let conviction = match self.attempt(call, seen, changes) {
            Ok(()) => return Ok(()),
            Err(conviction) => conviction,
        };
        match self.pardon(call, seen, changes) {
            Some(_) => {
                self.tally.excused += 1;
                Ok(())
            }
            None => Err(conviction),
        }
    }

    /// Judges an access without leave for anything.
    fn attempt(&mut self, call: &Call, seen: &Seen, changes: &[Change]) -> Result<(), Conviction> {
        let convict = |kind, expected| {
            Err(Conviction { step: call.step, kind, seen: exception(seen), expected })
        };
        let end = if call.access.kind == AccessKind::Fetch { BREAKPOINT } else { DONE };
        match seen.vector {
            PAGE_FAULT => {
                if seen.rip != call.rip {
                    let expected = format!("the instruction at {:#x} raises the fault", call.rip);
                    return convict(Kind::Exception, expected);
                }
                let mut code = Pfec::from_bits_retain(seen.error);
                if self.is_qemu() && code.contains(Pfec::RSVD) && !code.contains(Pfec::PRESENT) {
                    self.tally.defects += 1;
                    code |= Pfec::PRESENT;
                }
                let fault = PageFault { code, gva: Gva::new(seen.cr2) };
                if self.bare.is_some() {
                    return match self.explains_fault(call, fault, changes) {
                        true => {
                            self.adopt(changes);
                            Ok(())
                        }
                        false => convict(Kind::Fault, self.allowed(call, String::new())),
                    };
                }
                self.oracle
                    .judge_access(
                        call.cpu,
                        call.access,
                        &call.piece,
                        &Observed::Fault(fault),
                        changes,
                    )
                    .or_else(|why| convict(Kind::Fault, self.allowed(call, why)))
            }
            vector if vector == end => self.done(call, seen, changes),
            _ => convict(Kind::Exception, String::from("this access takes place, or raises #PF")),
        }
    }

    /// Looks for an excuse for an access that would be convicted, and takes over what it changed.
    fn pardon(&mut self, call: &Call, seen: &Seen, changes: &[Change]) -> Option<Excuse> {
        let Call { cpu, gva, access, .. } = *call;
        let candidates = self.oracle.candidates(cpu, gva, access);
        let memory = self.oracle.memory();
        let nowhere: Vec<PhysAddr> = candidates
            .iter()
            .filter_map(|candidate| candidate.result.ok())
            .filter(|&place| !memory.contains(place))
            .collect();
        let marks = |change: &Change| {
            let before = memory.read(change.at);
            let passed =
                candidates.iter().any(|candidate| candidate.passed.contains(&(change.at, A)));
            passed
                && change.value & !(A | D) == before & !(A | D)
                && change.value & before == before
        };
        let marked = changes.iter().all(marks);
        let fault = seen.vector == PAGE_FAULT && seen.rip == call.rip && seen.cr2 == gva.raw();
        let expected_error = self.oracle.control(cpu).access_code(access).bits();
        let reads = |&place: &PhysAddr| visible(u64::MAX, place, access, call.size) == seen.value;
        let excuse = if marked
            && fault
            && seen.error == expected_error
            && self.table_outside_memory(cpu, gva)
        {
            Some(Excuse::TableOutsideMemory)
        } else if marked && access.kind == AccessKind::Fetch {
            let undefined =
                seen.vector == INVALID_OPCODE && seen.rip == gva.raw() && !nowhere.is_empty();
            undefined.then_some(Excuse::CodeOutsideMemory)
        } else {
            let done =
                seen.vector == DONE && nowhere.iter().any(|at| access.is_write() || reads(at));
            (marked && done).then_some(Excuse::NoMemory)
        };
        if excuse.is_some() {
            self.adopt(changes);
            return excuse;
        }
        if self.bare.is_some() {
            return None;
        }
        if self.is_smap_without_wp(call)
            && self.under(
                cpu,
                |control| control.smap = false,
                |judge| judge.attempt(call, seen, changes).is_ok(),
            )
        {
            return Some(Excuse::SmapWithoutWp);
        }
        let forced = !self.registers[cpu].nxe
            && self.under(
                cpu,
                |control| control.nxe = true,
                |judge| judge.attempt(call, seen, changes).is_ok(),
            );
        forced.then_some(Excuse::ForcedNx)
    }

    /// Whether [`Excuse::SmapWithoutWp`] can be meant: CR0.WP alone would keep the page from being
    /// written.
    fn is_smap_without_wp(&mut self, call: &Call) -> bool {
        let cpu = call.cpu;
        let Control { wp, smap, .. } = *self.oracle.control(cpu);
        let write = Access { kind: AccessKind::Write, user: false, smap_override: true };
        let is_writable = |judge: &mut Self| {
            let candidates = judge.oracle.candidates(cpu, call.gva, write);
            candidates.iter().any(|candidate| candidate.result.is_ok())
        };
        !wp && smap
            && !call.access.user
            && call.access.kind != AccessKind::Fetch
            && is_writable(self)
            && !self.under(cpu, |control| control.wp = true, is_writable)
    }

    /// Asks under other control registers, which change nothing that is cached.
    fn under<T>(
        &mut self,
        cpu: usize,
        change: impl FnOnce(&mut Control),
        ask: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let control = *self.oracle.control(cpu);
        let mut other = control;
        change(&mut other);
        self.oracle.executed(cpu, other, Invalidation::Nothing);
        let answer = ask(self);
        self.oracle.executed(cpu, control, Invalidation::Nothing);
        answer
    }

    /// Whether a page fault is one of a bare emulator's: as on bare hardware, but for what
    /// [`judge_bare`] says. The oracle does not hear that it was delivered, so it forgets no
    /// translations.
    fn explains_fault(&mut self, call: &Call, fault: PageFault, changes: &[Change]) -> bool {
        let Call { cpu, gva, access, .. } = *call;
        let candidates = self.oracle.candidates(cpu, gva, access);
        let reserved = if self.is_qemu() { self.reserved_entry(cpu, gva) } else { None };
        let mut marked = Vec::new();
        for change in changes {
            let before = self.oracle.memory().read(change.at);
            if change.value != before | A {
                return false;
            }
            marked.push(change.at);
        }
        self.tally.defects += u64::from(reserved.is_some_and(|at| marked.contains(&at)));
        let passed =
            |at: &PhysAddr| candidates.iter().any(|candidate| candidate.passed.contains(&(*at, A)));
        fault.gva == gva
            && candidates.iter().any(|candidate| candidate.result == Err(fault.code))
            && marked.iter().all(|at| passed(at) || reserved == Some(*at))
    }

    /// The entry with a reserved bit that a walk ends at, if it maps a large page.
    fn reserved_entry(&self, cpu: usize, gva: Gva) -> Option<PhysAddr> {
        let found = walk(self.oracle.memory(), self.oracle.control(cpu), gva);
        let last = found.visits.last().filter(|_| found.end == WalkEnd::Reserved)?;
        let next = last.next();
        let index = gva.raw() >> (12 + 9 * (u32::from(next.level) - 1)) & 511;
        let at = PhysAddr::new(next.table.raw() + 8 * index);
        (self.oracle.memory().read(at) & PS != 0).then_some(at)
    }

    /// What is read at a place.
    fn word(&self, place: PhysAddr) -> u64 {
        let nowhere = self.is_qemu() && !self.oracle.memory().contains(place);
        if nowhere { 0 } else { self.oracle.memory().read(place.word()) }
    }

    /// An access took place: finds a place that explains what it read, and the memory that it left.
    fn done(&mut self, call: &Call, seen: &Seen, changes: &[Change]) -> Result<(), Conviction> {
        let Call { step: at, cpu, gva, access, size, ref piece, .. } = *call;
        let mut places: Vec<PhysAddr> = Vec::new();
        for candidate in self.oracle.candidates(cpu, gva, access) {
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
                let now =
                    changes.iter().find(|change| change.at == word).map(|change| change.value);
                let now = now.unwrap_or_else(|| self.word(place));
                if visible(now, place, access, size) != seen.value {
                    continue;
                }
            }
            let observed = Observed::Done([place].into_iter().collect::<ArrayVec<PhysAddr, 2>>());
            match self.oracle.judge_access(cpu, access, piece, &observed, &changes) {
                Ok(()) => return Ok(()),
                Err(why) => refusal = Some(why),
            }
        }
        if let Some(why) = refusal {
            return Err(memory(at, why));
        }
        let expected = self.allowed(call, String::new());
        Err(Conviction { step: at, kind, seen: exception(seen), expected })
    }

    /// What bare hardware allows, in words.
    fn allowed(&self, call: &Call, why: String) -> String {
        let Call { cpu, gva, access, size, .. } = *call;
        let mut all: Vec<String> = Vec::new();
        for candidate in self.oracle.candidates(cpu, gva, access) {
            let text = match candidate.result {
                Ok(at) if access.kind == AccessKind::Write => format!("the write to {at:?}"),
                Ok(at) => format!("{:#x} from {at:?}", visible(self.word(at), at, access, size)),
                Err(code) => {
                    format!("#PF with error code {:#x} and CR2 {:#x}", code.bits(), gva.raw())
                }
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
    fn table_outside_memory(&self, cpu: usize, gva: Gva) -> bool {
        let found = walk(self.oracle.memory(), self.oracle.control(cpu), gva);
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
    let (seen, expected) =
        why.split_once(": ").unwrap_or((&why, "bare hardware leaves memory as it was"));
    Conviction {
        step,
        kind: Kind::Memory,
        seen: String::from(seen),
        expected: String::from(expected),
    }
}

/// How an access ended, in words.
fn exception(seen: &Seen) -> String {
    match seen.vector {
        DONE | BREAKPOINT => format!("the value {:#x}", seen.value),
        PAGE_FAULT => {
            format!(
                "#PF with error code {:#x} and CR2 {:#x} at {:#x}",
                seen.error, seen.cr2, seen.rip
            )
        }
        vector => {
            format!("exception {vector} with error code {:#x} at {:#x}", seen.error, seen.rip)
        }
    }
}

/// The offset of the code in each page.
pub const CODE_OFFSET: u64 = CODE_WORD * 8;
