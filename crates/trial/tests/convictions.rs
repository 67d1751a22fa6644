//! A guest that sees something else than bare hardware shows is a conviction; what is excused, is
//! so in one case only, and its neighbours are not.

use umbra_paging::{Access, Gva};
use umbra_reference::hardware::Temper;
use umbra_reference::machine::{Bare, Broken, Machine};
use umbra_reference::memory::{PhysAddr, PhysicalMemory};
use umbra_reference::oracle::{Change, Observed, Piece};
use umbra_reference::registers::{Invalidation, Privileged, Registers};
use umbra_trial::generate::{STEPS, program_of_two};
use umbra_trial::image;
use umbra_trial::judge::{Emulator, Kind, Tally, judge, judge_bare};
use umbra_trial::layout::{HOLE, HOT, PAGE, direct};
use umbra_trial::program::{HostEvent, Invalid, Program, Step};
use umbra_trial::record::{End, Record, Seen, parse, unparse};
use umbra_trial::simulated;
use umbra_trial::stub::DONE;

/// P, W, U, A.
const OPEN: u64 = 0x27;
const D: u64 = 1 << 6;
const NX: u64 = 1 << 63;
/// An address whose index is 0 at each level, in the word 2 of its page.
const AT: u64 = 0x10;
/// The code of that page.
const CODE: u64 = 0x28;
/// Where that page normally lies.
const DATA: u64 = 0x210;

/// A program in which the page at 0 is mapped by `page` in PT A, before `steps`.
fn mapped(page: u64, steps: &[Step]) -> Program {
    let [root, pdpt, pd, pt] = [0, 2, 4, 6].map(|at| HOT[at]);
    let links = [
        (root, (pdpt * PAGE) | OPEN),
        (pdpt, (pd * PAGE) | OPEN),
        (pd, (pt * PAGE) | OPEN),
        (pt, page),
    ];
    let edits = links.map(|(table, value)| edit(table, value));
    let flush = [Step::Cr3 { frame: root }];
    let steps = edits.iter().chain(&flush).chain(steps).copied().collect();
    Program {
        seed: 1,
        tables: 7,
        maxphyaddr: 40,
        old: false,
        huge: false,
        tight: false,
        turns: Vec::new(),
        steps,
    }
}

/// The same for two virtual CPUs: CPU 0 maps the page, and `steps` name theirs.
fn mapped_for_two(page: u64, steps: &[(u8, Step)]) -> Program {
    let own: Vec<Step> = steps.iter().map(|&(_, step)| step).collect();
    let mut program = mapped(page, &own);
    program.turns = vec![0; program.steps.len() - steps.len()];
    program.turns.extend(steps.iter().map(|&(cpu, _)| cpu));
    program
}

/// The guest writes the first entry of a table.
fn edit(table: u64, value: u64) -> Step {
    Step::Write { gva: direct(table * PAGE).raw(), size: 8, user: false, ac: false, value }
}

const READ: Step = Step::Read { gva: AT, size: 8, user: true, ac: false };

fn record(program: &Program) -> Record {
    assert_eq!(program.check(), Ok(()));
    simulated::run(Bare::new(simulated::start(program, Temper::FORGETFUL)), program)
}

/// What the guest sees in the last step is changed.
fn tampered(program: &Program, change: impl FnOnce(&mut Seen)) -> Record {
    let mut record = record(program);
    let mut seen = parse(&record.results).unwrap();
    change(seen.last_mut().unwrap());
    record.results = unparse(&seen);
    record
}

fn verdict(program: &Program, change: impl FnOnce(&mut Seen)) -> Result<Tally, Kind> {
    judge(program, &tampered(program, change)).map_err(|conviction| conviction.kind)
}

fn convicted(program: &Program, change: impl FnOnce(&mut Seen)) -> Kind {
    verdict(program, change).expect_err("bare hardware does not do that")
}

