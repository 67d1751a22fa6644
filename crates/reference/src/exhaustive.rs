//! All combinations of entry bits at two levels, under all settings of the control bits, for all
//! kinds of access, through the shadow MMU: the twin of the guest kernel `exhaustive`, with whom it
//! shares the enumeration ([`umbra_cases::cases`]).
//!
//! For each case the guest stores the two entries through a window (so that the MMU follows table
//! writes), executes INVLPG and does the access. The oracle judges error code, CR2, place and
//! memory; beyond what it allows, a faulting access must leave the entries alone, and the fault
//! must come the way that the mode promises. Where an entry was not present, P is then set without
//! a flush and the access repeated: invariant I1.
//!
//! The promise: the CPU delivers a fault past the hypervisor exactly if the filter in force lets it
//! through (the guest's not-present faults; under the filter `user`, those and the protection
//! faults of user mode, no others), A is set in all entries that the walk goes through, and, for a
//! protection fault, the page is not one that the guest may write but has not (it would be narrower
//! than the guest's own entry: I4). Such a fault comes to an installed page; so before it the guest
//! reads there once, as supervisor.

use std::rc::Rc;

use umbra_cases::cases::{LEVELS, PAIRS, Pair, Selection, TWIN, Targets, compose_in};
use umbra_cases::entries::{PAGE, TABLE};
use umbra_mmu::{FilterPolicy, GuestFaults, MIN_FRAMES_PER_VCPU};
use umbra_paging::{Access, AccessKind, Features, Format, Gfn, Gva, Level, Pfec, bits};

use crate::Session;
use crate::coverage::Coverage;
use crate::hardware::{End, Temper, Visit, Walk, Width, walk};
use crate::machine::{Delivery, Shadow, ShadowConfig, Start};
use crate::memory::{PhysAddr, Ram};
use crate::oracle::Observed;
use crate::program::Op;
use crate::registers::{Cpu, Privileged, Registers};
use crate::universe::{END, HOLE, NARROW_WINDOW, WINDOW, WINDOW_SLOT};

const MODEL: Cpu = Cpu { maxphyaddr: 40, gib_pages: true };

/// The frame of the root. The window's two tables follow.
const ROOT: u64 = 0x10;
/// The frames of the tables of levels 3, 2 and 1 below the root, and of the page. [`TWIN`] further
/// lie their twins.
const BLOCKS: [u64; 4] = [0x14, 0x18, 0x1c, 0x20];
/// The PML4 slot of the test's page. The low 30 bits of its address are its gpa, so that pages of
/// all sizes lead to it.
const SLOT: usize = 2;

/// A part of the whole: see [`Part::all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which faults may go straight to the guest.
    pub mode: Mode,
    /// The format of the tables.
    pub format: Format,
    /// The level of the upper entry.
    pub upper: Level,
    /// Of the pairs of choices with bits that cannot matter one in so many is taken.
    pub spare: u64,
    /// Every so many of the cases are taken.
    pub stride: u64,
    /// Of these, the first.
    pub offset: u64,
}

/// Which page faults may go straight to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// None.
    Trap,
    /// None, and writes to page tables are not seen.
    Unsync,
    /// Those that this policy of the MMU lets through.
    Bypass(FilterPolicy),
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 5] = [
        Mode::Bypass(FilterPolicy::Auto),
        Mode::Bypass(FilterPolicy::User),
        Mode::Bypass(FilterPolicy::Present),
        Mode::Trap,
        Mode::Unsync,
    ];
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Cases: accesses that were judged.
    pub cases: u64,
    /// Of these, page faults delivered by the CPU past the hypervisor.
    pub native: u64,
    /// Of these, page faults injected after an exit.
    pub injected: u64,
    /// Of these, accesses after P was set without a flush.
    pub unflushed: u64,
    /// What was met.
    pub coverage: Coverage,
}

impl Counts {
    /// Adds those of another part.
    pub fn add(&mut self, other: &Counts) {
        self.cases += other.cases;
        self.native += other.native;
        self.injected += other.injected;
        self.unflushed += other.unflushed;
        self.coverage.merge(&other.coverage);
    }
}

