//! The tables that the two chosen entries stand in, and one case on them.

use guest_kernels::cases::{Pair, TWIN, Targets, compose};
use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::cpu::{self, Cpu};
use guest_kernels::kit::frames::{Frame, Pool};
use guest_kernels::kit::oracle::Quirks;
use guest_kernels::kit::space::{self, Memory, Space};
use umbra_paging::{Access, AccessKind, Features, Gva, Level, Paging, Pfec, Step, bits, walk};

/// Where in its page each kind of access goes, as a word.
const READ_WORD: usize = 257;
const WRITE_WORD: usize = 258;

/// RAX after a fetch from the page or its twin.
const FETCHED: [u64; 2] = [0x600d_c0de, 0x7714_c0de];
/// What the word for reads holds in the page and its twin.
const HELD: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// Two entries of adjacent levels and what lies below them.
pub struct Bench {
    upper: Level,
    lower: Level,
    entries: [(Frame, usize); 2],
    targets: [Targets; 2],
    features: Features,
    quirks: Quirks,
    gva: Gva,
    /// The page that all good walks lead to; its twin lies [`TWIN`] further.
    page: Frame,
    counter: u64,
}

/// The entry differs from what it must be, or the access ended otherwise.
pub enum Mismatch {
    /// How the access ended.
    Outcome {
        /// What the walk says.
        expected: Result<u64, Fault>,
        /// What the CPU did.
        found: Result<u64, Fault>,
    },
    /// An entry afterwards.
    Entry {
        /// Its level.
        level: Level,
        /// As the walk says.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// The written word is not where it belongs.
    Memory {
        /// What was written.
        expected: u64,
        /// What is there.
        found: u64,
    },
}

/// One case that did come out as the walk says.
#[derive(Clone, Copy, Default)]
pub struct Passed {
    /// The access faulted.
    pub faulted: bool,
    /// It did because of an entry with P clear.
    pub not_present: bool,
    /// Entries whose A was set although the walk faulted.
    pub early: u64,
}

impl Bench {
    /// Makes tables for `upper` and the level below in `space`.
    pub fn new(pool: &mut Pool, space: &Space, cpu: &Cpu, upper: Level, quirks: Quirks) -> Bench {
        let lower = upper.below().expect("pairs end at the page table");
        let page = pool.frames(4, 4 * 4096);
        assert!(page.address() < 1 << 30, "a 1 GiB page at 0 must reach the test's page");
        for (twin, (fetched, held)) in FETCHED.into_iter().zip(HELD).enumerate() {
            let frame = page.after(2 * twin as u64);
            let mut code = [0xb8, 0, 0, 0, 0, 0xcd, 0x80];
            code[1..5].copy_from_slice(&(fetched as u32).to_le_bytes());
            frame.write_bytes(0, &code);
            frame.write(READ_WORD, held);
        }
        // The low 30 bits are the physical address, so pages of all sizes lead there.
        let gva =
            Gva::new(space::slot(space::FIRST_TEST_SLOT + upper as u64).raw() + page.address());

        // A block for each level below the upper one: the table and its twin.
        let mut next = page;
        let mut below = None;
        for level in Level::ALL {
            if level == upper {
                break;
            }
            let flags = if level == Level::L1 { PAGE } else { TABLE };
            let block = pool.frames(4, 4 * 4096);
            block.write(gva.index(level), next.address() | flags);
            block.after(2).write(gva.index(level), next.address() | TWIN | flags);
            (below, next) = (Some((block, next)), block);
        }
        let (lower_table, lower_target) = below.expect("there is a level below");
        let upper_table = space.table(pool, gva, upper);
        let large = |level: Level| page.address() & !((1 << level.shift()) - 1);
        Bench {
            upper,
            lower,
            entries: [(upper_table, gva.index(upper)), (lower_table, gva.index(lower))],
            targets: [
                Targets { table: lower_table.address(), large: large(upper) },
                Targets { table: lower_target.address(), large: large(lower) },
            ],
            features: cpu.features,
            quirks,
            gva,
            page,
            counter: 0,
        }
    }

