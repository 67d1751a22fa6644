//! Tables that are attached again are looked at only where they have changed.

use crate::common::*;
use umbra_mmu::{FaultOutcome, FilterPolicy, GuestFaults, Mmu, Work};
use umbra_paging::{Access, Gfn, bits};

const ALL: u64 = P | W | U | A | D;
const TABLE: u64 = 5;
/// Where the table shows to the kernel.
const SHOWN: u64 = 64 << 12;
/// What the table translates starts here.
const START: u64 = 1 << 21;

struct Guest {
    machine: Machine,
    mmu: Mmu<Detach>,
    rip: u64,
}

impl Guest {
    fn new() -> Guest {
        let mut machine = Machine::new(2048, 64);
        machine.chain();
        machine.poke(3, 1, TABLE << 12 | ALL);
        machine.poke(4, 64, TABLE << 12 | ALL & !U);
        (0..8).for_each(|n| machine.poke(TABLE, n * 16, (100 + n as u64) << 12 | ALL));
        let mut mmu = Mmu::with_policy(config(), &mut machine, Detach).unwrap();
        mmu.load_paging(&mut machine, VCPU, paging(1));
        let mut guest = Guest { machine, mmu, rip: 0x1000 };
        guest.uses(0);
        guest
    }

    /// Accesses what this entry of the table maps: the frame.
    fn uses(&mut self, index: u64) -> u64 {
        let gva = START | index << 12;
        let access = Access::user_read();
        for _ in 0..4 {
            if let Seen::Page { gfn, .. } = hardware(&self.machine, &self.mmu, gva) {
                return gfn;
            }
            self.rip += 1;
            exit_at(&mut self.machine, &mut self.mmu, self.rip, gva, access);
        }
        panic!("no progress at {gva:#x}");
    }

    fn detach(&mut self) {
        self.rip += 1;
        for _ in 0..4 {
            let outcome =
                exit_at(&mut self.machine, &mut self.mmu, self.rip, SHOWN, supervisor_write());
            if outcome == FaultOutcome::Resume(Work::Detach) {
                return;
            }
        }
        panic!("the table is not detached");
    }

    fn emulates(&mut self, index: usize, entry: u64) {
        self.mmu.write_guest(&mut self.machine, Gfn::new(TABLE).entry(index), &entry.to_le_bytes());
    }
}

#[test]
fn a_write_to_a_detached_table_touches_no_shadow() {
    let mut guest = Guest::new();
    guest.detach();
    guest.machine.work.set(0);
    guest.emulates(0, 200 << 12 | ALL);
    assert_eq!(guest.machine.work.get(), 2, "what is behind the frame, and the write");
    assert_eq!(guest.uses(0), 200);
}

#[test]
fn what_a_detached_table_was_changed_to_is_seen() {
    let mut guest = Guest::new();
    for round in 0..4 {
        guest.detach();
        for n in 0..8 {
            guest.machine.poke(TABLE, n * 16, (200 + 10 * round + n as u64) << 12 | ALL);
            guest.machine.poke(TABLE, n * 16 + 1, if round % 2 == 0 { 300 << 12 | ALL } else { 0 });
        }
        for n in 0..8 {
            assert_eq!(guest.uses(n * 16), 200 + 10 * round + n);
        }
        guest.mmu.audit(&guest.machine).unwrap();
    }
}

#[test]
fn what_has_not_changed_is_not_looked_at_again() {
    let mut guest = Guest::new();
    let asked = |guest: &mut Guest| {
        guest.detach();
        guest.machine.work.set(0);
        guest.uses(0);
        guest.machine.work.get()
    };
    // The first attach makes the copy.
    let (first, second) = (asked(&mut guest), asked(&mut guest));
    assert!(second + 8 * 2 <= first, "{first} {second}");
    guest.mmu.audit(&guest.machine).unwrap();
}

/// The guest's entry is as it was when it was copied, but its shadow was made from another value
/// meanwhile.
#[test]
fn a_copy_does_not_outlive_a_store_to_the_shadow() {
    let mut guest = Guest::new();
    guest.detach();
    guest.uses(0);
    guest.emulates(0, 400 << 12 | ALL);
    assert_eq!(guest.uses(0), 400);
    guest.detach();
    guest.machine.poke(TABLE, 0, 100 << 12 | ALL);
    // By another entry: the one at fault is looked at in any case.
    guest.uses(16);
    assert_eq!(guest.uses(0), 100);
    guest.mmu.audit(&guest.machine).unwrap();
}

