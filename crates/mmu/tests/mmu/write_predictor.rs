//! What writes to tables cost in exits: the MMU with its predictor, and a guest that writes and
//! uses tables.

use crate::common::*;
use umbra_mmu::{FaultContext, FaultOutcome, GuestFaults, Mmu, Work};
use umbra_paging::{Access, Gva, Mode, Paging};

const ALL: u64 = P | W | U | A | D;
/// Where the page tables 5, 6 and 7 show to the kernel, one page each: from this entry of table 4
/// on.
const SHOWN: u64 = 64;
/// The page tables 5, 6 and 7 translate 2 MiB each from here on.
const TABLES: [u64; 3] = [5, 6, 7];

struct Guest {
    machine: Machine,
    mmu: Mmu,
    exits: u32,
    bursts: u64,
}

impl Guest {
    fn new(eager: bool) -> Guest {
        let mut machine = Machine::new(2048, 64);
        machine.chain();
        for (n, table) in TABLES.into_iter().enumerate() {
            machine.poke(3, 1 + n, table << 12 | ALL);
            machine.poke(4, SHOWN as usize + n, table << 12 | ALL & !U);
            machine.poke(table, 0, 100 << 12 | ALL);
        }
        // A root may be loaded without an exit, so unsync is not tried.
        let config = config_with(|config| (config.eager, config.loadable_roots) = (eager, 1));
        let mut mmu = Mmu::new(config, &mut machine).unwrap();
        mmu.load_paging(&mut machine, VCPU, paging(1));
        let mut guest = Guest { machine, mmu, exits: 0, bursts: 0 };
        (0..3).for_each(|n| guest.read(n, 0));
        settle(&mut guest.machine, &mut guest.mmu, SHOWN << 12, Access::supervisor_read());
        guest
    }

    /// Accesses what entry `index` of page table n maps.
    fn read(&mut self, n: usize, index: u64) {
        let gva = (1 + n as u64) << 21 | index << 12;
        while !matches!(hardware(&self.machine, &self.mmu, gva), Seen::Page { .. }) {
            let outcome =
                fault_by(&mut self.machine, &mut self.mmu, 0x9000, gva, Access::user_read());
            assert!(matches!(outcome, FaultOutcome::Resume(_)), "{outcome:?}");
            self.exits += 1;
        }
    }

    /// Sets an entry of page table n by the instruction at `rip`.
    fn write(&mut self, rip: u64, back_to_back: bool, n: usize, index: u64, entry: u64) {
        let gva = ((SHOWN + n as u64) << 12) | (index * 8);
        loop {
            match hardware(&self.machine, &self.mmu, gva) {
                Seen::Page { write: true, .. } => {
                    return self.machine.poke(TABLES[n], index as usize, entry);
                }
                Seen::Page { .. } | Seen::Reserved => (),
                Seen::NotPresent => panic!("the guest's own mapping is gone"),
            }
            self.exits += 1;
            assert!(self.exits < 100_000, "no progress");
            let context = FaultContext::at(Gva::new(rip)).with_back_to_back(back_to_back);
            let outcome = self.mmu.page_fault(
                &mut self.machine,
                VCPU,
                Gva::new(gva),
                supervisor_write(),
                &context,
            );
            self.mmu.audit(&self.machine).unwrap();
            if let FaultOutcome::TableWrite { .. } = outcome {
                return store(&mut self.machine, &mut self.mmu, TABLES[n], index as usize, entry);
            }
            assert!(
                matches!(outcome, FaultOutcome::Resume(Work::Detach | Work::Install | Work::Link)),
                "{outcome:?}"
            );
        }
    }

    fn exits(&mut self, what: impl FnOnce(&mut Guest)) -> u32 {
        self.exits = 0;
        what(self);
        self.exits
    }

    /// Bursts until the place is known for them.
    fn learn(&mut self, rip: u64) {
        for n in 0..6 {
            self.burst(rip, n % 3, 8, 16);
        }
    }

    /// `length` writes to page table n from entry `first` on, one back_to_back after the other;
    /// then all are used.
    fn burst(&mut self, rip: u64, n: usize, first: u64, length: u64) -> u32 {
        // Other pages each time.
        self.bursts += 1;
        self.exits(|guest| {
            let pages = first..first + length;
            pages.clone().for_each(|index| {
                guest.write(
                    rip,
                    index > first,
                    n,
                    index,
                    (200 + index + 512 * (guest.bursts % 2)) << 12 | ALL,
                )
            });
            pages.for_each(|index| guest.read(n, index));
        })
    }
}

#[test]
fn a_burst_costs_two_exits_once_it_is_known() {
    let mut guest = Guest::new(true);
    let costs: [u32; 8] =
        core::array::from_fn(|n| guest.burst(0x1000, n % 3, 8 + 16 * n as u64, 16));
    // At first two writes are emulated. Then: the first write detaches, the first use attaches and
    // fills.
    assert!(costs[0] <= 4 && costs[3..] == [2; 5], "{costs:?}");
    // From another place in the code all begins anew; this one is remembered.
    assert!(guest.burst(0x2000, 0, 300, 16) > 2);
    assert_eq!(guest.burst(0x1000, 1, 300, 16), 2);
    assert_eq!(guest.burst(0x1000, 1, 400, 100), 2, "whatever its length");
}