    /// The raw entries of a pair.
    pub fn compose(&self, pair: Pair, number: u32) -> [u64; 2] {
        let salt = u64::from(number);
        [
            compose(self.upper, pair.upper, &self.targets[0], &self.features, salt),
            compose(self.lower, pair.lower, &self.targets[1], &self.features, salt / 16),
        ]
    }

    fn address(&self, access: Access) -> Gva {
        let word = match access.kind {
            AccessKind::Read => READ_WORD,
            AccessKind::Write => WRITE_WORD,
            AccessKind::Fetch => 0,
        };
        Gva::new(self.gva.raw() + 8 * word as u64)
    }

    /// Sets both entries, flushes what the CPU may have cached, and does the access.
    pub fn case(
        &mut self,
        pool: &Pool,
        paging: &Paging,
        entries: [u64; 2],
        access: Access,
    ) -> Result<Passed, Mismatch> {
        for ((frame, index), entry) in self.entries.into_iter().zip(entries) {
            frame.update(index, entry);
        }
        cpu::invlpg(self.address(access));
        self.attempt(pool, paging, access)
    }

    /// Sets P in both entries, flushes nothing, and does the access.
    pub fn made_present(
        &mut self,
        pool: &Pool,
        paging: &Paging,
        access: Access,
    ) -> Result<Passed, Mismatch> {
        for (frame, index) in self.entries {
            frame.update(index, frame.read(index) | bits::P);
        }
        self.attempt(pool, paging, access)
    }

    fn attempt(
        &mut self,
        pool: &Pool,
        paging: &Paging,
        access: Access,
    ) -> Result<Passed, Mismatch> {
        let gva = self.address(access);
        self.counter += 1;
        let value = self.counter;
        let before = self.entries.map(|(frame, index)| frame.read(index));
        let walked = walk(&Memory { pool, beyond: u64::MAX }, paging, &self.features, gva, access);

        let expected = match &walked {
            Err(fault) => Err(self.quirks.report(*fault)),
            Ok(walk) => Ok(match access.kind {
                AccessKind::Fetch => FETCHED[self.twin(walk.gpa().raw())],
                AccessKind::Read => HELD[self.twin(walk.gpa().raw())],
                AccessKind::Write => 0,
            }),
        };
        let found = access::access(access, gva, value);
        if found != expected {
            return Err(Mismatch::Outcome { expected, found });
        }
        if let (Ok(walk), AccessKind::Write) = (&walked, access.kind) {
            let found = self.page.after(2 * self.twin(walk.gpa().raw()) as u64).read(WRITE_WORD);
            if found != value {
                return Err(Mismatch::Memory { expected: value, found });
            }
        }

        let steps = walked.as_ref().map_or(&[] as &[Step], |walk| walk.steps());
        let mut passed = Passed { faulted: walked.is_err(), ..Passed::default() };
        passed.not_present = walked.is_err_and(|fault| !fault.pfec.contains(Pfec::PRESENT));
        for (((frame, index), before), level) in
            self.entries.into_iter().zip(before).zip([self.upper, self.lower])
        {
            let step = steps
                .iter()
                .find(|step| step.level == level && step.at == frame.gfn().entry(index));
            let expected = step.and_then(|step| step.update(access)).unwrap_or(before);
            let found = frame.read(index);
            if found != expected {
                // SDM, "Accessed and Dirty Flags": A says that an entry was used in a translation,
                // not that the access took place. QEMU's TCG sets it on the way down.
                if passed.faulted && before & bits::P != 0 && found == before | bits::A {
                    passed.early += 1;
                    continue;
                }
                return Err(Mismatch::Entry { level, expected, found });
            }
        }
        Ok(passed)
    }

    /// 1 for an address in the twin, 0 for the page itself.
    fn twin(&self, gpa: u64) -> usize {
        let offset = gpa.wrapping_sub(self.page.address()) & !0xfff;
        match offset {
            0 => 0,
            TWIN => 1,
            _ => panic!("the walk leads to {gpa:#x}, where this test has no page"),
        }
    }
}
