//! What the shadow alone can answer: where code lies, and what stands on a stack.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::*;
use umbra_mmu::policy::{Answer, CallSite, EmulateReachable, TableWrite, WritePolicy};
use umbra_mmu::{Encodings, FaultContext, FaultOutcome, Mmu};
use umbra_paging::{Access, Features, Gfn, Gva, Hpa, Mode, Paging, bits};

const ALL: u64 = P | W | U | A | D;

#[test]
fn code_is_found_where_the_shadow_maps_it_for_execution() {
    let mut machine = Machine::identical(2048, 64);
    machine.chain();
    machine.poke(4, 0, 9 << 12 | ALL);
    machine.poke(4, 1, 10 << 12 | ALL | bits::NX);
    machine.poke(3, 1, 0x20_0000 | ALL | bits::PS);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let mut code = |machine: &mut Machine, gva: u64| {
        let before = mmu.code(machine, VCPU, Gva::new(gva));
        settle(machine, &mut mmu, gva, Access::user_read());
        (before, mmu.code(machine, VCPU, Gva::new(gva)))
    };
    assert_eq!(code(&mut machine, 0x123), (None, Some(Hpa::new(0x9123))));
    assert_eq!(code(&mut machine, 0x20_4567).1, Some(Hpa::new(0x20_4567)), "a large page");
    assert_eq!(code(&mut machine, 0x1123).1, None, "it may not be executed");
    assert_eq!(mmu.code(&machine, VCPU, Gva::new(0x5123)), None, "it is not present");
}

/// Takes note of the places, and answers as the simplest policy does.
#[derive(Clone, Default)]
struct CallSites(Rc<RefCell<Vec<CallSite>>>);

impl WritePolicy for CallSites {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        self.0.borrow_mut().push(write.site);
        let answer = EmulateReachable.answer(write);
        assert_eq!(answer == Answer::Emulate, write.reachable);
        answer
    }
}

#[test]
fn a_write_to_a_table_is_known_by_the_instruction_and_the_return_address() {
    const RIP: u64 = 0xffff_8000_0000_1000;
    const TABLE: u64 = 0x2000;
    const STACK: u64 = 0x3010;
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 2, 4 << 12 | ALL);
    machine.poke(4, 3, 9 << 12 | ALL);
    // The stack again, in a large page that is mapped by small ones, as there are tables in it.
    machine.poke(3, 1, ALL | bits::PS);
    let places = CallSites::default();
    let mut mmu = Mmu::with_policy(config(), &mut machine, places.clone()).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let mut place_of = |rsp: u64, returns_to: u64, beyond: u64| {
        machine.poke(9, 2, returns_to);
        // What the function has saved, and where its caller returns to.
        machine.poke(9, 3, 0x77);
        machine.poke(9, 9, beyond);
        let context = FaultContext::at(Gva::new(RIP)).with_stack(Gva::new(rsp));
        for gva in [rsp, TABLE].repeat(3) {
            mmu.page_fault(&mut machine, VCPU, Gva::new(gva), Access::user_read(), &context);
        }
        let outcome = mmu.page_fault(&mut machine, VCPU, Gva::new(TABLE), user_write(), &context);
        assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
        places.0.borrow().last().copied().unwrap()
    };
    let two = place_of(STACK, RIP + 0x100, RIP + 0x300);
    assert_ne!(place_of(STACK, RIP + 0x100, RIP + 0x400), two, "another caller of the caller");
    assert_eq!(place_of(STACK, RIP + 0x100, RIP + 0x300), two);
    let single = place_of(STACK, RIP + 0x100, 0);
    assert_eq!(place_of(STACK, RIP + 0x100, RIP & !0xfff), single, "the address of a page");
    let mut place = |rsp, returns_to| place_of(rsp, returns_to, 0);
    let one = place(STACK, RIP + 0x100);
    assert_eq!(place(STACK, RIP + 0x100), one);
    assert_ne!(place(STACK, RIP + 0x200), one);
    let none = place(STACK, 0x1234);
    assert_eq!(place(STACK, 0x5678), none, "no address of code");
    assert_eq!(place(STACK + 1, RIP + 0x100), none, "no stack");
    assert_eq!(place(STACK - 0x3000 + 0x20_9000, RIP + 0x100), one, "through the large page");
}

