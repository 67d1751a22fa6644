//! The order in which things are done, seen by another vCPU: it may write through a translation that is about to be
//! flushed, and read entries while what they follow is written.

use crate::common::*;
use umbra_mmu::{Mmu, Origin};
use umbra_paging::{Access, Gfn, Gva};

fn start() -> (Machine, Mmu) {
    let mut machine = Machine::new(64, 64);
    machine.chain();
    machine.poke(4, 0, 0x9000 | P | W | U | A | D);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, 0, paging(1));
    (machine, mmu)
}

/// A page table is shadowed while another vCPU still stores to it: entry 5 becomes present just before the flush
/// that ends such stores. What the hardware sees of it then.
fn attach(mut machine: Machine, mut mmu: Mmu) -> Seen {
    machine.poke(3, 1, 20 << 12 | P | W | U | A);
    mmu.page_fault(&mut machine, 0, Gva::new(0x1000), Access::user_read(), &Origin::at(Gva::new(0)));
    machine.before_flush = Some((20, 5, 0xa000 | P | U | A));
    mmu.page_fault(&mut machine, 0, Gva::new(0x20_0000), Access::user_read(), &Origin::at(Gva::new(0)));
    assert!(machine.before_flush.is_none(), "protection is followed by a flush");
    hardware(&machine, &mmu, 0x20_5000)
}

/// Whether any shadow entry still translates to frame 9 at the moment when the guest's entry for it is replaced.
fn translated_while_written(mut machine: Machine, mut mmu: Mmu) -> bool {
    mmu.page_fault(&mut machine, 0, Gva::new(0), Access::user_read(), &Origin::at(Gva::new(0)));
    let Seen::Page { gfn: 9, .. } = hardware(&machine, &mmu, 0) else { panic!("not mapped") };
    let old = machine.mapping_of(9).expect("some entry maps the frame");
    mmu.write_guest(&mut machine, Gfn::new(4).entry(0), &(0xa000 | P | W | U | A | D).to_le_bytes());
    machine.shadow_at_write.iter().flatten().any(|&entry| entry == old)
}

#[test]
fn a_table_is_read_after_it_is_protected_and_flushed() {
    let (machine, mmu) = start();
    assert_eq!(attach(machine, mmu), Seen::Page { gfn: 10, user: true, write: false });
}

#[test]
fn entries_are_pending_while_what_they_follow_is_written() {
    let (machine, mmu) = start();
    assert!(!translated_while_written(machine, mmu));
}

#[test]
#[cfg(feature = "sabotage")]
fn both_tests_see_the_wrong_order() {
    let (machine, mut mmu) = start();
    mmu.break_rule(umbra_mmu::Rule::ReadAfterProtect);
    assert_eq!(attach(machine, mmu), Seen::NotPresent);
    let (machine, mut mmu) = start();
    mmu.break_rule(umbra_mmu::Rule::PendingBeforeWrite);
    assert!(translated_while_written(machine, mmu));
}
