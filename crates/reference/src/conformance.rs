//! The conformance kit: puts a shadow MMU that is not ours, or another hypervisor around
//! `umbra_mmu`, to the test.
//!
//! # What to implement
//! [`Machine`]: a guest whose CPUs execute one step at a time. Behind it stands the
//! hypervisor under test, and in the place of the real CPU a
//! [`PagingUnit`](crate::hardware::PagingUnit) for each virtual CPU, which walks *your* tables in
//! *your* memory ([`PhysicalMemory`](crate::memory::PhysicalMemory)). It keeps, drops and refills
//! whatever the SDM lets a TLB keep, drop and refill, so a flush that is missing shows; no emulator
//! does that.
//!
//! [`Machine::audit`] is where an auditor of your own belongs, if there is one. [`Machine::host`]
//! is for hypervisors that move, protect or swap guest memory. Both may stay empty. The folder
//! `examples/` of Umbra's repository has a complete machine in two short files.
//!
//! # What is checked
//! After every step, against an [`oracle`](crate::oracle) that knows the guest's tables and
//! everything that a CPU may have cached of them since the last flush:
//! - an access reached a guest-physical address that bare hardware could have reached, or raised a page fault
//!   with an error code and an address that bare hardware could have raised;
//! - every word of guest memory is what bare hardware would have left, accessed and dirty bits included, and
//!   nothing else changed;
//! - the machine did not report itself [`Broken`], and did not panic.
//!
//! # How to run it
//! ```
//! use umbra_reference::conformance::{Case, Kit};
//! use umbra_reference::machine::Bare;
//!
//! // Bare hardware conforms to itself. Your machine stands here in its place.
//! let kit = Kit { programs: 30, ..Kit::default() };
//! let passed = kit.run(|case: &Case| Bare::new(case.start())).unwrap_or_else(|failure| panic!("{failure}"));
//! assert_eq!(passed.steps, 30 * 300);
//! println!("{}", passed.coverage);
//! ```
//! A failing program is made as short as it gets, and [`Failed`] prints its steps, its
//! configuration and its seed. [`Kit::replay`] runs the program of that seed again, alone.
//!
//! # How much is enough
//! Green means little if the programs have not met what is difficult. [`Passed::unmet`] names what
//! they have not; with the default of 300 programs nothing remains for a machine that takes all
//! steps. Umbra's own tests run 300,000 steps, and its campaigns as long as one likes.
//!
//! # A machine that cannot do everything
//! [`Kit::limits`] bends each case into what the machine can do (one CPU, no PCID, a fixed
//! MAXPHYADDR), and [`Kit::takes`] leaves steps out. Say so beside the result. Half of the programs
//! go to 32-bit or PAE paging; without [`Privileged::Enter`] all of them stay in 4-level paging:
//! ```
//! use umbra_reference::conformance::Kit;
//! use umbra_reference::program::Op;
//! use umbra_reference::registers::Privileged;
//!
//! let takes = |op: &Op| !matches!(op, Op::Execute { instruction: Privileged::Enter { .. }, .. });
//! let kit = Kit { takes, ..Kit::default() };
//! ```

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use umbra_paging::Access;

use crate::coverage::{Coverage, Moment};
use crate::machine::{Broken, Interleaved, Machine, Planned, Preempt, Start};
use crate::memory::PhysAddr;
use crate::minimize::{Failure, minimize};
use crate::oracle::{Change, Observed, Piece};
use crate::program::{HostEvent, Op, Program};
use crate::registers::{Invalidation, Privileged, Registers};
use crate::{Config, Divergence, run_on};

/// What enough programs meet on any machine: the names that [`Coverage`] has for it.
pub const MET_BY_GUESTS: &[&str] = &[
    "guest: #GP by a PDPTE",
    "guest: #PF, not present, supervisor",
    "guest: #PF, not present, user",
    "guest: #PF, protection, supervisor fetch",
    "guest: #PF, protection, supervisor read",
    "guest: #PF, protection, supervisor write",
    "guest: #PF, protection, user fetch",
    "guest: #PF, protection, user read",
    "guest: #PF, protection, user write",
    "guest: #PF, reserved bit",
    "guest: a frame is a table at two levels (sampled)",
    "guest: accesses",
    "guest: accesses across pages",
    "guest: accesses to no memory",
    "guest: accesses pages in a loop",
    "guest: invalidations, INVLPG",
    "guest: invalidations, INVPCID type 0",
    "guest: invalidations, INVPCID type 1",
    "guest: invalidations, INVPCID type 3",
    "guest: invalidations, everything",
    "guest: invalidations, nothing",
    "guest: invalidations, one PCID",
    "guest: stores entries in a loop",
    "guest: turns to 32-bit paging with CR4.PSE",
    "guest: turns to 32-bit paging without CR4.PSE",
    "guest: turns to PAE paging",
];

/// A program, and the configuration that it is run in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The program.
    pub program: Program,
    /// The CPU that the guest sees, and how hostile its caches are. [`Config::shadow`] is `None`:
    /// it describes the shadow MMU of this repository.
    pub config: Config,
}

impl Case {
    /// How the machine has to be when the program begins.
    pub fn start(&self) -> Start {
        self.config.start(&self.program)
    }
}

/// Which programs are run, and what the machine under test is spared.
#[derive(Clone, Copy, Debug)]
pub struct Kit {
    /// The first program's seed; the next programs have the next numbers.
    pub seed: u64,
    /// How many programs.
    pub programs: u64,
    /// How many steps each has.
    pub steps: usize,
    /// Bends a configuration into one that the machine supports.
    pub limits: fn(&mut Config),
    /// Whether the machine can take this step. Others are left out.
    pub takes: fn(&Op) -> bool,
}