/// The callers that a write to a page table is known by. The table shows at 0x2000, and the stack
/// in frame 9 at 0x3000.
fn callers(
    (machine, mmu, places): &mut (Machine, Mmu<CallSites>, CallSites),
    rip: u64,
    rsp: u64,
) -> u64 {
    let context = FaultContext::at(Gva::new(rip)).with_stack(Gva::new(rsp));
    for (gva, access) in [(rsp, Access::user_read()), (0x2000, user_write())].repeat(3) {
        mmu.page_fault(machine, VCPU, Gva::new(gva), access, &context);
    }
    places.0.borrow().last().unwrap().callers
}

fn guest(mut machine: Machine, paging: Paging) -> (Machine, Mmu<CallSites>, CallSites) {
    let places = CallSites::default();
    let mut mmu = Mmu::with_policy(config(), &mut machine, places.clone()).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging);
    (machine, mmu, places)
}

#[test]
fn return_addresses_are_the_first_two_of_eight_words() {
    const RIP: u64 = 0xffff_8000_0000_1000;
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 2, 4 << 12 | ALL);
    machine.poke(4, 3, 9 << 12 | ALL);
    let mut guest = guest(machine, paging(1));
    let mut known = |rsp: u64, words: &[(usize, u64)]| {
        (0..512).for_each(|at| guest.0.poke(9, at, 0));
        words.iter().for_each(|&(at, word)| guest.0.poke(9, at, word));
        callers(&mut guest, RIP, rsp)
    };
    let (one, two, three) = (RIP + 0x123, RIP + 0x7fff_0001, RIP + 7);
    let both = one.rotate_left(32) ^ two;
    assert_eq!(known(0x3028, &[(4, three), (5, one), (12, two), (13, three)]), both);
    assert_eq!(known(0x3028, &[(7, one), (8, two), (9, three)]), both);
    assert_eq!(known(0x3028, &[(7, one), (13, two)]), one, "eight words");
    assert_eq!(known(0x3ff0, &[(510, one), (511, two)]), both, "the end of the page");
    assert_eq!(known(0x3028, &[(5, RIP - 0x2000), (6, RIP + (1 << 31)), (7, RIP)]), 0, "others");
}

#[test]
fn a_32_bit_guests_return_addresses_are_words_of_4_bytes() {
    const RIP: u64 = 0xc012_3000;
    const ONE: u32 = 0xc012_3456;
    const TWO: u32 = 0xc0ff_0001;
    const THREE: u32 = 0xc000_0004;
    let mut machine = Machine::new(2048, 64);
    machine.poke32(2, 0, 3 << 12 | ALL as u32);
    machine.poke32(3, 2, 3 << 12 | ALL as u32);
    machine.poke32(3, 3, 9 << 12 | ALL as u32);
    let paging = Paging { mode: Mode::Legacy32 { pse: false }, nxe: false, ..paging(2) };
    let mut guest = guest(machine, paging);
    let mut known = |rsp: u64, words: &[(usize, u32)]| {
        (0..1024).for_each(|at| guest.0.poke32(9, at, 0));
        words.iter().for_each(|&(at, word)| guest.0.poke32(9, at, word));
        callers(&mut guest, RIP, rsp)
    };
    let both = u64::from(ONE) << 32 | u64::from(TWO);
    assert_eq!(known(0x3010, &[(3, THREE), (4, ONE), (7, TWO), (8, THREE)]), both);
    assert_eq!(known(0x3014, &[(5, ONE), (20, TWO), (21, THREE)]), both, "16 words");
    assert_eq!(known(0x3014, &[(5, ONE), (21, TWO)]), u64::from(ONE), "and no more");
    assert_eq!(known(0x3ff8, &[(1022, ONE), (1023, TWO)]), both, "the end of the page");
    let data = [(4, 0xc112_3456), (5, 0xc012_3000), (6, 0x0012_3456), (7, ONE)];
    assert_eq!(known(0x3010, &data), u64::from(ONE), "other addresses");
    assert_eq!(known(0x3012, &[(4, ONE), (5, TWO)]), 0, "no stack");
}