#[test]
fn a_lone_write_costs_one_exit() {
    let mut guest = Guest::new(true);
    for round in 0..40u64 {
        for (rip, back_to_back) in [(0x1000, false), (0x1100, true)] {
            let n = (round % 3) as usize;
            let cost = guest.exits(|guest| {
                guest.write(rip, back_to_back, n, 8 + round, (200 + round) << 12 | ALL);
                guest.read(n, 8 + round);
            });
            assert_eq!(cost, 1, "round {round}");
        }
    }
    assert_eq!(guest.mmu.counters().detached, 0);
}

/// As Linux changes an entry: cleared, then set.
#[test]
fn pairs_of_writes_cost_two_exits() {
    let mut guest = Guest::new(true);
    for round in 0..40u64 {
        let n = (round % 3) as usize;
        let cost = guest.exits(|guest| {
            guest.write(0x1000, false, n, 8, 0);
            guest.write(0x1100, true, n, 8, (200 + round) << 12 | ALL);
            guest.read(n, 8);
        });
        assert_eq!(cost, 2, "round {round}");
    }
}

/// A place that wrote in bursts writes single entries now: the detaches that do not pay become
/// rare.
#[test]
fn a_wrong_guess_costs_an_exit_and_is_corrected() {
    let mut guest = Guest::new(true);
    guest.learn(0x1000);
    let cost = guest.exits(|guest| {
        for round in 0..100u64 {
            let n = (round % 3) as usize;
            guest.write(0x1000, false, n, 40 + round, (200 + round) << 12 | ALL);
            guest.read(n, 40 + round);
        }
    });
    assert!((100..=106).contains(&cost), "{cost}");
}

/// What is not filled when a table is attached costs an exit for each page.
#[test]
fn filling_at_once_spares_an_exit_for_each_page() {
    let [eager, lazy] = [true, false].map(|eager| {
        let mut guest = Guest::new(eager);
        (0..6).map(|n| guest.burst(0x1000, n % 3, 8 + 40 * n as u64, 32)).last()
    });
    assert_eq!(eager, Some(2));
    assert!(lazy > Some(30), "{lazy:?}");
}

/// A page table that is written through itself, from code and with a stack in the page that it
/// maps: whatever the predictor says, the write comes to an end (I6).
#[test]
fn a_table_that_maps_the_write_to_it_is_not_detached_again_and_again() {
    let mut guest = Guest::new(true);
    guest.learn(0x1000);
    // Page table 4 maps itself where frame 4 shows.
    guest.machine.poke(4, SHOWN as usize + 3, 4 << 12 | ALL & !U);
    guest.mmu.zap_all(&mut guest.machine);
    for index in 300..316u64 {
        let gva = ((SHOWN + 3) << 12) | (index * 8);
        let mut exits = 0;
        loop {
            let context = FaultContext::at(Gva::new(0x1000)).with_back_to_back(index > 300);
            let outcome = guest.mmu.page_fault(
                &mut guest.machine,
                VCPU,
                Gva::new(gva),
                supervisor_write(),
                &context,
            );
            guest.mmu.audit(&guest.machine).unwrap();
            exits += 1;
            assert!(exits < 8, "{outcome:?}");
            if let FaultOutcome::TableWrite { .. } = outcome {
                break store(
                    &mut guest.machine,
                    &mut guest.mmu,
                    4,
                    index as usize,
                    300 << 12 | ALL,
                );
            }
        }
        settle(&mut guest.machine, &mut guest.mmu, index << 12, user_write());
    }
}

/// A page table of 32-bit paging whose entry is cleared, set and flushed, again and again: with the
/// page-fault filter on, too, one exit each time.
#[test]
fn a_32_bit_guest_pays_for_the_flush_alone() {
    const SHOWN: u64 = 5 << 22 | 1 << 12;
    const CHANGED: u64 = 5 << 22 | 7 << 12;
    let shown = Seen::Page { gfn: 3, user: false, write: true };
    let mut machine = Machine::new(2048, 96);
    machine.poke32(2, 5, 0x3067);
    machine.poke32(3, 1, 0x3063);
    machine.poke32(3, 7, 0x9067);
    let mut mmu = Mmu::new(config_with(|config| config.loadable_roots = 4), &mut machine).unwrap();
    let mode = Mode::Legacy32 { pse: false };
    mmu.load_paging(&mut machine, VCPU, Paging { mode, nxe: false, ..paging(2) });
    settle(&mut machine, &mut mmu, CHANGED, Access::supervisor_read());
    settle(&mut machine, &mut mmu, SHOWN, Access::supervisor_read());
    let mut exits = 0;
    for n in 0..40 {
        for (rip, back_to_back, entry) in
            [(0x1000, false, 0), (0x2000, true, 0x9067 + n % 2 * 0x1000)]
        {
            if hardware(&machine, &mmu, SHOWN) == shown {
                machine.poke32(3, 7, entry);
                continue;
            }
            exits += 1;
            let context = FaultContext::at(Gva::new(rip)).with_back_to_back(back_to_back);
            let at = Gva::new(SHOWN + 7 * 4);
            match mmu.page_fault(&mut machine, VCPU, at, supervisor_write(), &context) {
                FaultOutcome::TableWrite { .. } => store32(&mut machine, &mut mmu, 3, 7, entry),
                outcome => {
                    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
                    machine.poke32(3, 7, entry);
                }
            }
        }
        if mmu.entry_state(&machine, VCPU).flushes_exit {
            exits += 1;
            mmu.invlpg(&mut machine, VCPU, Gva::new(CHANGED));
        }
    }
    assert!((40..=44).contains(&exits), "{exits}");
    assert_eq!(mmu.guest_faults(), GuestFaults::Present);
}
