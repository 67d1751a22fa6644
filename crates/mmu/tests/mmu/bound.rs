//! The bound of the work in one call, as the crate's documentation states it, against guests that
//! make it as large as they can. Work is counted in calls of the embedder's traits.

use crate::common::*;
use umbra_mmu::policy::{Answer, TableWrite, WritePolicy};
use umbra_mmu::{Config, FaultContext, FilterPolicy, MIN_FRAMES_PER_VCPU, Mmu};
use umbra_paging::{Access, AccessKind, Gfn, Gpa, Gva, Mode, Paging, bits};

const ALL: u64 = P | W | U | A | D;
const POOL: u64 = MIN_FRAMES_PER_VCPU as u64 + 4;
/// Guest frames: a backing is asked for once per frame after its region was revoked.
const FRAMES: u64 = 2048;

/// Entries of the pool.
const ENTRIES: u64 = POOL * 512;
const PAGE_FAULT: u64 = 26 * ENTRIES + 80_000 + FRAMES;
const LOAD_PAGING: u64 = 26 * ENTRIES + 80_000 + FRAMES;
const FLUSH: u64 = 11 * ENTRIES + 30_000 + FRAMES;
const RELEASE: u64 = 12 * ENTRIES + 30_000 + FRAMES;
const REVOKE: u64 = 20 * ENTRIES + 30_000 + FRAMES;
const ZAP_ALL: u64 = 9 * ENTRIES + 10_000;
/// Of at most 8 bytes, which touch at most two entries.
const WRITE: u64 = 2 * 32 * POOL + 200 + FRAMES;
const OFFER_ROOT: u64 = 9 * ENTRIES + 30_000 + FRAMES;
const OFFER_OTHER_ROOT: u64 = LOAD_PAGING;
const QUERY: u64 = 1;
const CODE: u64 = 7;

fn work(machine: &mut Machine, call: impl FnOnce(&mut Machine)) -> u64 {
    machine.work.set(0);
    call(machine);
    machine.work.get()
}

fn read(machine: &mut Machine, mmu: &mut Mmu, gva: u64) -> u64 {
    let access = Access::user_read();
    work(machine, |machine| {
        mmu.page_fault(machine, VCPU, Gva::new(gva), access, &FaultContext::at(Gva::new(0)));
    })
}