impl Default for Kit {
    /// 300 programs of 300 steps from seed 0, without limits.
    fn default() -> Kit {
        Kit { seed: 0, programs: 300, steps: 300, limits: |_| (), takes: |_| true }
    }
}

/// All programs conformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How many there were.
    pub programs: u64,
    /// How many steps they took in all.
    pub steps: u64,
    /// What they met.
    pub coverage: Coverage,
}

impl Passed {
    /// What of [`MET_BY_GUESTS`] was never met.
    pub fn unmet(&self) -> Vec<&'static str> {
        MET_BY_GUESTS.iter().copied().filter(|name| self.coverage.get(name) == 0).collect()
    }
}

/// A program did not conform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its seed, for [`Kit::replay`].
    pub seed: u64,
    /// What the whole program did wrong.
    pub first: Divergence,
    /// The shortest program that was found to do something wrong, and what.
    pub shortest: Failure,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the program of seed {} does not conform: {}", self.seed, self.first)?;
        let steps = self.shortest.program.ops.len();
        write!(f, "{steps} of its steps suffice: {}", self.shortest)
    }
}

impl std::error::Error for Failed {}

impl Kit {
    /// The case of a seed.
    pub fn case(&self, seed: u64) -> Case {
        let mut program = Program::random(seed, self.steps);
        program.ops.retain(self.takes);
        let config = Config::from_word(fastrand::Rng::with_seed(seed).u64(..), false);
        self.limited(Case { program, config })
    }

    fn limited(&self, mut case: Case) -> Case {
        (self.limits)(&mut case.config);
        case
    }

    /// Runs the programs, each on a machine that `make` makes for it, until one does not conform.
    ///
    /// # Errors
    /// The first program that does not conform, made short.
    pub fn run<M: Machine>(&self, make: impl Fn(&Case) -> M) -> Result<Passed, Box<Failed>> {
        let mut passed = Passed { programs: 0, steps: 0, coverage: Coverage::default() };
        for number in 0..self.programs {
            let coverage = self.replay(self.seed.wrapping_add(number), &make)?;
            passed.programs += 1;
            passed.steps += coverage.get("steps");
            passed.coverage.merge(&coverage);
        }
        Ok(passed)
    }

    /// Runs the program of one seed, as [`Kit::run`] does.
    ///
    /// # Errors
    /// It does not conform.
    pub fn replay<M: Machine>(
        &self,
        seed: u64,
        make: impl Fn(&Case) -> M,
    ) -> Result<Coverage, Box<Failed>> {
        let case = self.case(seed);
        let attempt = |case: &Case| {
            run_on(Guarded { machine: make(case), panicked: None }, &case.program, &case.config)
        };
        let first = match attempt(&case) {
            Ok(coverage) => return Ok(coverage),
            Err(divergence) => divergence,
        };
        let again = |program: &Program, config: &Config| {
            attempt(&self.limited(Case { program: program.clone(), config: *config })).map(drop)
        };
        let mut shortest = minimize(&case.program, &case.config, again).unwrap_or_else(|| {
            // The machine decides by something that is not in the case: a clock, or randomness of
            // its own.
            Failure { program: case.program, config: case.config, divergence: first.clone() }
        });
        (self.limits)(&mut shortest.config);
        Err(Box::new(Failed { seed, first, shortest }))
    }
}

/// Turns a machine's panics into [`Broken`], so that the step and the seed are known.
struct Guarded<M> {
    machine: M,
    /// By a panic where none could be reported.
    panicked: Option<Broken>,
}

impl<M> Guarded<M> {
    fn guard<T>(&mut self, call: impl FnOnce(&mut M) -> Result<T, Broken>) -> Result<T, Broken> {
        if let Some(broken) = self.panicked.take() {
            return Err(broken);
        }
        // The machine is not used after a panic: the run ends with the error.
        catch_unwind(AssertUnwindSafe(|| call(&mut self.machine))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| String::from(*text));
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Broken(format!("the machine panics: {text}")))
        })
    }
}

impl<M: Machine> Machine for Guarded<M> {
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken> {
        self.guard(|machine| machine.access(cpu, access, pieces))
    }

    fn execute(
        &mut self,
        cpu: usize,
        instruction: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<(), Broken> {
        self.guard(|machine| machine.execute(cpu, instruction, after, invalidation))
    }

    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken> {
        self.guard(|machine| machine.device_write(at, bytes))
    }

    fn host(&mut self, event: HostEvent) -> Result<(), Broken> {
        self.guard(|machine| machine.host(event))
    }

    fn speculate(&mut self) {
        self.panicked = self
            .guard(|machine| {
                machine.speculate();
                Ok(())
            })
            .err();
    }

    fn race(&mut self, preempt: Preempt, steps: Vec<Planned>) {
        self.machine.race(preempt, steps);
    }

    fn take_interleaved(&mut self) -> Result<(Vec<Interleaved>, u32), Broken> {
        self.guard(Machine::take_interleaved)
    }

    fn take_changes(&mut self) -> Result<Vec<Change>, Broken> {
        self.guard(Machine::take_changes)
    }

    fn audit(&mut self, full: bool) -> Result<(), Broken> {
        self.guard(|machine| machine.audit(full))
    }

    fn take_moment(&mut self) -> Moment {
        self.machine.take_moment()
    }

    fn count(&self, coverage: &mut Coverage) {
        self.machine.count(coverage);
    }
}
