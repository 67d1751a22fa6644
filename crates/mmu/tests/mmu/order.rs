//! The order in which things are done, seen by another vCPU: it may write through a translation
//! that is about to be flushed, and read entries while what they follow is written.

use crate::common::*;
use umbra_mmu::{FaultContext, MIN_FRAMES_PER_VCPU, Mmu};
use umbra_paging::{Access, Gfn, Gva};

fn start() -> (Machine, Mmu) {
    let mut machine = Machine::new(256, MIN_FRAMES_PER_VCPU as usize);
    machine.chain();
    machine.poke(4, 0, 0x9000 | P | W | U | A | D);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    (machine, mmu)
}

/// A page table is shadowed while another vCPU still stores to it: entry 5 becomes present just
/// before the flush that ends such stores. What the hardware sees of it then.
fn attach(mut machine: Machine, mut mmu: Mmu) -> Seen {
    machine.poke(3, 1, 20 << 12 | P | W | U | A);
    mmu.page_fault(
        &mut machine,
        VCPU,
        Gva::new(0x1000),
        Access::user_read(),
        &FaultContext::at(Gva::new(0)),
    );
    machine.before_flush = Some((20, 5, 0xa000 | P | U | A));
    mmu.page_fault(
        &mut machine,
        VCPU,
        Gva::new(0x20_0000),
        Access::user_read(),
        &FaultContext::at(Gva::new(0)),
    );
    assert!(machine.before_flush.is_none(), "protection is followed by a flush");
    hardware(&machine, &mmu, 0x20_5000)
}

/// As `attach`, for a table that was shadowed before, and is detached.
fn attach_again(mut machine: Machine, mut mmu: Mmu) -> Seen {
    machine.poke(3, 1, 20 << 12 | P | W | U | A);
    machine.poke(20, 0, 0xb000 | P | U | A);
    settle(&mut machine, &mut mmu, 0x20_0000, Access::user_read());
    store(&mut machine, &mut mmu, 3, 1, 0);
    assert_eq!(mmu.counters().detached, 1);
    store(&mut machine, &mut mmu, 3, 1, 20 << 12 | P | W | U | A);
    machine.before_flush = Some((20, 5, 0xa000 | P | U | A));
    mmu.page_fault(
        &mut machine,
        VCPU,
        Gva::new(0x20_0000),
        Access::user_read(),
        &FaultContext::at(Gva::new(0)),
    );
    assert_eq!((mmu.counters().attached, machine.before_flush), (1, None));
    hardware(&machine, &mmu, 0x20_5000)
}

/// The frame of a page table that is reclaimed is mapped by all others: whether one of them is
/// writable while the CPU may still use the old table.
fn writable_while_cached(mut machine: Machine, mut mmu: Mmu) -> Option<bool> {
    for n in 0..MIN_FRAMES_PER_VCPU as u64 {
        machine.poke(3, 1 + n as usize, (100 + n) << 12 | P | W | U | A);
        machine.poke(100 + n, 0, 4 << 12 | P | W | U | A | D);
    }
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    machine.watched = Some(4);
    for n in 0..MIN_FRAMES_PER_VCPU as u64 {
        settle(&mut machine, &mut mmu, (1 + n) << 21, Access::user_read());
    }
    machine.writable_at_flush
}

/// Whether any shadow entry still translates to frame 9 at the moment when the guest's entry for it
/// is replaced.
fn translated_while_written(mut machine: Machine, mut mmu: Mmu) -> bool {
    mmu.page_fault(
        &mut machine,
        VCPU,
        Gva::new(0),
        Access::user_read(),
        &FaultContext::at(Gva::new(0)),
    );
    let Seen::Page { gfn: 9, .. } = hardware(&machine, &mmu, 0) else { panic!("not mapped") };
    let old = machine.mapping_of(9).expect("some entry maps the frame");
    mmu.write_guest(
        &mut machine,
        Gfn::new(4).entry(0),
        &(0xa000 | P | W | U | A | D).to_le_bytes(),
    );
    machine.shadow_at_write.iter().flatten().any(|&entry| entry == old)
}

#[test]
fn a_table_is_read_after_it_is_protected_and_flushed() {
    let (machine, mmu) = start();
    assert_eq!(attach(machine, mmu), Seen::Page { gfn: 10, user: true, write: false });
}

#[test]
fn a_table_is_read_after_it_is_protected_again_and_flushed() {
    let (machine, mmu) = start();
    assert_eq!(attach_again(machine, mmu), Seen::Page { gfn: 10, user: true, write: false });
}

#[test]
fn a_frame_is_protected_until_what_is_cached_of_its_shadow_is_flushed() {
    let (machine, mmu) = start();
    assert_eq!(writable_while_cached(machine, mmu), Some(false));
}

#[test]
fn entries_are_trapping_while_what_they_follow_is_written() {
    let (machine, mmu) = start();
    assert!(!translated_while_written(machine, mmu));
}
