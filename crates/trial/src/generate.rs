//! Random programs.

use fastrand::Rng;
use umbra_reference::universe::tree_page;

use crate::image::{A, D, P, PS, U, W};
use crate::judge::CODE_OFFSET;
use crate::layout::{ARENA, CPUS, HOLE, HOT, LARGE, PAGE, REGIONS, ROOTS, WORDS, direct};
use crate::program::{HostEvent, Program, Step, slot};

const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
/// Above every MAXPHYADDR of these programs.
const RESERVED: u64 = 1 << 51;
/// Reserved in a large page of either size.
const RESERVED_LARGE: u64 = 1 << 13;

/// How long a random program is.
pub const STEPS: usize = 400;

/// The number of the first program, unless another one is asked for. It and what is below were
/// committed before the kernels that the book names were tried.
pub const FIRST_SEED: u64 = 1;

/// The weights of the kinds of steps in a program, of any sum.
struct Theme {
    read: u32,
    write: u32,
    fetch: u32,
    /// The guest writes an entry through the direct map.
    edit: u32,
    /// The guest writes the start of its tree anew.
    repair: u32,
    invlpg: u32,
    cr3: u32,
    control: u32,
    /// The host writes an entry.
    host_write: u32,
    /// Slots: deleted, moved, read-only.
    slots: u32,
    /// Dirty log, MADV_DONTNEED, mprotect, registers.
    backing: u32,
}

const THEMES: [Theme; 4] = [
    // A guest that works on its tables.
    Theme {
        read: 80,
        write: 40,
        fetch: 20,
        edit: 70,
        repair: 2,
        invlpg: 25,
        cr3: 20,
        control: 0,
        host_write: 0,
        slots: 2,
        backing: 6,
    },
    // The same, with changes of control bits.
    Theme {
        read: 80,
        write: 40,
        fetch: 30,
        edit: 50,
        repair: 3,
        invlpg: 15,
        cr3: 15,
        control: 25,
        host_write: 0,
        slots: 1,
        backing: 4,
    },
    // A host that writes the guest's tables, and a slot that comes and goes.
    Theme {
        read: 100,
        write: 20,
        fetch: 5,
        edit: 25,
        repair: 2,
        invlpg: 6,
        cr3: 10,
        control: 0,
        host_write: 40,
        slots: 8,
        backing: 8,
    },
    // A host that is never quiet.
    Theme {
        read: 80,
        write: 60,
        fetch: 10,
        edit: 30,
        repair: 3,
        invlpg: 10,
        cr3: 10,
        control: 4,
        host_write: 0,
        slots: 12,
        backing: 50,
    },
];

/// The random program of this number, with about `steps` steps.
pub fn program(seed: u64, steps: usize) -> Program {
    let mut random = Rng::with_seed(seed);
    let theme = &THEMES[random.usize(..THEMES.len())];
    let tables = random.u64(..);
    let maxphyaddr = [40, 40, 36][random.usize(..3)];
    let huge = random.bool();
    let mut generator = Generator { random, steps: Vec::new(), theme, read_only: None };
    while generator.steps.len() < steps {
        generator.next();
    }
    generator.steps.truncate(steps);
    Program {
        seed,
        tables,
        maxphyaddr,
        old: false,
        huge,
        tight: is_tight(seed),
        turns: Vec::new(),
        steps: generator.steps,
    }
}

/// The random program of this number for two virtual CPUs: the steps of [`program`], dealt out. A
/// flush is often one of both, as a guest's kernel has it (TLB shootdown).
pub fn program_of_two(seed: u64, steps: usize) -> Program {
    let mut program = program(seed, steps);
    // Apart from the numbers that make the steps.
    let mut random = Rng::with_seed(seed.rotate_left(32));
    let mut cpu = 0;
    let mut dealt: Vec<(u8, Step)> = Vec::new();
    for step in program.steps.drain(..) {
        if random.u8(..3) == 0 {
            cpu = random.u8(..CPUS as u8);
        }
        dealt.push((cpu, step));
        if matches!(step, Step::Invlpg { .. } | Step::Cr3 { .. } | Step::Flush) && random.bool() {
            dealt.push((1 - cpu, step));
        }
    }
    dealt.truncate(steps);
    (program.turns, program.steps) = dealt.into_iter().unzip();
    program
}

/// Whether the program of this number gets few shadow pages. Not by the numbers that make the
/// program: it is the same with many.
fn is_tight(seed: u64) -> bool {
    Rng::with_seed(!seed).u8(..4) == 0
}