impl Part {
    /// The parts that make the whole: all modes at all pairs of levels of all formats.
    pub fn all(spare: u64, stride: u64, offset: u64) -> Vec<Part> {
        let long = LEVELS.iter().map(|&(upper, _)| (Format::Long4, upper));
        let narrow = [Format::Pae, Format::Legacy32 { pse: true }, Format::Legacy32 { pse: false }];
        let pairs: Vec<_> = long.chain(narrow.map(|format| (format, Level::L2))).collect();
        let part = |mode, (format, upper)| Part { mode, format, upper, spare, stride, offset };
        let parts = |mode| pairs.iter().map(move |&pair| part(mode, pair));
        Mode::ALL.into_iter().flat_map(parts).collect()
    }

    /// Runs all its cases.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn run(&self) -> Result<Counts, String> {
        let mut bench = Bench::new(self);
        let mut nth = self.offset;
        for setting in 0..16u32 {
            bench.set(setting)?;
            let nxe = bench.registers.nxe;
            let features = Features::new(MODEL.maxphyaddr, MODEL.gib_pages);
            let selection =
                Selection::new_in(self.format, self.upper, nxe, &features, self.spare, 1);
            for number in (0..PAIRS).filter(|&number| selection.takes(number)) {
                let mut entries = None;
                for access in accesses() {
                    nth += 1;
                    if nth % self.stride != 0 {
                        continue;
                    }
                    let entries = *entries.get_or_insert_with(|| bench.compose(number, &features));
                    bench.case(entries, access).map_err(|why| {
                        let Registers { wp, smep, smap, nxe, .. } = bench.registers;
                        let [upper, lower] = entries;
                        format!(
                            "{self:?}, entries {upper:#x} and {lower:#x}, wp {wp} smep {smep} smap {smap} nxe {nxe}, \
                             {access:?}: {why}"
                        )
                    })?;
                }
            }
        }
        let mut counts = bench.counts;
        counts.coverage = bench.session.finish();
        Ok(counts)
    }
}

/// Every kind of access; RFLAGS.AC makes a difference in ring 0.
fn accesses() -> impl Iterator<Item = Access> {
    (0..9usize).map(|n| {
        let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][n % 3];
        let (user, smap_override) = [(true, false), (false, false), (false, true)][n / 3];
        Access { kind, user, smap_override }
    })
}

struct Bench {
    session: Session<Shadow>,
    registers: Registers,
    format: Format,
    upper: Level,
    lower: Level,
    /// Where the two entries stand.
    places: [PhysAddr; 2],
    targets: [Targets; 2],
    gva: Gva,
    counts: Counts,
}