fn excused(program: &Program, change: impl FnOnce(&mut Seen)) -> bool {
    verdict(program, change).is_ok_and(|tally| tally.excused == 1)
}

fn fault(error: u32) -> impl Fn(&mut Seen) {
    move |seen| {
        assert_eq!(seen.vector, 14);
        seen.error = error;
    }
}

#[test]
fn each_thing_that_a_guest_sees_is_judged() {
    let reads = mapped((DATA * PAGE) | OPEN, &[READ]);
    assert!(verdict(&reads, |_| ()).is_ok());
    assert_eq!(convicted(&reads, |seen| seen.value ^= 1 << 40), Kind::Place);
    assert_eq!(convicted(&reads, |seen| seen.changes.push((0x1_6000, 0))), Kind::Memory);
    assert_eq!(convicted(&reads, |seen| seen.vector = 13), Kind::Exception);
    assert_eq!(convicted(&reads, |seen| (seen.vector, seen.error) = (14, 4)), Kind::Fault);

    let refused = mapped(0, &[READ]);
    assert!(verdict(&refused, |_| ()).is_ok());
    assert_eq!(convicted(&refused, fault(5)), Kind::Fault);
    assert_eq!(convicted(&refused, |seen| seen.cr2 += PAGE), Kind::Fault);
    assert_eq!(convicted(&refused, |seen| seen.rip += 2), Kind::Exception);
    assert_eq!(convicted(&refused, |seen| seen.vector = DONE), Kind::NoFault);

    // The accessed bit must be set, and D by a write.
    let fresh = mapped((DATA * PAGE) | (OPEN & !0x20), &[READ]);
    assert!(verdict(&fresh, |seen| assert_eq!(seen.changes.len(), 1)).is_ok());
    assert_eq!(convicted(&fresh, |seen| seen.changes.clear()), Kind::Memory);
    let write = Step::Write { gva: AT, size: 8, user: true, ac: false, value: 2 };
    let writes = mapped((DATA * PAGE) | OPEN, &[write]);
    assert!(verdict(&writes, |_| ()).is_ok());
    assert_eq!(
        convicted(&writes, |seen| seen.changes.retain(|&(at, _)| at / PAGE == DATA)),
        Kind::Memory
    );
    assert_eq!(
        convicted(&writes, |seen| seen.changes.retain(|&(at, _)| at / PAGE != DATA)),
        Kind::Memory
    );

    let fetches = mapped((DATA * PAGE) | OPEN, &[Step::Fetch { gva: CODE, user: true }]);
    assert!(verdict(&fetches, |_| ()).is_ok());
    assert_eq!(convicted(&fetches, |seen| seen.value = 0x211), Kind::Place);
}

#[test]
fn a_step_that_is_no_access_is_quiet() {
    let program = mapped((DATA * PAGE) | OPEN, &[Step::Wp(false)]);
    assert_eq!(convicted(&program, |seen| seen.vector = 13), Kind::Exception);
    assert_eq!(convicted(&program, |seen| seen.changes.push((DATA * PAGE, 4))), Kind::Memory);
    let discard = mapped((DATA * PAGE) | OPEN, &[Step::Host(HostEvent::Discard { frame: DATA })]);
    assert_eq!(convicted(&discard, |seen| seen.changes.push((DATA * PAGE, 0))), Kind::Memory);
}

#[test]
fn the_end_is_judged() {
    let program = mapped((DATA * PAGE) | OPEN, &[READ]);
    for end in [End::TripleFault, End::Hung, End::GaveUp("no".into())] {
        let ended = Record { end, ..record(&program) };
        assert_eq!(judge(&program, &ended).unwrap_err().kind, Kind::Ended);
    }
    let strays = vec![(0x3000, 1)];
    let stray = Record { strays, ..record(&program) };
    assert_eq!(judge(&program, &stray).unwrap_err().kind, Kind::Memory);
    let mut short = record(&program);
    short.results = unparse(&parse(&short.results).unwrap()[..3]);
    assert_eq!(judge(&program, &short).unwrap_err().kind, Kind::Ended);
}