/// A program for an old CPU ([`Program::old`]).
pub fn for_old(mut program: Program) -> Program {
    program.old = true;
    program.steps.retain(|step| !step.needs_new_cpu());
    program
}

/// A program for machines where no driver waits: without the host's steps, and without entries that
/// name no memory. `old`: the CPU is as [`Program::old`] says.
pub fn for_bare(mut program: Program, old: bool) -> Program {
    program.old = old;
    program.retain(|step| !(matches!(step, Step::Host(_)) || old && step.needs_new_cpu()));
    // The bits of an entry between the flags and the one that is always reserved.
    let names = |value: u64, gva: u64| value << (gva % 8 * 8) >> 12 & 0x7f_ffff_ffff;
    let outside = |step: &Step| matches!(*step, Step::Write { gva, value, .. } if names(value, gva) >= ARENA / PAGE);
    program.retain(|step| !outside(step));
    program.maxphyaddr = 40;
    program
}

struct Generator<'a> {
    random: Rng,
    steps: Vec<Step>,
    theme: &'a Theme,
    /// The region that the host has made read-only.
    read_only: Option<u64>,
}

impl Generator<'_> {
    fn one_in(&mut self, n: u32) -> bool {
        self.random.u32(..n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.usize(..from.len())]
    }

    fn next(&mut self) {
        let Theme {
            read,
            write,
            fetch,
            edit,
            repair,
            invlpg,
            cr3,
            control,
            host_write,
            slots,
            backing,
        } = *self.theme;
        let weights =
            [read, write, fetch, edit, repair, invlpg, cr3, control, host_write, slots, backing];
        let mut choice = self.random.u32(..weights.iter().sum::<u32>());
        let mut kind = 0;
        while choice >= weights[kind] {
            choice -= weights[kind];
            kind += 1;
        }
        let step = match kind {
            0 => self.read(),
            1 => self.write(),
            2 => Step::Fetch { gva: self.page() + CODE_OFFSET, user: self.random.bool() },
            3 => self.edit(),
            4 => return self.repair(),
            5 => Step::Invlpg { gva: self.page() },
            6 => Step::Cr3 { frame: self.root() },
            7 => self.control(),
            8 => self.host_write(),
            9 => self.slots(),
            _ => self.backing(),
        };
        self.steps.push(step);
    }

    /// A page below the guest's own tables.
    fn page(&mut self) -> u64 {
        tree_page(self.random.u64(..16)).raw()
    }

    fn root(&mut self) -> u64 {
        if self.one_in(8) { self.pick(&HOT[..ROOTS]) } else { self.pick(&HOT[..2]) }
    }

    /// Size and offset of an access to a word that is watched.
    fn place(&mut self) -> (u8, u64) {
        let size = self.pick(&[8, 8, 8, 4, 2, 1]);
        let within = self.random.u64(..8) / u64::from(size) * u64::from(size);
        (size, self.pick(&WORDS) * 8 + if self.one_in(4) { within } else { 0 })
    }

    fn read(&mut self) -> Step {
        let (size, offset) = self.place();
        let (user, ac) = (self.random.bool(), self.random.bool());
        Step::Read { gva: self.page() + offset, size, user, ac }
    }

    fn write(&mut self) -> Step {
        let (size, offset) = self.place();
        let (user, ac) = (self.random.bool(), self.random.bool());
        // The bytes that an entry has there.
        let value = self.entry() >> (offset % 8 * 8);
        Step::Write { gva: self.page() + offset, size, user, ac, value }
    }

    /// An entry of a table: nothing, a large page, or a link or small page.
    fn entry(&mut self) -> u64 {
        let mut entry = match self.random.u32(..16) {
            0 | 1 => return self.random.u64(..) & 0xffe,
            2..6 => PS | (self.pick(&LARGE) * PAGE),
            6 => PS | (HOLE * PAGE),
            7 | 8 => self.pick(&LARGE) * PAGE,
            _ => self.pick(&HOT) * PAGE,
        };
        entry |= P;
        for (flag, off) in [(W, 5), (U, 6), (A, 4), (D, 3)] {
            if !self.one_in(off) {
                entry |= flag;
            }
        }
        for (flag, on) in [(G, 8), (NX, 6), (RESERVED, 60)] {
            if self.one_in(on) {
                entry |= flag;
            }
        }
        if entry & PS != 0 && self.one_in(30) {
            entry |= RESERVED_LARGE;
        }
        entry
    }

    /// The address of an entry of a table, mostly of a lower level.
    fn entry_place(&mut self) -> u64 {
        let frame = match self.random.u32(..16) {
            0 => self.pick(&HOT),
            1 | 2 => self.pick(&HOT[..2]),
            3 | 4 => self.pick(&HOT[2..4]),
            5..10 => self.pick(&HOT[4..6]),
            10..14 => self.pick(&HOT[6..8]),
            _ => self.pick(&HOT[8..]),
        };
        let index = if HOT[..2].contains(&frame) {
            slot(self.random.usize(..3))
        } else {
            slot(self.random.usize(..2))
        };
        frame * PAGE + index * 8
    }

    fn edit(&mut self) -> Step {
        let gpa = self.entry_place();
        Step::Write { gva: direct(gpa).raw(), size: 8, user: false, ac: false, value: self.entry() }
    }

    /// The way from a root to a page is made good again.
    fn repair(&mut self) {
        let [root, pdpt, pd, pt] = [0, 2, 4, 6].map(|at| HOT[at + self.random.usize(..2)]);
        let data = self.pick(&HOT[ROOTS..]);
        for (table, to) in [(root, pdpt), (pdpt, pd), (pd, pt), (pt, data)] {
            let gva = direct(table * PAGE + slot(self.random.usize(..2)) * 8).raw();
            let value = (to * PAGE) | P | W | U | A;
            self.steps.push(Step::Write { gva, size: 8, user: false, ac: false, value });
        }
    }

    fn control(&mut self) -> Step {
        let on = self.random.bool();
        match self.random.u32(..12) {
            0..3 => Step::Wp(on),
            3..5 => Step::Smep(on),
            5..7 => Step::Smap(on),
            7..9 => Step::Nxe(!self.one_in(3)),
            9..11 => Step::Pge(on),
            _ => Step::Flush,
        }
    }

    /// The host changes an entry, mostly of a page directory: nothing, a large page, or a link.
    fn host_write(&mut self) -> Step {
        let gpa = match self.random.u32(..4) {
            0 => self.entry_place(),
            // Words that are no entries: data, by DMA.
            1 if self.one_in(2) => self.pick(&HOT) * PAGE + 16 + self.random.u64(..2) * 8,
            _ => self.pick(&HOT[4..6]) * PAGE + self.random.u64(..2) * 8,
        };
        Step::Host(HostEvent::Write { gpa, value: self.entry() })
    }

    fn region(&mut self) -> u64 {
        self.random.u64(..REGIONS)
    }

    fn slots(&mut self) -> Step {
        // Nothing is judged while a region is read-only.
        if let Some(region) = self.read_only.take() {
            return Step::Host(HostEvent::Cycle { region, read_only: false });
        }
        let region = self.region();
        Step::Host(match self.random.u32(..8) {
            0..4 => HostEvent::Cycle { region, read_only: false },
            4 if self.random.bool() => {
                self.read_only = Some(region);
                HostEvent::Cycle { region, read_only: true }
            }
            4..7 => HostEvent::Move { region },
            _ => HostEvent::Shift { region },
        })
    }

    fn backing(&mut self) -> Step {
        let region = self.region();
        Step::Host(match self.random.u32(..16) {
            0..3 => HostEvent::Log { region, on: !self.one_in(4) },
            3..7 => HostEvent::Harvest { region },
            7..11 => HostEvent::Discard {
                frame: if self.one_in(4) {
                    self.random.u64(..ARENA / PAGE)
                } else {
                    self.pick(&HOT)
                },
            },
            11 | 12 => HostEvent::DiscardRegion { region },
            13 | 14 => HostEvent::Protect { region },
            _ => HostEvent::Registers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_programs_are_valid() {
        for seed in 0..300 {
            let program = program(seed, STEPS);
            assert_eq!(program.check(), Ok(()), "{program}");
            assert_eq!(program.steps.len(), STEPS);
        }
    }

    #[test]
    fn programs_of_two_cpus_use_both() {
        for seed in 0..300 {
            let program = program_of_two(seed, STEPS);
            assert_eq!(program.check(), Ok(()), "{program}");
            assert_eq!((program.steps.len(), program.cpus()), (STEPS, 2));
            let second = program.turns.iter().filter(|&&cpu| cpu == 1).count();
            assert!((STEPS / 5..STEPS * 4 / 5).contains(&second), "program {seed}: {second}");
            let bare = for_bare(program, true);
            assert_eq!(bare.check(), Ok(()), "{bare}");
            assert_eq!(bare.cpus(), 2);
        }
    }
}
