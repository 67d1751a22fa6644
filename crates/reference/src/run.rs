//! Runs a program on a machine and judges every step.

use std::fmt;
use std::rc::Rc;

use arrayvec::ArrayVec;
use fastrand::Rng;
use umbra_mmu::FilterPolicy;
use umbra_paging::{Access, AccessKind, Format, Gva, Pfec};

use crate::coverage::{Coverage, Moment};
use crate::hardware::Temper;
use crate::machine::{
    Bare, Broken, Deed, Machine, Planned, Preempt, Protocol, Shadow, ShadowConfig, Start, When,
};
use crate::memory::{PhysAddr, Ram};
use crate::oracle::{Observed, Open, Oracle, Piece, Step};
use crate::program::{HostEvent, Op, Program};
use crate::registers::{Cpu, Invalidation, Privileged, Registers};
use crate::universe::Universe;

/// What a program runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CPU that the guest sees.
    pub model: Cpu,
    /// How many of them.
    pub cpus: usize,
    /// Whether they start with CR4.PCIDE set.
    pub pcid: bool,
    /// How hostile their caches are.
    pub temper: Temper,
    /// `None`: bare.
    pub shadow: Option<ShadowConfig>,
    /// Everything is audited every so many steps, in between only what changed.
    pub full_audit: usize,
    /// Of 256 steps, so many have other CPUs get further while they are under way.
    pub races: u8,
}

impl Config {
    /// A configuration for any word: all choices that it has come out of the word's bits.
    pub fn from_word(word: u64, shadow: bool) -> Config {
        let pick = |bits: u32, shift: u32| (word >> shift) as usize & ((1 << bits) - 1);
        let cpus = [1, 2, 2, 3][pick(2, 0)];
        // Half of the guests have one of the usual widths.
        let width = if pick(1, 23) == 0 {
            [36, 40, 46, 39][pick(2, 2)]
        } else {
            32 + pick(5, 24) as u8 % 21
        };
        // Host memory lies in the lower half of what the real CPU can address.
        let host = (width + [0, 0, 1, 12][pick(2, 29)]).clamp(34, 52);
        Config {
            model: Cpu { maxphyaddr: width, gib_pages: pick(2, 4) != 0 },
            cpus,
            pcid: pick(1, 6) != 0,
            temper: [Temper::STICKY, Temper::ERRATIC, Temper::FORGETFUL, Temper::STICKY]
                [pick(2, 7)],
            shadow: shadow.then(|| ShadowConfig {
                bypass: pick(2, 9) != 0 && host < 52,
                frames: umbra_mmu::MIN_FRAMES_PER_VCPU * cpus as u32 + [0, 2, 160, 4][pick(2, 11)],
                vpid: pick(2, 13) != 0,
                release: [0, 0, 16, 128][pick(2, 15)],
                filter: [
                    FilterPolicy::Present,
                    FilterPolicy::User,
                    FilterPolicy::Auto,
                    FilterPolicy::Auto,
                ][pick(2, 17)],
                detach: [0, 64, 128, 255][pick(2, 19)],
                unsync: [0, 64, 255, 255][pick(2, 33)],
                eager: false,
                targets: [0, 2, 4, 4][pick(2, 21)],
                cr3_loads_exit: pick(2, 35) == 0,
                host_maxphyaddr: host,
                protocol: Protocol::PublishFirst,
            }),
            full_audit: 16,
            races: [0, 0, 64, 255][pick(2, 31)],
        }
    }

    /// The registers that all CPUs start with.
    pub fn registers(&self) -> Registers {
        Registers { pcide: self.pcid, ..Registers::long_mode(Program::root()) }
    }

    /// How a machine is when the program begins.
    pub fn start(&self, program: &Program) -> Start {
        Start {
            model: self.model,
            cpus: self.cpus,
            registers: self.registers(),
            memory: program.memory(),
            universe: Rc::new(Universe::of_programs()),
            temper: self.temper,
            seed: program.seed,
        }
    }