#[test]
fn a_page_that_the_dirty_log_misses() {
    let region = 1;
    let log = Step::Host(HostEvent::Log { region, on: true });
    let harvest = Step::Host(HostEvent::Harvest { region });
    let write = Step::Write { gva: AT, size: 8, user: true, ac: false, value: 2 };
    let program = mapped((DATA * PAGE) | OPEN, &[log, write, harvest, harvest]);
    let full = record(&program);
    assert!(judge(&program, &full).is_ok());
    let mut missed = full.clone();
    missed.harvests[0].1.retain(|&frame| frame != DATA);
    assert_eq!(judge(&program, &missed).unwrap_err().kind, Kind::DirtyLog);
    // Nothing was written between the two.
    let mut second = full;
    second.harvests[1].1.clear();
    assert!(judge(&program, &second).is_ok());
}

#[test]
fn tables_that_the_host_writes() {
    let write =
        |word: u64| Step::Host(HostEvent::Write { gpa: HOT[6] * PAGE + word * 8, value: 0 });
    let cycle = Step::Host(HostEvent::Cycle { region: 0, read_only: false });
    let wrong = |seen: &mut Seen| seen.value ^= 2;
    let page = (DATA * PAGE) | OPEN;
    assert!(excused(&mapped(page, &[write(1), READ]), wrong));
    assert_eq!(convicted(&mapped(page, &[write(2), READ]), wrong), Kind::Place);
    assert_eq!(convicted(&mapped(page, &[write(1), cycle, READ]), wrong), Kind::Place);
}

#[test]
fn a_region_that_is_read_only() {
    let cycle = |read_only| Step::Host(HostEvent::Cycle { region: 1, read_only });
    let wrong = |seen: &mut Seen| seen.value ^= 2;
    let page = (DATA * PAGE) | OPEN;
    assert!(excused(&mapped(page, &[cycle(true), READ]), wrong));
    assert_eq!(convicted(&mapped(page, &[cycle(true), cycle(false), READ]), wrong), Kind::Place);
}

#[test]
fn a_table_where_no_memory_is() {
    let program = mapped((DATA * PAGE) | OPEN, &[edit(HOT[4], (HOLE * PAGE) | OPEN), READ]);
    assert!(verdict(&program, fault(0xd)).is_ok());
    assert!(excused(&program, fault(4)));
    assert_eq!(convicted(&program, fault(5)), Kind::Fault);
    assert_eq!(convicted(&program, fault(6)), Kind::Fault);
    let inside = mapped((DATA * PAGE) | OPEN | 1 << 51, &[READ]);
    assert_eq!(convicted(&inside, fault(4)), Kind::Fault);
}

#[test]
fn an_access_where_no_memory_is() {
    let program = mapped((HOLE * PAGE) | OPEN, &[READ]);
    let entry = HOT[6] * PAGE;
    assert!(verdict(&program, |seen| assert_eq!(seen.value, u64::MAX)).is_ok());
    assert!(excused(&program, |seen| seen.changes.push((entry, (HOLE * PAGE) | OPEN | D))));
    assert_eq!(
        convicted(&program, |seen| seen.changes.push((entry, (HOLE * PAGE) | 5))),
        Kind::Memory
    );
    assert_eq!(convicted(&program, |seen| seen.value = 0), Kind::Place);
    let inside = mapped((DATA * PAGE) | OPEN, &[READ]);
    assert_eq!(
        convicted(&inside, |seen| seen.changes.push((entry, (DATA * PAGE) | OPEN | D))),
        Kind::Memory
    );
}