/// As many page tables as there is room for, all of whose entries map frame 9.
fn one_frame_everywhere(mut machine: Machine, config: Config, rights: u64) -> (Machine, Mmu) {
    machine.chain();
    for n in 0..POOL {
        machine.poke(3, n as usize, (16 + n) << 12 | ALL);
        (0..512).for_each(|index| machine.poke(16 + n, index, 9 << 12 | rights));
    }
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
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
    let (mut machine, mut mmu) =
        one_frame_everywhere(Machine::new(FRAMES, POOL as usize), config(), ALL);
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

/// The first access below a root leads to twelve tables more, each of which is full and maps all
/// the others.
#[test]
fn all_tables_below_a_root_are_linked_ahead() {
    let mut machine = Machine::new(FRAMES, POOL as usize);
    machine.chain();
    machine.poke(4, 0, 9 << 12 | ALL);
    machine.poke(1, 1, 15 << 12 | ALL);
    machine.poke(15, 0, 14 << 12 | ALL);
    for n in 0..16 {
        machine.poke(14, n as usize, (16 + n) << 12 | ALL);
        (0..512)
            .for_each(|index| machine.poke(16 + n, index, (16 + index as u64 % 16) << 12 | ALL));
    }
    let mut mmu =
        Mmu::new(config_with(|config| config.prefetch_tables = true), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let before = mmu.counters().built;
    let done = read(&mut machine, &mut mmu, 0);
    assert_eq!(
        mmu.counters().built - before,
        3 + 12,
        "the guest is not as hostile as it should be"
    );
    assert!(done <= PAGE_FAULT, "{done}");
    mmu.audit(&machine).unwrap();
}

/// Thousands of entries that were not linked before lead to tables that were.
#[test]
fn what_is_linked_already_is_not_looked_through_without_end() {
    const LARGE_POOL: u64 = 128;
    const TABLES: u64 = 20;
    let mut machine = Machine::new(FRAMES, LARGE_POOL as usize);
    // Level 3 tables, which two roots lead to, all of whose entries lead to one table of level 2.
    for n in 0..TABLES {
        machine.poke(1, n as usize, (30 + n) << 12 | ALL);
        machine.poke(10, n as usize, (30 + n) << 12 | ALL);
        (0..511).for_each(|index| machine.poke(30 + n, index, 60 << 12 | ALL));
    }
    (0..511).for_each(|index| machine.poke(60, index, 70 << 12 | ALL & !A));
    machine.poke(60, 511, 61 << 12 | ALL);
    machine.poke(61, 0, 9 << 12 | ALL);
    let mut mmu = Mmu::new(
        config_with(|config| {
            config.prefetch_tables = true;
            config.log_changes = false;
        }),
        &mut machine,
    )
    .unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(10));
    mmu.load_paging(&mut machine, VCPU, paging(1));
    for n in 0..TABLES {
        read(&mut machine, &mut mmu, (n << 39 & ((1 << 47) - 1)) | 511 << 30);
    }
    read(&mut machine, &mut mmu, 511 << 21);
    mmu.load_paging(&mut machine, VCPU, paging(10));
    let done = read(&mut machine, &mut mmu, 511 << 21);
    assert!(done <= 26 * LARGE_POOL * 512 + 80_000 + FRAMES, "{done}");
}

/// The frame is a table by turns: detached, it may be written through every entry, and attached,
/// through none.
#[test]
fn a_frame_that_all_entries_map_is_attached_again() {
    let (mut machine, mut mmu) =
        one_frame_everywhere(Machine::new(FRAMES, POOL as usize), config(), ALL);
    let link = |machine: &mut Machine, mmu: &mut Mmu, entry: u64| {
        work(machine, |machine| {
            mmu.write_guest(machine, Gfn::new(3).entry(500), &entry.to_le_bytes())
        })
    };
    link(&mut machine, &mut mmu, 9 << 12 | ALL);
    read(&mut machine, &mut mmu, 500 << 21);
    let done = link(&mut machine, &mut mmu, 0);
    assert!(done <= WRITE, "{done}");
    assert_eq!(mmu.counters().detached, 1);
    for gva in (0..(POOL - 8) << 21).step_by(4096) {
        mmu.page_fault(
            &mut machine,
            VCPU,
            Gva::new(gva),
            user_write(),
            &FaultContext::at(Gva::new(gva)),
        );
    }
    let done = link(&mut machine, &mut mmu, 9 << 12 | ALL);
    assert!(done <= WRITE, "{done}");
    let attached = mmu.counters().attached;
    let done = read(&mut machine, &mut mmu, 500 << 21);
    assert_eq!(mmu.counters().attached, attached + 1);
    assert!(done <= PAGE_FAULT, "{done}");
    assert!(done >= ENTRIES, "the guest is not as hostile as it should be: {done}");
    mmu.audit(&machine).unwrap();
}

/// It is a root that is to lie where the guest's CR3 points: nothing maps it while it moves.
#[test]
fn a_frame_that_all_entries_map_becomes_a_loadable_root() {
    let config = config_with(|config| config.loadable_roots = 2);
    let (mut machine, mut mmu) =
        one_frame_everywhere(Machine::identical(FRAMES, POOL as usize + 2), config, ALL & !W);
    mmu.load_paging(&mut machine, VCPU, paging(9));
    let mut offered = false;
    let done = work(&mut machine, |machine| offered = mmu.allow_native_load(machine, VCPU));
    assert!(offered && done <= OFFER_ROOT, "{done}");
    assert!(done >= ENTRIES, "the guest is not as hostile as it should be: {done}");
    mmu.audit(&machine).unwrap();
    for call in [
        |mmu: &mut Mmu| mmu.switched(VCPU, Gfn::new(9)),
        |mmu: &mut Mmu| mmu.withdraw_root(VCPU, Gfn::new(9)),
        |mmu: &mut Mmu| _ = mmu.is_loadable(VCPU, Gfn::new(9)),
    ] {
        assert!(work(&mut machine, |_| call(&mut mmu)) <= QUERY);
    }
    let done = work(&mut machine, |machine| mmu.revoke(machine, Gfn::new(9)..Gfn::new(10)));
    assert!(done <= REVOKE, "{done}");
}

/// The filter changes with the fault that shows that it pays: what was narrow is gone through.
#[test]
fn the_filter_is_changed() {
    const SWITCH: u64 = 2000;
    let config = config_with(|config| config.filter = FilterPolicy::Auto);
    let mut machine = Machine::new(FRAMES, POOL as usize);
    machine.chain();
    (0..256).for_each(|index| machine.poke(4, index, 9 << 12 | P | W | U | A));
    (256..512).for_each(|index| machine.poke(4, index, 9 << 12 | P | U | A));
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let mut most = 0;
    for round in 0..8 {
        for page in 0..256 {
            read(&mut machine, &mut mmu, page << 12);
        }
        for page in 256..260 {
            let done = work(&mut machine, |machine| {
                mmu.page_fault(
                    machine,
                    VCPU,
                    Gva::new(page << 12),
                    user_write(),
                    &FaultContext::at(Gva::new(0)),
                );
            });
            most = most.max(done);
        }
        assert!(mmu.counters().filter_switches > round, "round {round}");
    }
    assert!(most <= SWITCH, "{most}");
    assert!(most >= 64, "the guest is not as hostile as it should be: {most}");
}

#[test]
fn a_frame_that_all_entries_map_is_revoked() {
    let (mut machine, mut mmu) =
        one_frame_everywhere(Machine::new(FRAMES, POOL as usize), config(), ALL);
    let done = work(&mut machine, |machine| mmu.revoke(machine, Gfn::new(9)..Gfn::new(10)));
    assert!(done <= REVOKE, "{done}");
    assert!(done >= ENTRIES, "the guest is not as hostile as it should be: {done}");
}

#[test]
fn everything_is_thrown_away() {
    let (mut machine, mut mmu) =
        one_frame_everywhere(Machine::new(FRAMES, POOL as usize), config(), ALL);
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
    mmu.load_paging(&mut machine, VCPU, paging(1));
    for _ in 0..2 {
        (0..POOL - 6).for_each(|n| {
            read(&mut machine, &mut mmu, n << 30);
        });
    }
    let done = work(&mut machine, |machine| mmu.release_frame(machine, Gfn::new(4)));
    assert!(done <= RELEASE, "{done}");
    assert!(done >= ENTRIES / 4, "the guest is not as hostile as it should be: {done}");
    let done = work(&mut machine, |machine| mmu.flush_guest(machine));
    assert!(done <= FLUSH, "{done}");
}

/// Eight frames that are tables of every level of each other, and unsync: a fault that may add
/// references to them brings all their shadows up to date before.
#[test]
fn all_shadows_are_of_unsync_frames() {
    const LOOSE: u64 = 8;
    let mut machine = Machine::new(FRAMES, POOL as usize);
    for table in 1..=LOOSE {
        (0..512)
            .for_each(|index| machine.poke(table, index, (1 + index as u64 % LOOSE) << 12 | ALL));
    }
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut most = 0;
    for round in 0..400 {
        // Those that have shadows.
        if round % 50 < 8 {
            mmu.release_frame(&mut machine, Gfn::new(1 + round % LOOSE));
        }
        let gva = (0..4).fold(0, |gva, _| gva << 9 | random.below(LOOSE)) << 12;
        if round % 2 == 0 {
            // Written freely: what is refreshed has changed.
            let table = 1 + random.below(LOOSE);
            (0..512).for_each(|index| {
                machine.poke(table, index, (1 + random.below(LOOSE)) << 12 | ALL)
            });
        }
        most = most.max(read(&mut machine, &mut mmu, gva));
    }
    assert!(mmu.has_unsync_tables());
    assert!(most <= PAGE_FAULT, "{most}");
    assert!(most >= 2 * ENTRIES, "the guest is not as hostile as it should be: {most}");
    let done = work(&mut machine, |machine| mmu.invlpg(machine, VCPU, Gva::new(0)));
    assert!(done <= FLUSH, "{done}");
    mmu.audit(&machine).unwrap();
}

/// The marks in a table are followed in all its shadows.
#[test]
fn entries_are_marked_ahead_in_a_table_of_every_level_and_role() {
    const TABLE: u64 = 4;
    let config = config_with(|config| config.filter = FilterPolicy::Auto);
    let mut machine = Machine::new(FRAMES, POOL as usize);
    machine.chain();
    // The table is also the one above itself, the one above that, and a root.
    for (table, index) in [(1, 1), (2, 1), (3, 1), (2, 2), (1, 2)] {
        machine.poke(table, index, TABLE << 12 | ALL);
    }
    (1..512).for_each(|index| machine.poke(TABLE, index, 9 << 12 | P | U));
    machine.poke(TABLE, 0, TABLE << 12 | ALL);
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    for wp in [false, true] {
        for nxe in [true, false] {
            mmu.load_paging(&mut machine, VCPU, Paging { wp, nxe, ..paging(1) });
            for gva in [1 << 39, 1 << 30, 1 << 21, 0, 2 << 30] {
                read(&mut machine, &mut mmu, gva);
            }
        }
    }
    let shadows = mmu.live_pages();
    let mut most = 0;
    for page in 1..=3 {
        let done = work(&mut machine, |machine| {
            mmu.page_fault(
                machine,
                VCPU,
                Gva::new(page << 12),
                user_write(),
                &FaultContext::at(Gva::new(0)),
            );
        });
        most = most.max(done);
    }
    assert!(machine.peek(TABLE, 10).accessed(), "marked ahead");
    assert!(most <= 1024 * u64::from(shadows) + 200, "{most}");
    assert!(most >= 1000, "the guest is not as hostile as it should be: {most}");
    mmu.audit(&machine).unwrap();
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

/// Every other table that is written is detached.
struct Alternate(u32);

impl WritePolicy for Alternate {
    fn answer(&mut self, _: &TableWrite) -> Answer {
        self.0 += 1;
        if self.0 % 2 == 0 { Answer::Emulate } else { Answer::Detach }
    }
}

#[test]
fn no_call_exceeds_its_bound_whatever_the_guest_does() {
    let mut machine = Machine::identical(FRAMES, POOL as usize);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // Tables of every level that lead to each other, themselves and the identity map.
    for table in 1..64 {
        for index in 0..512 {
            let large = if random.below(32) == 0 { bits::PS | 512 << 12 } else { 0 };
            let frame = if large == 0 { 1 + random.below(64) } else { 0 };
            let rights = [ALL, ALL, ALL & !W, ALL & !D][random.below(4) as usize];
            machine.poke(table, index, frame << 12 | large | rights);
        }
    }
    let config = config_with(|config| {
        config.filter = FilterPolicy::Auto;
        config.loadable_roots = 4;
    });
    let mut mmu = Mmu::with_policy(config, &mut machine, Alternate(0)).unwrap();
    let mut most = [0; 10];
    let (mut offered, mut switched, mut most_looked) = (0, 0, 0);
    for _ in 0..20_000 {
        // Often the same tables, so that what was detached is attached.
        let spread = [6, 512][random.below(2) as usize];
        let gva = Gva::new(
            (0..4).fold(0, |gva, _| gva << 9 | random.below(spread)) << 12 & ((1 << 47) - 1),
        );
        let gfn = Gfn::new(1 + random.below(64));
        let kind = [AccessKind::Read, AccessKind::Write][random.below(2) as usize];
        let access = Access { kind, user: random.below(2) == 0, smap_override: false };
        let choice = random.below(128);
        let (which, bound) = match choice {
            0..80 => (0, PAGE_FAULT),
            80..92 => (1, LOAD_PAGING),
            92..104 => (2, WRITE),
            104..107 => (7, OFFER_ROOT),
            107..109 => (9, OFFER_OTHER_ROOT),
            109..114 => (8, QUERY),
            114..119 => (3, FLUSH),
            119..123 => (4, RELEASE),
            123..127 => (5, REVOKE),
            _ => (6, ZAP_ALL),
        };
        let (one, other) = (random.below(512), random.below(8));
        let done = work(&mut machine, |machine| match which {
            0 => {
                let context = FaultContext::at(Gva::new(other)).with_back_to_back(one % 4 != 0);
                mmu.page_fault(machine, VCPU, gva, access, &context);
            }
            1 => {
                let mode = if other == 0 && one < 64 { Mode::Off } else { Mode::Long4 };
                // Mostly as before, so that roots stay loadable.
                let wp = one % 16 != 0;
                let paging = Paging { mode, wp, nxe: one % 15 != 0, ..paging(gfn.raw()) };
                mmu.load_paging(machine, VCPU, paging);
            }
            2 => {
                let entry = (1 + one % 64) << 12 | ALL;
                let gpa = Gpa::new(gfn.entry(one as usize).raw() + other.min(4));
                mmu.write_guest(machine, gpa, &entry.to_le_bytes());
            }
            3 => mmu.invlpg(machine, VCPU, gva),
            4 => mmu.release_frame(machine, gfn),
            5 => mmu.revoke(machine, gfn..gfn + 1),
            6 => mmu.zap_all(machine),
            7 => offered += u64::from(mmu.allow_native_load(machine, VCPU)),
            9 => offered += u64::from(mmu.allow_native_load_of(machine, VCPU, gfn)),
            _ => {
                let loadable =
                    (1..64).map(Gfn::new).find(|&root| root >= gfn && mmu.is_loadable(VCPU, root));
                match loadable {
                    Some(root) if other == 0 => mmu.withdraw_root(VCPU, root),
                    Some(root) => {
                        mmu.switched(VCPU, root);
                        switched += 1;
                    }
                    None => (),
                }
            }
        });
        assert!(done <= bound, "call {which}: {done} of {bound}");
        most[which] = most[which].max(done);
        let looked = work(&mut machine, |machine| _ = mmu.code(machine, VCPU, gva));
        assert!(looked <= CODE, "{looked}");
        most_looked = most_looked.max(looked);
    }
    mmu.audit(&machine).unwrap();
    assert!(most[..8].iter().chain(&most[9..]).all(|&most| most > 0), "{most:?}");
    let counters = mmu.counters();
    assert!(
        counters.attached > 20 && counters.detached > 20 && counters.roots_moved > 20,
        "{counters:?}"
    );
    assert!(counters.filter_switches > 20, "{counters:?}");
    assert!(offered > 20 && switched > 20, "{offered} {switched}");
    assert!(most_looked > 1, "no walk of the shadow was seen");
    println!(
        "most work in one page fault, load, write, flush, release, revocation, zap of all, offer, query, offer of another: {most:?}"
    );
}