    /// Bare hardware, ready to run the program.
    pub fn bare(&self, program: &Program) -> Bare {
        Bare::new(self.start(program))
    }

    /// A hypervisor on the shadow MMU, ready to run the program.
    pub fn shadowed(&self, program: &Program, shadow: ShadowConfig) -> Shadow {
        Shadow::new(shadow, self.start(program))
    }
}

/// A machine did what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The number of the step in the program.
    pub step: usize,
    /// The step.
    pub op: Op,
    /// What the guest observed, if it was an access that came to an end.
    pub got: Option<Observed>,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}, {:x?}", self.step, self.op)?;
        if let Some(got) = &self.got {
            write!(f, ", gave {got:x?}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl std::error::Error for Divergence {}

/// Runs a program.
///
/// # Errors
/// The first step whose outcome bare hardware does not allow, or after which the machine is
/// [`Broken`].
pub fn run_program(program: &Program, config: &Config) -> Result<Coverage, Divergence> {
    match config.shadow {
        None => run_on(config.bare(program), program, config),
        Some(shadow) => run_on(config.shadowed(program, shadow), program, config),
    }
}

/// Runs a program on any machine, which must be in the state that [`Config::start`] describes.
///
/// # Errors
/// As [`run_program`].
pub fn run_on(
    machine: impl Machine,
    program: &Program,
    config: &Config,
) -> Result<Coverage, Divergence> {
    let universe = Rc::new(Universe::of_programs());
    let registers = vec![config.registers(); config.cpus];
    let mut session = Session::new(machine, universe, program.memory(), config.model, registers);
    let mut done = vec![false; program.ops.len()];
    for (step, op) in program.ops.iter().enumerate() {
        if done[step] {
            continue;
        }
        let full =
            step % config.full_audit == config.full_audit - 1 || step == program.ops.len() - 1;
        let mut random = Rng::with_seed(program.seed ^ (step as u64 + 1) << 32);
        let (mut others, mut preempt) = (Vec::new(), NEVER);
        if random.u8(..) < config.races {
            others = ahead(program, &done, step, config.cpus);
            let when = When::Chance { seed: random.u64(..), one_in: 1 << random.u32(..9) };
            preempt = Preempt { when, entering: random.bool() };
        }
        session.at = others.last().copied().unwrap_or(step).max(session.at);
        let others: Vec<(usize, &Op)> = others.iter().map(|&n| (n, &program.ops[n])).collect();
        match session.step_among(op, &others, preempt, full) {
            Ok(taken) => taken.into_iter().for_each(|n| done[n] = true),
            Err(why) => {
                return Err(Divergence { step, op: op.clone(), got: session.got.take(), why });
            }
        }
    }
    Ok(session.finish())
}

/// Nobody gets further.
const NEVER: Preempt = Preempt { when: When::At(Vec::new()), entering: false };

/// So many steps ahead other CPUs may be of the one that is under way.
pub(crate) const AHEAD: usize = 12;

/// The next steps of a program that other CPUs may take while this one is under way: each CPU's in
/// order.
fn ahead(program: &Program, done: &[bool], step: usize, cpus: usize) -> Vec<usize> {
    let mut blocked = vec![false; cpus];
    if let Some(cpu) = program.ops[step].cpu() {
        blocked[cpu % cpus] = true;
    }
    let mut steps = Vec::new();
    for n in (step + 1..program.ops.len()).take(AHEAD).filter(|&n| !done[n]) {
        let op = &program.ops[n];
        let Some(cpu) = op.cpu().map(|cpu| cpu % cpus) else { continue };
        blocked[cpu] |= !op.may_interleave();
        if !blocked[cpu] && steps.len() < 4 {
            steps.push(n);
        }
    }
    steps
}

/// A machine under judgement, one step at a time.
pub struct Session<M> {
    machine: M,
    oracle: Oracle,
    registers: Vec<Registers>,
    universe: Rc<Universe>,
    model: Cpu,
    coverage: Coverage,
    steps: usize,
    /// The number of the last step that was taken, or might have been.
    at: usize,
    /// What other CPUs may do while a step is under way, and when.
    waiting: Vec<Planned>,
    preempt: Preempt,
    /// What of it they did.
    taken: Vec<usize>,
    /// The moments at which they could have, in this step.
    points: u32,
    /// What happened in this step.
    moment: Moment,
    /// What the guest observed in this step, if it was an access that came to an end.
    got: Option<Observed>,
}

impl<M> fmt::Debug for Session<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("model", &self.model)
            .field("registers", &self.registers)
            .field("steps", &self.steps)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl<M: Machine> Session<M> {
    /// Judges a machine whose guest finds `memory`, has these `registers`, one set for each CPU of
    /// this `model`, and accesses only pages of the `universe`.
    pub fn new(
        machine: M,
        universe: Rc<Universe>,
        memory: Ram,
        model: Cpu,
        registers: Vec<Registers>,
    ) -> Session<M> {
        let controls: Vec<_> =
            registers.iter().map(|registers| registers.control(&model)).collect();
        Session {
            machine,
            oracle: Oracle::new(universe.clone(), memory, &controls),
            registers,
            universe,
            model,
            coverage: Coverage::default(),
            steps: 0,
            at: 0,
            waiting: Vec::new(),
            preempt: NEVER,
            taken: Vec::new(),
            points: 0,
            moment: Moment::default(),
            got: None,
        }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The machine, to break it on purpose.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Guest memory as it is after the last step.
    pub fn memory(&self) -> &Ram {
        self.oracle.memory()
    }

    /// What the guest observed in the last step, if it was an access that came to an end.
    pub fn observed(&self) -> Option<&Observed> {
        self.got.as_ref()
    }

    /// Does one step, and judges it: its outcome, all of guest memory, and the machine's own
    /// auditor, which looks at everything if `full` and else at what changed. Then lets the CPUs
    /// speculate.
    ///
    /// # Errors
    /// What bare hardware does not allow, or that the machine is [`Broken`].
    pub fn step(&mut self, op: &Op, full: bool) -> Result<(), String> {
        self.at = self.steps;
        self.step_among(op, &[], NEVER, full).map(drop)
    }

    /// As [`Session::step`], while other CPUs may take these steps, which have numbers: says which
    /// they took. Those of each CPU are in order, and none is of the CPU that takes `op`.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn step_among(
        &mut self,
        op: &Op,
        others: &[(usize, &Op)],
        preempt: Preempt,
        full: bool,
    ) -> Result<Vec<usize>, String> {
        self.got = None;
        self.moment = Moment::default();
        self.points = 0;
        self.preempt = preempt;
        self.waiting = self.planned(others);
        let executed = self.execute(op);
        self.waiting.clear();
        executed?;
        self.after(full)?;
        let runs =
            |format| self.registers.iter().any(|registers| registers.format() == Some(format));
        for (name, holds) in [
            ("state: CR0.PG clear", self.registers.iter().any(|registers| !registers.paging)),
            ("state: CR0.WP clear", self.registers.iter().any(|registers| !registers.wp)),
            ("state: 32-bit paging with CR4.PSE", runs(Format::Legacy32 { pse: true })),
            ("state: 32-bit paging without CR4.PSE", runs(Format::Legacy32 { pse: false })),
            ("state: PAE paging", runs(Format::Pae)),
            ("state: CPUs in different formats", {
                let mut formats = self.registers.iter().filter_map(Registers::format);
                let first = formats.next();
                formats.any(|format| Some(format) != first)
            }),
        ] {
            if holds {
                self.moment.note(name);
            }
        }
        self.moment.join(self.machine.take_moment());
        let taken = std::mem::take(&mut self.taken);
        self.coverage.step(self.at, &self.moment);
        self.coverage.add("race: steps taken while the MMU works", taken.len() as u64);
        self.steps += 1 + taken.len();
        Ok(taken)
    }

    /// How many moments there were in the last step at which another CPU could have got further.
    pub fn points(&self) -> u32 {
        self.points
    }

    fn planned(&self, others: &[(usize, &Op)]) -> Vec<Planned> {
        let mut registers = self.registers.clone();
        let mut blocked = vec![false; registers.len()];
        let mut plan = |&(number, op): &(usize, &Op)| {
            let cpu = op.cpu()? % registers.len();
            let own = &mut registers[cpu];
            // What it loads into PDPTE registers shows only when it does so.
            let loads_cr3 =
                matches!(op, Op::Execute { instruction: Privileged::LoadCr3 { .. }, .. });
            blocked[cpu] |= loads_cr3 && own.format() == Some(Format::Pae);
            if blocked[cpu] {
                return None;
            }
            let deed = match op {
                Op::Load { gva, access, length, .. } => {
                    Deed::Access { access: *access, pieces: self.pieces(own, *gva, *length, &[]) }
                }
                Op::Store { gva, user, ac, bytes, .. } => {
                    let access = Access {
                        kind: AccessKind::Write,
                        user: *user,
                        smap_override: *ac && !*user,
                    };
                    Deed::Access { access, pieces: self.pieces(own, *gva, bytes.len(), bytes) }
                }
                Op::Execute { instruction, .. } => {
                    let instruction = meant(own, *instruction);
                    let invalidation = own.execute(instruction);
                    Deed::Execute { instruction, after: *own, invalidation }
                }
                _ => return None,
            };
            Some(Planned { number, cpu, deed })
        };
        others.iter().filter_map(&mut plan).collect()
    }

    /// Calls the machine. If other CPUs got further meanwhile they are judged, and the step is
    /// still to be closed.
    fn call<T>(
        &mut self,
        step: Step,
        call: impl FnOnce(&mut M) -> Result<T, Broken>,
    ) -> Result<(T, Option<Open>), String> {
        if self.waiting.is_empty() {
            return Ok((call(&mut self.machine).map_err(text)?, None));
        }
        let when = match &self.preempt.when {
            When::At(points) => {
                When::At(points.iter().filter_map(|at| at.checked_sub(self.points)).collect())
            }
            When::Chance { seed, one_in } => {
                When::Chance { seed: seed ^ u64::from(self.points), one_in: *one_in }
            }
        };
        let mut open = self.oracle.open(step);
        self.machine.race(Preempt { when, ..self.preempt }, self.waiting.clone());
        let result = call(&mut self.machine).map_err(text);
        let (done, points) = self.machine.take_interleaved().map_err(text)?;
        self.points += points;
        for event in &done {
            self.oracle.partial(&open, &event.before)?;
            self.oracle.pass(&mut open);
            let at = self.waiting.iter().position(|planned| planned.number == event.number);
            let Planned { number, cpu, deed } =
                self.waiting.remove(at.expect("only what is planned is done"));
            match (deed, &event.observed) {
                (Deed::Access { access, pieces }, Some(observed)) => {
                    self.oracle
                        .judge_access(cpu, access, &pieces, observed, &event.changes)
                        .map_err(|why| {
                            format!("meanwhile step {number} gave {observed:x?}: {why}")
                        })?;
                }
                (Deed::Execute { after, invalidation, .. }, _) => {
                    self.registers[cpu] = after;
                    self.oracle.executed(cpu, after.control(&self.model), invalidation);
                }
                (Deed::Access { .. }, None) => {
                    return Err(format!("step {number} is an access without end"));
                }
            }
            self.oracle.touched(&mut open, &event.changes);
            self.oracle.moment(&mut open);
            self.taken.push(number);
        }
        Ok((result?, (!done.is_empty()).then_some(open)))
    }

    /// What was met.
    pub fn finish(mut self) -> Coverage {
        self.machine.count(&mut self.coverage);
        self.coverage.add("steps", self.steps as u64);
        self.coverage
    }

    fn execute(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Stores { cpu, gva, entry, count } => {
                self.moment.note("guest: stores entries in a loop");
                let access = Access { kind: AccessKind::Write, user: false, smap_override: true };
                let registers = self.registers[cpu % self.registers.len()];
                let format = registers.format();
                let width = format.map_or(8, Format::entry_bytes);
                // A 32-bit kernel stores an entry of 8 bytes in halves: the upper one first when it
                // maps, the lower one first when it unmaps.
                let order: &[u64] = match (format, entry & 1) {
                    (Some(Format::Pae), 0) => &[0, 4],
                    (Some(Format::Pae), _) => &[4, 0],
                    _ => &[0],
                };
                let length = width as usize / order.len();
                for n in 0..*count as u64 {
                    let entry = if *entry == 0 { 0 } else { entry.wrapping_add(n << 12) };
                    for &at in order {
                        let gva = Gva::new(gva.raw() + width * n + at);
                        let bytes = &entry.to_le_bytes()[at as usize..][..length];
                        let pieces = self.pieces(&registers, gva, length, bytes);
                        self.access(*cpu, access, &pieces)?;
                        self.between()?;
                    }
                }
                Ok(())
            }
            Op::Sweep { cpu, gva, access, count } => {
                self.moment.note("guest: accesses pages in a loop");
                let registers = self.registers[cpu % self.registers.len()];
                let mode = registers.control(&self.model).mode;
                for n in 0..*count as u64 {
                    let gva = Gva::new(gva.raw() + (n << 12));
                    if !self.universe.tree(&mode).contains(registers.linear(gva)) {
                        break;
                    }
                    let byte: &[u8] = if access.is_write() { &[n as u8] } else { &[] };
                    let pieces = self.pieces(&registers, gva, 1, byte);
                    self.access(*cpu, *access, &pieces)?;
                    self.between()?;
                }
                Ok(())
            }
            Op::Load { cpu, gva, access, length } => {
                let registers = &self.registers[cpu % self.registers.len()];
                let pieces = self.pieces(registers, *gva, *length, &[]);
                self.access(*cpu, *access, &pieces)
            }
            Op::Store { cpu, gva, user, ac, bytes } => {
                let registers = &self.registers[cpu % self.registers.len()];
                let pieces = self.pieces(registers, *gva, bytes.len(), bytes);
                let access =
                    Access { kind: AccessKind::Write, user: *user, smap_override: *ac && !*user };
                self.access(*cpu, access, &pieces)
            }
            Op::Execute { cpu, instruction } => {
                let cpu = cpu % self.registers.len();
                let before = self.registers[cpu];
                let instruction = meant(&before, *instruction);
                let memory = self.oracle.memory();
                let Some(invalidation) =
                    self.registers[cpu].execute_on(instruction, memory, &self.model)
                else {
                    self.moment.note("guest: #GP by a PDPTE");
                    return Ok(());
                };
                let after = self.registers[cpu];
                let ((), open) = self.call(Step::Nothing, |machine| {
                    machine.execute(cpu, instruction, &after, invalidation)
                })?;
                self.closed_without_change(open)?;
                self.oracle.executed(cpu, after.control(&self.model), invalidation);
                self.moment.note(name_of(invalidation));
                if let Some(name) = name_of_change(&before, &after) {
                    self.moment.note(name);
                }
                Ok(())
            }
            Op::DeviceWrite { gpa, bytes } => {
                self.moment.note("host: device writes");
                self.device_write(PhysAddr::new(gpa.raw()), bytes)
            }
            Op::Repair { cpu } => {
                let registers = self.registers[cpu % self.registers.len()];
                for (gpa, entry) in Program::repair(&registers) {
                    self.device_write(PhysAddr::new(gpa.raw()), &entry.to_le_bytes())?;
                }
                Ok(())
            }
            Op::Host(event) => {
                self.moment.note(name_of_event(*event));
                let ((), open) = self.call(Step::Nothing, |machine| machine.host(*event))?;
                self.closed_without_change(open)
            }
        }
    }

    /// Between two accesses of a loop.
    fn between(&mut self) -> Result<(), String> {
        self.machine.audit(false).map_err(text)?;
        self.machine.speculate();
        self.unchanged()
    }

    fn after(&mut self, full: bool) -> Result<(), String> {
        self.machine.audit(full).map_err(text)?;
        self.machine.speculate();
        self.unchanged()?;
        if full && self.oracle.aliased_at_two_levels() {
            self.moment.note("guest: a frame is a table at two levels (sampled)");
        }
        Ok(())
    }

    /// Memory is as it was.
    fn unchanged(&mut self) -> Result<(), String> {
        let changes = self.machine.take_changes().map_err(text)?;
        self.oracle.judge_write(PhysAddr::new(0), &[], &changes)
    }

    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), String> {
        let step = Step::Write(at, bytes.to_vec());
        let ((), open) = self.call(step, |machine| machine.device_write(at, bytes))?;
        let changes = self.machine.take_changes().map_err(text)?;
        match open {
            Some(open) => self.oracle.close(open, None, &changes),
            None => self.oracle.judge_write(at, bytes, &changes),
        }
    }

    /// The end of a step that changes no memory.
    fn closed_without_change(&mut self, open: Option<Open>) -> Result<(), String> {
        let Some(open) = open else { return self.unchanged() };
        let changes = self.machine.take_changes().map_err(text)?;
        self.oracle.close(open, None, &changes)
    }

    /// Splits an access at the page boundary. What would leave the universe is cut off.
    fn pieces(
        &self,
        registers: &Registers,
        gva: Gva,
        length: usize,
        bytes: &[u8],
    ) -> ArrayVec<Piece, 2> {
        let mode = registers.control(&self.model).mode;
        let gva = registers.linear(gva);
        let room = (4096 - gva.raw() % 4096) as usize;
        let head = length.min(room);
        let part = |range: std::ops::Range<usize>| {
            bytes.get(range).unwrap_or_default().iter().copied().collect()
        };
        let mut pieces = ArrayVec::new();
        pieces.push(Piece { gva, bytes: part(0..head.min(bytes.len())) });
        let next = Gva::new(gva.raw().wrapping_add(head as u64));
        if head < length && self.universe.tree(&mode).contains(next) {
            pieces.push(Piece { gva: next, bytes: part(head..bytes.len().max(head)) });
        }
        pieces
    }

    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<(), String> {
        let cpu = cpu % self.registers.len();
        let step = Step::Access(cpu, access, pieces.to_vec());
        let (observed, open) = self.call(step, |machine| machine.access(cpu, access, pieces))?;
        self.got = Some(observed.clone());
        let changes = self.machine.take_changes().map_err(text)?;
        match open {
            Some(open) => self.oracle.close(open, Some(&observed), &changes)?,
            None => self.oracle.judge_access(cpu, access, pieces, &observed, &changes)?,
        }
        match &observed {
            Observed::Done(places) => {
                self.moment.note(if pieces.len() > 1 {
                    "guest: accesses across pages"
                } else {
                    "guest: accesses"
                });
                if places.iter().any(|&at| !self.oracle.memory().contains(at)) {
                    self.moment.note("guest: accesses to no memory");
                }
            }
            Observed::Fault(fault) => self.moment.note(class_of(fault.code)),
        }
        Ok(())
    }
}