#[test]
fn code_where_no_memory_is() {
    let fetch = Step::Fetch { gva: CODE, user: true };
    let undefined = |seen: &mut Seen| (seen.vector, seen.error, seen.rip) = (6, 0, CODE);
    let program = mapped((HOLE * PAGE) | OPEN, &[fetch]);
    assert!(excused(&program, undefined));
    assert_eq!(
        convicted(&program, |seen| (seen.vector, seen.rip) = (6, CODE + 1)),
        Kind::Exception
    );
    let inside = mapped((DATA * PAGE) | OPEN, &[fetch]);
    assert_eq!(convicted(&inside, undefined), Kind::Exception);
    let mut gave_up = record(&program);
    gave_up.results = unparse(&parse(&gave_up.results).unwrap()[..program.steps.len() - 1]);
    gave_up.end = End::GaveUp("an internal error".into());
    assert!(judge(&program, &gave_up).is_ok());
    let mut other = record(&inside);
    other.results = unparse(&parse(&other.results).unwrap()[..inside.steps.len() - 1]);
    other.end = gave_up.end;
    assert_eq!(judge(&inside, &other).unwrap_err().kind, Kind::Ended);
}

#[test]
fn nx_that_is_forced() {
    let page = (DATA * PAGE) | OPEN | NX;
    let flush = Step::Cr3 { frame: HOT[0] };
    let program = mapped(page, &[Step::Nxe(false), flush, READ]);
    let word = image::arena(&program).read(PhysAddr::new(DATA * PAGE + AT));
    let done = |value: u64| move |seen: &mut Seen| (seen.vector, seen.value) = (DONE, value);
    assert!(verdict(&program, fault(0xd)).is_ok());
    assert!(excused(&program, done(word)));
    assert_eq!(convicted(&program, done(word ^ 2)), Kind::NoFault);
    let reserved = mapped(page | 1 << 51, &[Step::Nxe(false), flush, READ]);
    assert_eq!(convicted(&reserved, done(word)), Kind::NoFault);
}

#[test]
fn smap_with_wp_clear() {
    const W: u64 = 2;
    let supervisor = |kind| match kind {
        0 => Step::Read { gva: AT, size: 8, user: false, ac: false },
        _ => Step::Write { gva: AT, size: 8, user: false, ac: false, value: 2 },
    };
    let program = |page, wp, kind| mapped(page, &[Step::Wp(wp), supervisor(kind)]);
    let read_only = (DATA * PAGE) | OPEN & !W | D;
    let read = program(read_only, false, 0);
    let word = image::arena(&read).read(PhysAddr::new(DATA * PAGE + AT));
    let done = |value: u64| move |seen: &mut Seen| (seen.vector, seen.value) = (DONE, value);
    assert!(verdict(&read, fault(1)).is_ok());
    assert!(excused(&read, done(word)));
    assert_eq!(convicted(&read, done(word ^ 2)), Kind::NoFault);
    assert_eq!(convicted(&read, fault(5)), Kind::Fault);
    let write = program(read_only, false, 1);
    let written = (DATA * PAGE + AT, 2);
    assert!(excused(&write, |seen| (seen.vector, seen.changes) = (DONE, vec![written])));
    assert_eq!(
        convicted(&write, |seen| (seen.vector, seen.changes) = (DONE, vec![(written.0, 3)])),
        Kind::NoFault
    );
    // With CR0.WP set, or where the page may be written, nothing changes whose page it is.
    assert_eq!(convicted(&program(read_only, true, 0), done(word)), Kind::NoFault);
    assert_eq!(convicted(&program(read_only | W, false, 0), done(word)), Kind::NoFault);
}

#[test]
fn a_reserved_bit_on_qemu() {
    let program = mapped((DATA * PAGE) | OPEN | 1 << 51, &[READ]);
    let bare = |error| {
        judge_bare(&program, &tampered(&program, fault(error)), Emulator::Qemu)
            .map_err(|conviction| conviction.kind)
    };
    assert_eq!(convicted(&program, fault(0xc)), Kind::Fault);
    assert_eq!(bare(0xc).map(|tally| tally.defects), Ok(1));
    assert_eq!(bare(0xd).map(|tally| tally.defects), Ok(0));
    assert_eq!(bare(0xe), Err(Kind::Fault));
    assert_eq!(bare(0x4), Err(Kind::Fault));
}