impl Bench {
    fn new(part: &Part) -> Bench {
        let format = part.format;
        let narrow = format != Format::Long4;
        let page = BLOCKS[3] << 12;
        let gva = Gva::new(if narrow { page } else { (SLOT as u64) << 39 | page });
        let mut memory = Ram::new(END as usize).with_hole(HOLE);
        let mut put = |frame: u64, index: usize, entry: u64| {
            let at = PhysAddr::new(format.entry_at(Gfn::new(frame), index).raw());
            memory.write_bytes(at, &entry.to_le_bytes()[..format.entry_bytes() as usize]);
        };
        let window = TABLE & !bits::U;
        match format {
            Format::Long4 => {
                put(ROOT, WINDOW_SLOT, (ROOT + 1) << 12 | window);
                put(ROOT + 1, 0, (ROOT + 2) << 12 | window);
                put(ROOT + 2, 0, bits::PS | PAGE & !bits::U);
                put(ROOT, SLOT, BLOCKS[0] << 12 | TABLE);
            }
            Format::Pae => {
                put(ROOT, 0, BLOCKS[1] << 12 | bits::P);
                put(ROOT, 3, (ROOT + 2) << 12 | bits::P);
                let index = format.index(Gva::new(NARROW_WINDOW), Level::L2);
                put(ROOT + 2, index, bits::PS | PAGE & !bits::U);
            }
            Format::Legacy32 { .. } => {
                // Its directory is the root. The window does without 4 MiB pages.
                let index = format.index(Gva::new(NARROW_WINDOW), Level::L2);
                put(ROOT, index, (ROOT + 2) << 12 | window);
                (0..0x40).for_each(|gfn| put(ROOT + 2, gfn as usize, gfn << 12 | PAGE & !bits::U));
            }
        }
        for (n, level) in [Level::L3, Level::L2, Level::L1].into_iter().enumerate() {
            if narrow && level == Level::L3 {
                continue;
            }
            let flags = if level == Level::L1 { PAGE } else { TABLE };
            let next = BLOCKS[n + 1] << 12 | flags;
            put(BLOCKS[n], format.index(gva, level), next);
            put(BLOCKS[n] + TWIN / 4096, format.index(gva, level), next | TWIN);
        }
        memory.take_journal();

        let lower = part.upper.below().expect("pairs end at the page table");
        // The table of a level; the page is level 0's.
        let block = |level: Level| match level {
            Level::L4 => ROOT,
            Level::L3 => BLOCKS[0],
            Level::L2 if matches!(format, Format::Legacy32 { .. }) => ROOT,
            Level::L2 => BLOCKS[1],
            Level::L1 => BLOCKS[2],
        };
        let below = |level: Level| level.below().map_or(BLOCKS[3], block) << 12;
        let large = |level: Level| page & !((1 << format.shift(level)) - 1);
        let place = |level: Level| {
            let index = format.index(gva, level);
            PhysAddr::new(format.entry_at(Gfn::new(block(level)), index).raw())
        };
        let levels = [part.upper, lower];
        let places = levels.map(place);

        let mut pages = vec![gva];
        let mut registers = Registers::long_mode(Gfn::new(ROOT));
        if narrow {
            registers.execute_on(
                Privileged::Enter { format, root: registers.root },
                &memory,
                &MODEL,
            );
        }
        let window = |place: PhysAddr| registers.linear(Gva::new(WINDOW + (place.raw() & !0xfff)));
        pages.extend(places.map(window));
        let universe = Rc::new(crate::universe::Universe::new(pages));
        let start = Start {
            model: MODEL,
            cpus: 1,
            registers,
            memory: memory.clone(),
            universe: universe.clone(),
            temper: Temper { ahead: 2, ..Temper::STICKY },
            seed: part.offset,
        };
        let (bypass, filter, unsync) = match part.mode {
            Mode::Trap => (false, FilterPolicy::Present, 0),
            Mode::Unsync => (false, FilterPolicy::Present, 255),
            Mode::Bypass(filter) => (true, filter, 0),
        };
        let plain = ShadowConfig::plain(bypass, MIN_FRAMES_PER_VCPU);
        let config = ShadowConfig { filter, unsync, eager: true, ..plain };
        let machine = Shadow::new(config, start);
        Bench {
            session: Session::new(machine, universe, memory, MODEL, vec![registers]),
            registers,
            format,
            upper: part.upper,
            lower,
            places,
            targets: levels.map(|level| Targets { table: below(level), large: large(level) }),
            gva,
            counts: Counts::default(),
        }
    }

    fn compose(&self, number: u32, features: &Features) -> [u64; 2] {
        let (pair, salt) = (Pair::new(number), u64::from(number));
        [
            compose_in(self.format, self.upper, pair.upper, &self.targets[0], features, salt),
            compose_in(self.format, self.lower, pair.lower, &self.targets[1], features, salt / 16),
        ]
    }

    fn op(&mut self, op: &Op) -> Result<(), String> {
        // Everything is audited now and then, in between what changed.
        let full = self.counts.cases % 256 == 0;
        self.session.step(op, full)
    }

    fn execute(&mut self, instruction: Privileged) -> Result<(), String> {
        self.registers.execute(instruction);
        self.op(&Op::Execute { cpu: 0, instruction })
    }

    fn set(&mut self, setting: u32) -> Result<(), String> {
        let bit = |n: u32| setting >> n & 1 != 0;
        for instruction in [
            Privileged::Wp(bit(0)),
            Privileged::Nxe(bit(1)),
            Privileged::Smep(bit(2)),
            Privileged::Smap(bit(3)),
            Privileged::FlushAll,
        ] {
            self.execute(instruction)?;
        }
        Ok(())
    }

    /// An entry of the guest's tables as it is now.
    fn entry(&self, place: PhysAddr) -> u64 {
        Width::of(&self.registers.control(&MODEL)).read(self.session.memory(), place)
    }