fn text(broken: Broken) -> String {
    broken.0
}

/// An instruction with the linear address that a CPU with these registers means.
fn meant(registers: &Registers, instruction: Privileged) -> Privileged {
    match instruction {
        Privileged::Invlpg(gva) => Privileged::Invlpg(registers.linear(gva)),
        Privileged::InvpcidAddress { pcid, gva } => {
            Privileged::InvpcidAddress { pcid, gva: registers.linear(gva) }
        }
        other => other,
    }
}

fn name_of(invalidation: Invalidation) -> &'static str {
    match invalidation {
        Invalidation::Nothing => "guest: invalidations, nothing",
        Invalidation::Page(_) => "guest: invalidations, INVLPG",
        Invalidation::Context => "guest: invalidations, one PCID",
        Invalidation::Address(..) => "guest: invalidations, INVPCID type 0",
        Invalidation::Pcid(_) => "guest: invalidations, INVPCID type 1",
        Invalidation::AllButGlobals => "guest: invalidations, INVPCID type 3",
        Invalidation::All => "guest: invalidations, everything",
    }
}

/// The control bit that an instruction changed, the first if it changed several.
fn name_of_change(before: &Registers, after: &Registers) -> Option<&'static str> {
    let changes = [
        (before.format() != after.format(), name_of_format(after)),
        (before.pdptes != after.pdptes, "guest: PDPTE registers change"),
        (before.wp != after.wp, "guest: CR0.WP changes"),
        (before.nxe != after.nxe, "guest: EFER.NXE changes"),
        (before.smep != after.smep, "guest: CR4.SMEP changes"),
        (before.smap != after.smap, "guest: CR4.SMAP changes"),
        (before.pge != after.pge, "guest: CR4.PGE changes"),
        (before.pcide != after.pcide, "guest: CR4.PCIDE changes"),
        (before.root != after.root, "guest: CR3 changes its root"),
        (before.pcid != after.pcid, "guest: CR3 changes its PCID"),
    ];
    changes.into_iter().find_map(|(changed, name)| changed.then_some(name))
}