#[test]
fn a_page_fault_on_bochs() {
    const LARGE: u64 = 0x200;
    let [root, pdpt, pd] = [0, 2, 4].map(|at| HOT[at]);
    let read = |page: u64| Step::Read { gva: page * PAGE + AT, size: 8, user: true, ac: false };
    // Page 1 is used; the large page goes without a flush; page 0 faults.
    let large = edit(pd, (LARGE * PAGE) | OPEN | 0x80);
    let flush = Step::Cr3 { frame: root };
    let program = mapped(0, &[large, flush, read(1), edit(pdpt, 0), read(0), read(1)]);
    let place = PhysAddr::new((LARGE + 1) * PAGE + AT);
    let word = image::arena(&program).read(place);
    let stale = |emulator: Option<Emulator>, word: u64| {
        let record = tampered(&program, |seen| (seen.vector, seen.value) = (DONE, word));
        let verdict = match emulator {
            Some(emulator) => judge_bare(&program, &record, emulator),
            None => judge(&program, &record),
        };
        verdict.map_err(|conviction| conviction.kind).err()
    };
    assert_eq!(stale(Some(Emulator::Bochs), word), None);
    assert_eq!(stale(None, word), Some(Kind::NoFault));
    assert_eq!(stale(Some(Emulator::Bochs), word ^ 1 << 40), Some(Kind::Place));
    // It has none of QEMU's defects.
    let reserved = mapped((DATA * PAGE) | OPEN | 1 << 51, &[READ]);
    let record = tampered(&reserved, fault(0xc));
    let verdict = judge_bare(&reserved, &record, Emulator::Bochs);
    assert_eq!(verdict.map_err(|conviction| conviction.kind), Err(Kind::Fault));
}

#[test]
fn each_cpu_has_a_tlb_of_its_own() {
    const OTHER: u64 = 0x211;
    let invlpg = Step::Invlpg { gva: AT };
    let remap = edit(HOT[6], (OTHER * PAGE) | OPEN);
    let page = (DATA * PAGE) | OPEN;
    let old = image::arena(&mapped(page, &[])).read(PhysAddr::new(DATA * PAGE + AT));
    // CPU `reader` reads the page, CPU 0 maps another one there, `flusher` flushes, and `reader`
    // sees the old page.
    let stale = |reader: u8, flusher: u8| {
        let steps = [(reader, READ), (0, remap), (flusher, invlpg), (reader, READ)];
        verdict(&mapped_for_two(page, &steps), |seen| {
            assert_ne!(seen.value, old);
            seen.value = old;
        })
    };
    for (reader, flusher) in [(0, 1), (1, 0)] {
        assert!(stale(reader, flusher).is_ok(), "{reader} {flusher}");
    }
    for cpu in [0, 1] {
        assert_eq!(stale(cpu, cpu), Err(Kind::Place), "{cpu}");
    }
    // A page that was never mapped is no cached one.
    let steps = [(1, READ), (0, remap), (0, invlpg), (1, READ)];
    let program = mapped_for_two(page, &steps);
    assert_eq!(convicted(&program, |seen| seen.value = old ^ 2), Kind::Place);
}

#[test]
fn each_cpu_has_control_registers_of_its_own() {
    let page = (DATA * PAGE) | (OPEN & !2);
    let write = Step::Write { gva: AT, size: 8, user: false, ac: true, value: 2 };
    let by = |cpu: u8| mapped_for_two(page, &[(1, Step::Wp(false)), (cpu, write)]);
    assert!(verdict(&by(0), |seen| assert_eq!((seen.vector, seen.error), (14, 3))).is_ok());
    assert!(verdict(&by(1), |seen| assert_eq!(seen.vector, DONE)).is_ok());
    assert_eq!(convicted(&by(0), |seen| seen.vector = DONE), Kind::NoFault);
    assert_eq!(convicted(&by(1), |seen| (seen.vector, seen.error) = (14, 3)), Kind::Fault);
}

