//! The bound of the work in one call, as the crate's documentation states it, against guests that make it as large as
//! they can. Work is counted in calls of the embedder's traits.

use crate::common::*;
use umbra_mmu::{MIN_FRAMES_PER_VCPU, Mmu, Origin};
use umbra_paging::{Access, AccessKind, Gfn, Gpa, Gva, Mode, Paging, bits};

const ALL: u64 = P | W | U | A | D;
const POOL: u64 = MIN_FRAMES_PER_VCPU as u64;
/// Guest frames: a backing is asked for once per frame after its region was revoked.
const FRAMES: u64 = 2048;

/// Entries of the pool.
const ENTRIES: u64 = POOL * 512;
const PAGE_FAULT: u64 = 20 * ENTRIES + 60_000 + FRAMES;
const LOAD_PAGING: u64 = 20 * ENTRIES + 60_000 + FRAMES;
const FLUSH: u64 = 11 * ENTRIES + 30_000 + FRAMES;
const RELEASE: u64 = 12 * ENTRIES + 30_000 + FRAMES;
const REVOKE: u64 = 20 * ENTRIES + 30_000 + FRAMES;
const ZAP_ALL: u64 = 9 * ENTRIES + 10_000;
/// Of at most 8 bytes, which touch at most two entries.
const WRITE: u64 = 2 * 32 * POOL + 100 + FRAMES;

fn work(machine: &mut Machine, call: impl FnOnce(&mut Machine)) -> u64 {
    machine.work.set(0);
    call(machine);
    machine.work.get()
}

fn read(machine: &mut Machine, mmu: &mut Mmu, gva: u64) -> u64 {
    let access = Access::user_read();
    work(machine, |machine| {
        mmu.page_fault(machine, 0, Gva::new(gva), access, &Origin::at(Gva::new(0)));
    })
}

/// As many page tables as there is room for, all of whose entries map frame 9.
fn one_frame_everywhere() -> (Machine, Mmu) {
    let mut machine = Machine::new(FRAMES, POOL as usize);
    machine.chain();
    for n in 0..POOL {
        machine.poke(3, n as usize, (16 + n) << 12 | ALL);
        (0..512).for_each(|index| machine.poke(16 + n, index, 9 << 12 | ALL));
    }
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, 0, paging(1));
    // The root of paging off is not needed any more, but stays until its frames are.
    for _ in 0..2 {
        (0..POOL - 6).for_each(|n| {
            read(&mut machine, &mut mmu, n << 21);
        });
    }
    (machine, mmu)
}

#[test]
fn a_frame_that_all_entries_map_becomes_a_table() {
    let (mut machine, mut mmu) = one_frame_everywhere();
    let entry = 9 << 12 | ALL;
    let done = work(&mut machine, |machine| {
        mmu.write_guest(machine, Gfn::new(3).entry(500), &entry.to_le_bytes());
    });
    assert!(done <= WRITE, "{done}");
    let done = read(&mut machine, &mut mmu, 500 << 21);
    assert!(done <= PAGE_FAULT, "{done}");
    assert!(done >= ENTRIES, "the guest is not as hostile as it should be: {done}");
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_frame_that_all_entries_map_is_revoked() {
    let (mut machine, mut mmu) = one_frame_everywhere();
    let done = work(&mut machine, |machine| mmu.revoke(machine, Gfn::new(9)..Gfn::new(10)));
    assert!(done <= REVOKE, "{done}");
    assert!(done >= ENTRIES, "the guest is not as hostile as it should be: {done}");
}

#[test]
fn everything_is_thrown_away() {
    let (mut machine, mut mmu) = one_frame_everywhere();
    let done = work(&mut machine, |machine| mmu.zap_all(machine));
    assert!(done <= ZAP_ALL, "{done}");
    assert!(done >= ENTRIES, "the guest is not as hostile as it should be: {done}");
    assert!(machine.flushes <= POOL * 10, "{}", machine.flushes);
}

#[test]
fn all_entries_link_one_table_that_is_given_up() {
    let mut machine = Machine::new(FRAMES, POOL as usize);
    machine.chain();
    for n in 0..POOL {
        machine.poke(2, n as usize, (16 + n) << 12 | ALL);
        (0..512).for_each(|index| machine.poke(16 + n, index, 4 << 12 | ALL));
    }
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, 0, paging(1));
    for _ in 0..2 {
        (0..POOL - 6).for_each(|n| {
            read(&mut machine, &mut mmu, n << 30);
        });
    }
    let done = work(&mut machine, |machine| mmu.release(machine, Gfn::new(4)));
    assert!(done <= RELEASE, "{done}");
    assert!(done >= ENTRIES / 4, "the guest is not as hostile as it should be: {done}");
    let done = work(&mut machine, |machine| mmu.flush_guest(machine));
    assert!(done <= FLUSH, "{done}");
}

/// A stream of numbers (xorshift), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

#[test]
fn no_call_exceeds_its_bound_whatever_the_guest_does() {
    let mut machine = Machine::new(FRAMES, POOL as usize);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // Tables of every level that lead to each other, themselves and the identity map.
    for table in 1..64 {
        for index in 0..512 {
            let large = if random.below(32) == 0 { bits::PS | 512 << 12 } else { 0 };
            let frame = if large == 0 { 1 + random.below(64) } else { 0 };
            machine.poke(table, index, frame << 12 | large | ALL);
        }
    }
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    let mut most = [0; 7];
    for _ in 0..6000 {
        let gva = Gva::new(random.below(1 << 47));
        let gfn = Gfn::new(1 + random.below(64));
        let kind = [AccessKind::Read, AccessKind::Write][random.below(2) as usize];
        let access = Access { kind, user: random.below(2) == 0, smap_override: false };
        let choice = random.below(64);
        let (which, bound) = match choice {
            0..40 => (0, PAGE_FAULT),
            40..45 => (1, LOAD_PAGING),
            45..55 => (2, WRITE),
            55..58 => (3, FLUSH),
            58..61 => (4, RELEASE),
            61..63 => (5, REVOKE),
            _ => (6, ZAP_ALL),
        };
        let (one, other) = (random.below(512), random.below(8));
        let done = work(&mut machine, |machine| match which {
            0 => {
                mmu.page_fault(machine, 0, gva, access, &Origin::at(Gva::new(0)));
            }
            1 => {
                let mode = if other == 0 { Mode::Off } else { Mode::Long4 };
                let wp = one % 4 != 0;
                let paging = Paging { mode, wp, nxe: one % 3 != 0, ..paging(gfn.raw()) };
                mmu.load_paging(machine, 0, paging);
            }
            2 => {
                let entry = (1 + one % 64) << 12 | ALL;
                let gpa = Gpa::new(gfn.entry(one as usize).raw() + other.min(4));
                mmu.write_guest(machine, gpa, &entry.to_le_bytes());
            }
            3 => mmu.invlpg(machine, 0, gva),
            4 => mmu.release(machine, gfn),
            5 => mmu.revoke(machine, gfn..gfn.add(1)),
            _ => mmu.zap_all(machine),
        });
        assert!(done <= bound, "call {which}: {done} of {bound}");
        most[which] = most[which].max(done);
    }
    mmu.audit(&machine).unwrap();
    assert!(most.iter().all(|&most| most > 0), "{most:?}");
    println!("most work in one page fault, load, write, flush, release, revocation, zap of all: {most:?}");
}