fn name_of_format(registers: &Registers) -> &'static str {
    match registers.format() {
        None => "guest: clears CR0.PG",
        Some(Format::Long4) => "guest: turns to 4-level paging",
        Some(Format::Pae) => "guest: turns to PAE paging",
        Some(Format::Legacy32 { pse: true }) => "guest: turns to 32-bit paging with CR4.PSE",
        Some(Format::Legacy32 { pse: false }) => "guest: turns to 32-bit paging without CR4.PSE",
    }
}

fn name_of_event(event: HostEvent) -> &'static str {
    match event {
        HostEvent::Remap(_) => "host: moves a frame",
        HostEvent::WriteProtect(_) => "host: write-protects a frame",
        HostEvent::SwapOut(_) => "host: swaps a frame out",
        HostEvent::RemapRange(..) => "host: moves frames",
        HostEvent::WriteProtectRange(..) => "host: write-protects frames",
        HostEvent::SwapOutRange(..) => "host: swaps frames out",
        HostEvent::ZapAll => "host: throws all shadows away",
        HostEvent::Release(_) => "host: releases a table",
        HostEvent::Offer => "host: offers the roots in use",
        HostEvent::Withdraw(_) => "host: withdraws a root",
    }
}

/// The class of a page fault, for [`Coverage`].
fn class_of(code: Pfec) -> &'static str {
    let user = code.contains(Pfec::USER);
    if code.contains(Pfec::RSVD) {
        return "guest: #PF, reserved bit";
    }
    if !code.contains(Pfec::PRESENT) {
        return if user {
            "guest: #PF, not present, user"
        } else {
            "guest: #PF, not present, supervisor"
        };
    }
    match (user, code.contains(Pfec::WRITE), code.contains(Pfec::FETCH)) {
        (true, true, _) => "guest: #PF, protection, user write",
        (true, _, true) => "guest: #PF, protection, user fetch",
        (true, _, _) => "guest: #PF, protection, user read",
        (false, true, _) => "guest: #PF, protection, supervisor write",
        (false, _, true) => "guest: #PF, protection, supervisor fetch",
        (false, _, _) => "guest: #PF, protection, supervisor read",
    }
}