#[test]
fn the_simplest_policy_asks_for_no_place() {
    let write = TableWrite::new(VCPU, Gfn::new(7).entry(0));
    assert!(!EmulateReachable.needs_site(&write));
    assert!(CallSites::default().needs_site(&write), "a policy that says nothing is told");
}

/// What is remembered of a walk that ended above the lowest level does not outlive the entry there.
#[test]
fn a_walk_that_ended_above_is_not_remembered_past_a_link() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(3, 1, 512 << 12 | bits::PS | ALL);
    machine.poke(3, 2, 5 << 12 | ALL);
    machine.poke(5, 0, 9 << 12 | ALL);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let gva = 1u64 << 21;
    // Built already: nothing but the link changes later.
    settle(&mut machine, &mut mmu, 2 << 21, Access::user_read());
    settle(&mut machine, &mut mmu, gva, Access::user_read());
    let large = mmu.code(&machine, VCPU, Gva::new(gva)).unwrap();
    store(&mut machine, &mut mmu, 3, 1, 5 << 12 | ALL);
    settle(&mut machine, &mut mmu, gva, Access::user_read());
    let small = mmu.code(&machine, VCPU, Gva::new(gva)).unwrap();
    assert_eq!(small.raw() as i64 - large.raw() as i64, (9 - 512) * 4096);
}

/// Without the walk of the shadow the guest's tables are walked, and say the same.
#[test]
fn what_the_shadow_tells_is_what_the_guests_tables_tell() {
    let told = |shadow_walk| {
        let mut machine = Machine::new(2048, 64);
        machine.chain();
        machine.poke(4, 0, 4 << 12 | ALL);
        machine.poke(4, 1, 0xfee00 << 12 | ALL);
        let mut mmu =
            Mmu::new(config_with(|config| config.shadow_walk = shadow_walk), &mut machine).unwrap();
        mmu.load_paging(&mut machine, VCPU, paging(1));
        // What is known of devices is of the map as it has become.
        mmu.revoke(&mut machine, Gfn::new(100)..Gfn::new(101));
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        fault(&mut machine, &mut mmu, 0x1000, Access::user_read());
        let mut exit = |gva, access| {
            machine.work.set(0);
            let outcome = exit_at(&mut machine, &mut mmu, 0x1234, gva, access);
            (outcome, machine.work.get())
        };
        let (write, device) = (exit(8, user_write()), exit(0x1008, Access::user_read()));
        let device_write = exit(0x1008, user_write());
        assert_eq!(device_write.0, device.0);
        assert!(
            matches!(write.0, FaultOutcome::TableWrite { gpa, .. } if gpa.raw() == 0x4008),
            "{write:?}"
        );
        assert!(
            matches!(device.0, FaultOutcome::Mmio { gpa } if gpa.raw() == 0xfee0_0008),
            "{device:?}"
        );
        [write.1, device.1, device_write.1]
    };
    for (with, without) in told(true).into_iter().zip(told(false)) {
        assert!(
            with < without,
            "{with} calls of the embedder, and {without} without the walk of the shadow"
        );
    }
}

/// A page of the identity map covers 2 MiB where a GiB is mapped whole.
#[test]
fn a_stack_in_a_page_of_one_gib_is_read() {
    const RIP: u64 = 0xffff_8000_0000_1000;
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 2, 4 << 12 | ALL);
    machine.poke(2, 1, ALL | bits::PS);
    machine.poke(521, 2, RIP + 0x100);
    let places = CallSites::default();
    let config = config_with(|config| config.features = Features::new(40, true));
    let mut mmu = Mmu::with_policy(config, &mut machine, places.clone()).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let mut guest = (machine, mmu, places);
    assert_eq!(callers(&mut guest, RIP, (1 << 30) + (521 << 12) + 16), RIP + 0x100);
}