#[test]
fn more_tables_than_there_are_copies_are_followed_all_the_same() {
    let mut machine = Machine::new(2048, 256);
    machine.chain();
    const TABLES: u64 = 40;
    for n in 0..TABLES {
        machine.poke(3, 1 + n as usize, (16 + n) << 12 | ALL);
        machine.poke(4, 64 + n as usize, (16 + n) << 12 | ALL & !U);
        (0..4).for_each(|index| machine.poke(16 + n, index * 16, (100 + n) << 12 | ALL));
    }
    let mut mmu = Mmu::with_policy(config(), &mut machine, Detach).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    for round in 0..3 {
        for n in 0..TABLES {
            settle_with(&mut machine, &mut mmu, (1 + n) << 21, Access::user_read());
            settle_with(&mut machine, &mut mmu, (64 + n) << 12, supervisor_write());
            machine.poke(16 + n, 0, (200 + 50 * round + n) << 12 | ALL);
        }
    }
    for n in 0..TABLES {
        settle_with(&mut machine, &mut mmu, (1 + n) << 21, Access::user_read());
        let seen = hardware(&machine, &mmu, (1 + n) << 21);
        assert!(matches!(seen, Seen::Page { gfn, .. } if gfn == 300 + n), "{seen:?}");
    }
    mmu.audit(&machine).unwrap();
}

/// As `settle`, one instruction for each address.
fn settle_with(machine: &mut Machine, mmu: &mut Mmu<Detach>, gva: u64, access: Access) {
    for _ in 0..8 {
        if let Seen::Page { write, .. } = hardware(machine, mmu, gva)
            && (write || !access.is_write())
        {
            return;
        }
        exit_at(machine, mmu, gva, gva, access);
    }
    panic!("no progress at {gva:#x}");
}

/// I4: a link that was narrow is so still if the guest's entry says something else only while its
/// table is detached.
#[test]
fn a_narrow_link_in_a_detached_table_does_not_come_back_by_its_copy() {
    const TABLE: u64 = 5;
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(2, 1, TABLE << 12 | ALL);
    machine.poke(TABLE, 0, 6 << 12 | ALL);
    machine.poke(6, 0, 100 << 12 | ALL);
    machine.poke(TABLE, 16, bits::PS | ALL);
    machine.poke(4, 2, 102 << 12 | ALL & !W);
    machine.poke(4, 64, TABLE << 12 | ALL & !U);
    let mut mmu = Mmu::with_policy(
        config_with(|config| config.filter = FilterPolicy::Auto),
        &mut machine,
        Detach,
    )
    .unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let mut rip = 0x1000;
    let mut uses = |machine: &mut Machine, mmu: &mut Mmu<Detach>, gva: u64| {
        for _ in 0..6 {
            if let Seen::Page { .. } = hardware(machine, mmu, gva) {
                return;
            }
            rip += 1;
            exit_at(machine, mmu, rip, gva, Access::user_read());
        }
        panic!("{gva:#x}");
    };
    let small = 1 << 30;
    let large = 1 << 30 | 16 << 21 | 7 << 12;
    let mut detach_rip = 0x9000;
    let mut detach = |machine: &mut Machine, mmu: &mut Mmu<Detach>| {
        detach_rip += 1;
        for _ in 0..4 {
            if exit_at(machine, mmu, detach_rip, 64 << 12, supervisor_write())
                == FaultOutcome::Resume(Work::Detach)
            {
                return;
            }
        }
        panic!("not detached");
    };
    uses(&mut machine, &mut mmu, small);
    uses(&mut machine, &mut mmu, large);
    detach(&mut machine, &mut mmu);
    uses(&mut machine, &mut mmu, small);
    assert!(matches!(hardware(&machine, &mmu, large), Seen::Page { .. }));
    detach(&mut machine, &mut mmu);
    machine.poke(TABLE, 16, bits::PS | ALL & !W);
    exit_at(&mut machine, &mut mmu, 0x2, 2 << 12, Access::user_read());
    while mmu.guest_faults() != GuestFaults::User {
        let outcome = exit_at(&mut machine, &mut mmu, 0x2, 2 << 12, user_write());
        assert!(matches!(outcome, FaultOutcome::Guest(_)));
    }
    mmu.audit(&machine).unwrap();
    machine.poke(TABLE, 16, bits::PS | ALL);
    uses(&mut machine, &mut mmu, small);
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    mmu.audit(&machine).unwrap();
}