#[test]
fn bits_that_the_other_cpu_sets() {
    let pt = HOT[6];
    let page = (DATA * PAGE) | (OPEN & !0x20);
    let entry = pt * PAGE;
    // A read of CPU 1 sets A, and not D.
    let reads = mapped_for_two(page, &[(1, READ)]);
    assert!(verdict(&reads, |seen| assert_eq!(seen.changes, [(entry, page | 0x20)])).is_ok());
    assert_eq!(convicted(&reads, |seen| seen.changes.clear()), Kind::Memory);
    let dirty = |seen: &mut Seen| seen.changes = vec![(entry, page | 0x20 | D)];
    assert_eq!(convicted(&reads, dirty), Kind::Memory);
    // CPU 0 has cached the page as clean, and CPU 1 clears A: a write of CPU 0 sets D again.
    let write = Step::Write { gva: AT, size: 8, user: true, ac: false, value: 2 };
    let writes = mapped_for_two(page, &[(0, READ), (1, edit(pt, page)), (0, write)]);
    assert!(verdict(&writes, |_| ()).is_ok());
    let missing = |seen: &mut Seen| seen.changes.retain(|&(at, _)| at != entry);
    assert_eq!(convicted(&writes, missing), Kind::Memory);
}

/// Hardware whose CPU 1 flushes nothing.
struct Deaf(Bare);

impl Machine for Deaf {
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken> {
        self.0.access(cpu, access, pieces)
    }

    fn execute(
        &mut self,
        cpu: usize,
        instruction: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<(), Broken> {
        let done = if cpu == 0 { invalidation } else { Invalidation::Nothing };
        self.0.execute(cpu, instruction, after, done)
    }

    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken> {
        self.0.device_write(at, bytes)
    }

    fn speculate(&mut self) {
        self.0.speculate();
    }

    fn take_changes(&mut self) -> Result<Vec<Change>, Broken> {
        self.0.take_changes()
    }
}

#[test]
fn a_flush_that_one_cpu_misses() {
    let convicted = |seed: &u64| {
        let program = program_of_two(*seed, STEPS);
        let machine = Deaf(Bare::new(simulated::start(&program, Temper::STICKY)));
        judge(&program, &simulated::run(machine, &program)).is_err()
    };
    let count = (0..40).filter(convicted).count();
    println!("{count}");
    assert!(count > 30, "{count}");
}

#[test]
fn turns_are_checked() {
    let mut program = mapped_for_two((DATA * PAGE) | OPEN, &[(1, READ)]);
    assert_eq!(program.check(), Ok(()));
    program.turns[0] = 2;
    assert_eq!(program.check(), Err(Invalid::Turns));
    program.turns = vec![0];
    assert_eq!(program.check(), Err(Invalid::Turns));
}

#[test]
fn steps_are_left_out_with_their_cpus() {
    let mut program = mapped_for_two(0, &[(1, READ), (0, Step::Flush), (1, Step::Wp(true))]);
    let first = program.steps.len() - 3;
    let tail = |program: &Program| -> Vec<(usize, Step)> {
        (first..program.steps.len()).map(|at| (program.cpu(at), program.steps[at])).collect()
    };
    let mut kept = program.clone();
    kept.retain(|step| *step != Step::Flush);
    assert_eq!(tail(&kept), [(1, READ), (1, Step::Wp(true))]);
    let mut cut = program.clone();
    cut.truncate(first + 2);
    assert_eq!(tail(&cut), [(1, READ), (0, Step::Flush)]);
    program.remove(first..first + 1);
    assert_eq!(tail(&program), [(0, Step::Flush), (1, Step::Wp(true))]);
    for program in [kept, cut, program] {
        assert_eq!(program.check(), Ok(()));
    }
}

#[test]
fn the_universe_has_what_these_programs_touch() {
    assert!(umbra_trial::judge::universe().contains(Gva::new(AT)));
}