#[test]
fn the_table_in_which_a_walk_ends_is_remembered() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 5, 100 << 12 | ALL);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0x5000, Access::user_read());
    let mut entries_read = || {
        let before = machine.work.get();
        assert!(mmu.code(&machine, VCPU, Gva::new(0x5000)).is_some());
        machine.work.get() - before
    };
    assert_eq!([entries_read(), entries_read()], [4, 1]);
}

/// Neither of two addresses that differ in their uppermost bits only.
#[test]
fn what_is_remembered_of_one_address_is_not_said_of_another() {
    const HIGH: u64 = 1 << 43;
    let mut machine = Machine::new(256, 64);
    machine.chain();
    machine.holes.extend([100, 101]);
    machine.poke(4, 5, 100 << 12 | ALL);
    machine.poke(1, 16, 11 << 12 | ALL);
    (11..13).for_each(|table| machine.poke(table, 0, (table + 1) << 12 | ALL));
    machine.poke(13, 5, 101 << 12 | ALL);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    for (gva, hole) in [(0x5000, 100), (HIGH | 0x5000, 101)].repeat(2) {
        let outcome = fault(&mut machine, &mut mmu, gva, Access::user_read());
        assert_eq!(outcome, FaultOutcome::Mmio { gpa: Gfn::new(hole).base() }, "{gva:#x}");
    }
}

/// A write to the table in frame 4 at an address that reads it, of a guest that has so prepared the
/// machine.
fn write_to_table(
    paging: Paging,
    gva: u64,
    access: Access,
    prepare: impl FnOnce(&mut Machine),
) -> (Machine, FaultOutcome) {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    prepare(&mut machine);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging);
    for gva in [0, gva] {
        settle(&mut machine, &mut mmu, gva, Access::supervisor_read());
    }
    let outcome = fault(&mut machine, &mut mmu, gva, access);
    (machine, outcome)
}

#[test]
fn a_write_to_a_table_through_a_clean_page_sets_dirty() {
    let (machine, outcome) = write_to_table(paging(1), 0x5000, user_write(), |machine| {
        machine.poke(4, 0, 100 << 12 | ALL);
        machine.poke(4, 5, 4 << 12 | ALL & !D);
    });
    assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
    assert!(machine.peek(4, 5).dirty());
}

/// The identity page that maps its frames knows nothing of that.
#[test]
fn a_write_to_a_table_through_a_clean_large_page_sets_dirty() {
    for wp in [true, false] {
        let paging = Paging { wp, ..paging(1) };
        let write = supervisor_write();
        let (machine, outcome) = write_to_table(paging, 0x20_4000, write, |machine| {
            machine.poke(4, 0, 100 << 12 | ALL);
            machine.poke(3, 1, ALL & !D | bits::PS);
        });
        assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
        assert!(machine.peek(3, 1).dirty(), "CR0.WP {wp}");
    }
}

#[test]
fn a_write_to_a_table_that_the_guest_refuses_is_its_fault() {
    for (large, rights) in [(false, P | W | A | D), (true, P | W | A | D), (true, P | U | A | D)] {
        let gva = if large { 0x20_4000 } else { 0x5000 };
        let (_, outcome) = write_to_table(paging(1), gva, user_write(), |machine| {
            machine.poke(4, 0, 100 << 12 | ALL);
            machine.poke(4, 5, 4 << 12 | rights);
            machine.poke(3, 1, rights | bits::PS);
        });
        assert!(matches!(outcome, FaultOutcome::Guest(_)), "{rights:#x}: {outcome:?}");
    }
}

/// Only an unsync one may keep what the fault drops.
#[test]
fn the_shadow_is_not_walked_for_a_fault_of_the_guest_while_no_table_is_unsync() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 0, 100 << 12 | ALL);
    let config = config_with(|config| {
        config.encodings = Encodings::not_present(FEATURES.maxphyaddr);
        config.shadow_walk = false;
    });
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let calls = |machine: &mut Machine, mmu: &mut Mmu| {
        let before = machine.work.get();
        let outcome = exit_at(machine, mmu, 0, 0x7000, Access::user_read());
        assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
        machine.work.get() - before
    };
    let unlinked = calls(&mut machine, &mut mmu);
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    assert_eq!(calls(&mut machine, &mut mmu), unlinked);
}