    /// The guest's store to an entry, through the window.
    fn store(&mut self, place: PhysAddr, entry: u64) -> Result<(), String> {
        if self.entry(place) == entry {
            return Ok(());
        }
        let gva = Gva::new(WINDOW + place.raw());
        let length = self.format.entry_bytes() as usize;
        let bytes = entry.to_le_bytes().into_iter().take(length).collect();
        self.op(&Op::Store { cpu: 0, gva, user: false, ac: true, bytes })?;
        match self.session.observed() {
            Some(Observed::Done(_)) => Ok(()),
            other => Err(format!("the store to the entry at {place:?} ends in {other:?}")),
        }
    }

    fn case(&mut self, entries: [u64; 2], access: Access) -> Result<(), String> {
        for (place, entry) in self.places.into_iter().zip(entries) {
            self.store(place, entry)?;
        }
        self.execute(Privileged::Invlpg(self.gva))?;
        self.attempt(access)?;
        let absent = |pfec: Pfec| !pfec.contains(Pfec::PRESENT);
        if matches!(self.session.observed(), Some(Observed::Fault(fault)) if absent(fault.code)) {
            for place in self.places {
                let entry = self.entry(place);
                self.store(place, entry | bits::P)?;
            }
            self.counts.unflushed += 1;
            self.attempt(access).map_err(|why| format!("then P set without a flush: {why}"))?;
        }
        Ok(())
    }

    fn attempt(&mut self, access: Access) -> Result<(), String> {
        let control = self.registers.control(&MODEL);
        let now = walk(self.session.memory(), &control, self.gva);
        let promised = self.promised(access, &now);
        if promised == Delivery::Native && matches!(now.end, End::Page(_)) {
            let access = Access { smap_override: true, ..Access::supervisor_read() };
            self.op(&Op::Load { cpu: 0, gva: self.gva, access, length: 8 })?;
        }
        let before = self.places.map(|place| self.entry(place));
        // The word of a write is not one that anybody reads as an entry.
        let gva = Gva::new(self.gva.raw() + 0x800);
        let user = access.user;
        self.op(&match access.kind {
            AccessKind::Write => Op::Store {
                cpu: 0,
                gva,
                user,
                ac: access.smap_override,
                bytes: self.counts.cases.to_le_bytes().into_iter().collect(),
            },
            AccessKind::Read | AccessKind::Fetch => Op::Load { cpu: 0, gva, access, length: 8 },
        })?;
        self.counts.cases += 1;
        let fault = match self.session.observed() {
            Some(Observed::Fault(fault)) => *fault,
            _ => return Ok(()),
        };
        if self.places.map(|place| self.entry(place)) != before {
            return Err(format!("{fault:x?} changed the entries to {before:x?}"));
        }
        if self.session.machine().delivery() != Some(promised) {
            return Err(format!(
                "{fault:x?} came {:?}, not {promised:?}",
                self.session.machine().delivery()
            ));
        }
        match promised {
            Delivery::Native => self.counts.native += 1,
            Delivery::Injected => self.counts.injected += 1,
        }
        Ok(())
    }

    /// How a fault of this access must come, if there is one, where the guest's walk finds this.
    fn promised(&self, access: Access, now: &Walk) -> Delivery {
        let marked = now.visits.iter().all(|visit| visit.entry & bits::A != 0);
        let (all, user) = match self.session.machine().guest_faults() {
            GuestFaults::Trap => (false, false),
            GuestFaults::Present => (true, false),
            GuestFaults::User => (false, access.user),
        };
        let let_through = match now.end {
            End::NotPresent => all || user,
            End::Reserved => false,
            End::Page(page) => {
                let installed = self.session.memory().contains(page.place(self.gva));
                user && installed && !now.visits.last().is_some_and(is_narrow)
            }
        };
        if marked && let_through { Delivery::Native } else { Delivery::Injected }
    }
}

/// Whether the shadow of this entry, which maps a page, gives user mode less than the entry: it is
/// clean, or a large page that holds the tables, which are write-protected.
fn is_narrow(visit: &Visit) -> bool {
    let of_user = visit.entry & (bits::U | bits::W) == bits::U | bits::W;
    of_user && (visit.entry & bits::D == 0 || visit.level > 1)
}
