//! Random graphs of tables: frames aliased at all levels and as data, loops, tables that map
//! themselves, reserved bits, large pages over tables, tables that are not there; entries rewritten
//! directly and through the tangle itself.

use guest_kernels::check;
use guest_kernels::entries::PAGE;
use guest_kernels::kit::cpu;
use guest_kernels::kit::frames::Frame;
use guest_kernels::kit::oracle::{Judge, Judged, NOWHERE};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::space::Space;
use guest_kernels::random::Random;
use guest_kernels::say;
use umbra_paging::{Access, AccessKind, Gva, bits};

use crate::setting::Setting;

/// Indexes that walks use, at every level: not those of the kit's slots, for any frame may be the
/// root.
const INDEXES: [u64; 8] = [2, 3, 4, 5, 100, 200, 201, 255];
const FRAMES: u64 = 40;
const ROOTS: usize = 4;
const STEPS: u64 = 12_000;

struct Tangle {
    /// 2 MiB-aligned: a large page shows all of it.
    first: Frame,
    roots: [Space; ROOTS],
}

impl Tangle {
    fn frame(&self, random: &mut Random) -> Frame {
        match random.below(10) {
            0 => self.roots[random.index(ROOTS)].root(),
            _ => self.first.after(random.below(FRAMES)),
        }
    }

    fn entry(&self, random: &mut Random) -> u64 {
        let frame = self.frame(random).address();
        let mut entry = frame | PAGE;
        for bit in [bits::W, bits::U, bits::A, bits::D] {
            if random.one_in(16) {
                entry &= !bit;
            }
        }
        match random.below(64) {
            0 | 1 => entry &= !bits::P,
            2 | 3 => entry = self.first.address() | entry & 0xfff | bits::PS,
            4 => entry |= bits::PS,
            5 => entry |= bits::NX,
            6 => entry |= 1 << (36 + random.below(16)),
            7 => entry = NOWHERE | entry & 0xfff,
            8 => entry |= bits::G,
            9 => entry = random.number(),
            10 => entry = u64::MAX,
            11 => entry = entry & 0xfff | bits::PS,
            _ => (),
        }
        entry
    }
}

fn address(random: &mut Random) -> Gva {
    let mut address = 0;
    for shift in [39, 30, 21, 12, 3] {
        address |= INDEXES[random.index(INDEXES.len())] << shift;
    }
    // Slots are of the lower half.
    Gva::new(address & ((1 << 47) - 1))
}

fn access(random: &mut Random) -> Access {
    let kind = if random.one_in(2) { AccessKind::Write } else { AccessKind::Read };
    Access { kind, user: random.one_in(2), smap_override: random.one_in(3) }
}

/// Random steps.
pub fn tangle(setting: &mut Setting, space: &Space, report: &mut Report) {
    let first = setting.pool.frames(512, 2 << 20);
    let roots = core::array::from_fn(|_| space.sibling(&mut setting.pool));
    let tangle = Tangle { first, roots };
    for index in INDEXES {
        for frame in 0..FRAMES {
            first.after(frame).write(index as usize, tangle.entry(&mut setting.random));
        }
        for root in roots {
            root.root().write(index as usize, tangle.entry(&mut setting.random));
        }
    }
    let mut judge = enter(setting, roots[0]);
    let (mut done, mut faulted, mut skipped) = (0u64, 0u64, 0u64);
    for _ in 0..setting.times(STEPS) {
        let random = &mut setting.random;
        match random.below(64) {
            0 => {
                let root = roots[random.index(ROOTS)];
                judge = enter(setting, root);
            }
            1 => cpu::flush_all(),
            2..=20 => {
                let (frame, index) = (tangle.frame(random), INDEXES[random.index(INDEXES.len())]);
                let entry = tangle.entry(random);
                frame.write(index as usize, entry);
            }
            _ => {
                let (gva, access) = (address(random), access(random));
                let value = tangle.entry(random);
                // A page of code, or of the kit: not to be written.
                match judge.flush_and_judge(&setting.pool, report, gva, access, value) {
                    Judged::Done => done += 1,
                    Judged::Faulted => faulted += 1,
                    Judged::Skipped => skipped += 1,
                }
            }
        }
    }
    say!(
        "  {done} accesses went through, {faulted} faulted, {skipped} would have left test memory"
    );
    check!(report, done > 100 && faulted > 100, "the tangle is too tight or too loose");
}

fn enter(setting: &mut Setting, root: Space) -> Judge {
    root.activate();
    let bits: [bool; 4] = core::array::from_fn(|_| setting.random.one_in(2));
    // What global entries left behind is not what the tables say.
    cpu::flush_all();
    setting.judge(&root, bits[0], bits[1], bits[2], bits[3])
}
