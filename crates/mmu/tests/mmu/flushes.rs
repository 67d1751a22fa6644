//! Where a full flush is owed although no entry that is there tells so. Each of these was found in
//! a review of the MMU: the CPU still holds what an entry said before.

use crate::common::*;
use umbra_mmu::{FaultContext, FaultOutcome, GuestFaults, Mmu};
use umbra_paging::{Access, Gfn, Gva, Paging, bits};

const ALL: u64 = P | W | U | A | D;
const READ: Access = Access::supervisor_read();

/// Root 1, tables 2 and 3, page table 4; gva 0x5000 maps frame 100.
fn start(wp: bool, page: u64) -> (Machine, Mmu) {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 5, 100 << 12 | page);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, Paging { wp, ..paging(1) });
    mmu.flush_guest(&mut machine);
    (machine, mmu)
}

/// Frame 100 becomes a table, and is read as one.
fn becomes_table(machine: &mut Machine, mmu: &mut Mmu) -> bool {
    machine.poke(100, 1, 7 << 12 | ALL);
    let before = machine.flushes;
    store(machine, mmu, 3, 1, 100 << 12 | ALL);
    settle(machine, mmu, 0x20_1000, READ);
    machine.flushes > before
}

#[test]
fn a_frame_that_was_writable_a_while_ago_becomes_a_table() {
    let (mut machine, mut mmu) = start(true, ALL);
    settle(&mut machine, &mut mmu, 0x5000, supervisor_write());
    store(&mut machine, &mut mmu, 4, 5, 100 << 12 | ALL & !W);
    assert!(becomes_table(&mut machine, &mut mmu));
}

#[test]
fn a_frame_that_was_writable_for_the_supervisor_alone_becomes_a_table() {
    let (mut machine, mut mmu) = start(false, ALL & !W);
    machine.poke(3, 2, 4 << 12 | ALL);
    settle(&mut machine, &mut mmu, 0x5000, supervisor_write());
    settle(&mut machine, &mut mmu, 0x40_5000, Access::user_read());
    assert!(becomes_table(&mut machine, &mut mmu));
}

#[test]
fn a_frame_that_was_writable_through_an_unsync_table_becomes_a_table() {
    let (mut machine, mut mmu) = start(true, ALL);
    mmu.release_frame(&mut machine, Gfn::new(4));
    settle(&mut machine, &mut mmu, 0x5000, supervisor_write());
    mmu.invlpg(&mut machine, VCPU, Gva::new(0x9000));
    assert!(becomes_table(&mut machine, &mut mmu));
}

#[test]
fn revoked_memory_stays_away_when_the_generation_wraps() {
    let mut machine = Machine::new(2048, 64);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    for round in 0..2050 {
        mmu.page_fault(
            &mut machine,
            VCPU,
            Gva::new(0x1000),
            supervisor_write(),
            &FaultContext::at(Gva::new(0)),
        );
        mmu.revoke(&mut machine, Gfn::new(0)..Gfn::new(3));
        machine.holes = if round % 2 == 0 { vec![1] } else { vec![] };
        mmu.audit(&machine).unwrap_or_else(|violation| panic!("round {round}: {violation}"));
    }
}

#[test]
fn faults_exit_while_a_table_is_unsync() {
    let (mut machine, mut mmu) = start(true, ALL);
    machine.poke(6, 9, 101 << 12 | ALL);
    settle(&mut machine, &mut mmu, 0x5000, READ);
    mmu.release_frame(&mut machine, Gfn::new(3));
    settle(&mut machine, &mut mmu, 0x5000, READ);
    // The guest's own store: another table. A CPU that still uses the old one raises a not-present
    // fault for 0x9000 once; raised again and again by the old shadow, it would never end.
    machine.poke(3, 0, 6 << 12 | ALL);
    assert_eq!(mmu.guest_faults(), GuestFaults::Trap);
    mmu.flush_guest(&mut machine);
    assert_eq!(mmu.guest_faults(), GuestFaults::Present);
    settle(&mut machine, &mut mmu, 0x9000, READ);
}

#[test]
fn a_guest_fault_ends_what_is_cached_through_unsync_tables() {
    let (mut machine, mut mmu) = start(true, ALL & !W);
    settle(&mut machine, &mut mmu, 0x5000, READ);
    mmu.release_frame(&mut machine, Gfn::new(4));
    settle(&mut machine, &mut mmu, 0x5000, READ);
    machine.poke(4, 5, 0);
    fault(&mut machine, &mut mmu, 0x5000, supervisor_write());
    assert_eq!(hardware(&machine, &mmu, 0x5000), Seen::NotPresent);
}

/// A large page at 8 MiB, not dirty, whose region holds the table 600; that is linked at 2 MiB.
fn large() -> (Machine, Mmu) {
    let (mut machine, mut mmu) = start(true, ALL);
    machine.poke(3, 4, 512 << 12 | P | W | U | A | bits::PS);
    machine.poke(3, 1, 600 << 12 | ALL);
    machine.poke(600, 0, 100 << 12 | ALL);
    machine.poke(4, 1, 600 << 12 | ALL);
    mmu.zap_all(&mut machine);
    settle(&mut machine, &mut mmu, 0x20_0000, READ);
    settle(&mut machine, &mut mmu, 0x80_0000, READ);
    (machine, mmu)
}

/// Whether the small pages of the large one are flushed when it is mapped whole again, or at the
/// latest when the guest replaces it.
fn is_flushed_when_whole_again(mut machine: Machine, mut mmu: Mmu) -> bool {
    store(&mut machine, &mut mmu, 3, 1, 0);
    mmu.flush_guest(&mut machine);
    settle(&mut machine, &mut mmu, 0x1000, supervisor_write());
    settle(&mut machine, &mut mmu, 0x80_5000, READ);
    let before = machine.flushes;
    settle(&mut machine, &mut mmu, 0x80_0000, supervisor_write());
    store(&mut machine, &mut mmu, 3, 4, 1024 << 12 | ALL | bits::PS);
    machine.flushes > before
}

#[test]
fn small_pages_of_a_large_one_are_flushed_when_it_is_mapped_whole_again() {
    let (machine, mmu) = large();
    assert!(
        is_flushed_when_whole_again(machine, mmu),
        "the guest's INVLPG of 0x800000 leaves 0x805000"
    );
}

#[test]
fn small_pages_of_a_large_one_are_flushed_after_its_identity_page_was_reclaimed() {
    let (mut machine, mut mmu) = large();
    settle(&mut machine, &mut mmu, 0x80_5000, READ);
    mmu.zap_all(&mut machine);
    let before = machine.flushes;
    store(&mut machine, &mut mmu, 3, 4, 1024 << 12 | ALL | bits::PS);
    settle(&mut machine, &mut mmu, 0x80_0000, READ);
    assert!(machine.flushes > before);
}

#[test]
fn a_table_that_becomes_a_large_page_is_flushed() {
    let (mut machine, mut mmu) = start(true, ALL);
    settle(&mut machine, &mut mmu, 0x5000, READ);
    let before = machine.flushes;
    store(&mut machine, &mut mmu, 3, 0, 512 << 12 | ALL | bits::PS);
    settle(&mut machine, &mut mmu, 0x5000, READ);
    assert!(machine.flushes > before, "two page sizes for one address: CVE-2018-12207");
}

/// Nothing of these can be cached in pieces: no entry, what is not present though it has PS, and a
/// table that was never used.
#[test]
fn an_entry_of_a_directory_that_was_no_large_page_is_replaced_without_a_flush() {
    let (mut machine, mut mmu) = start(true, ALL);
    settle(&mut machine, &mut mmu, 0x5000, READ);
    store(&mut machine, &mut mmu, 3, 2, ALL & !P | bits::PS);
    store(&mut machine, &mut mmu, 3, 3, 7 << 12 | ALL);
    assert_eq!(hardware(&machine, &mmu, 0x60_5000), Seen::Reserved);
    let before = machine.flushes;
    for index in 1..4 {
        store(&mut machine, &mut mmu, 3, index, 4 << 12 | ALL);
        settle(&mut machine, &mut mmu, (index as u64) << 21 | 0x5000, READ);
    }
    assert_eq!(machine.flushes, before);
}

/// Root 1, tables 2 and 3, page table 4; what is present waits for its first use.
fn start_lazy() -> (Machine, Mmu) {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 5, 100 << 12 | ALL);
    machine.poke(4, 6, 101 << 12 | ALL);
    let mut mmu = Mmu::new(config_with(|config| config.eager = false), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    (machine, mmu)
}

#[test]
fn a_fault_on_a_page_that_is_installed_drops_what_is_cached_of_it() {
    let (mut machine, mut mmu) = start_lazy();
    for dropped in [0, 1, 2] {
        let outcome = fault(&mut machine, &mut mmu, 0x5000, READ);
        assert!(matches!(outcome, FaultOutcome::Resume(_)), "{outcome:?}");
        assert_eq!(machine.page_flushes, dropped, "the first fault installs it");
    }
}

/// The CPU may still go by an older reference than the one that is there.
#[test]
fn a_fault_on_the_way_through_an_unsync_table_drops_what_is_cached_of_that() {
    let (mut machine, mut mmu) = start_lazy();
    settle(&mut machine, &mut mmu, 0x5000, READ);
    mmu.release_frame(&mut machine, Gfn::new(3));
    settle(&mut machine, &mut mmu, 0x5000, READ);
    assert_eq!(hardware(&machine, &mmu, 0x6000), Seen::Reserved);
    let before = machine.page_flushes;
    fault(&mut machine, &mut mmu, 0x6000, READ);
    assert_eq!(machine.page_flushes, before + 1);
}

#[test]
fn a_large_page_in_an_unsync_table_is_flushed_whole() {
    let (mut machine, mut mmu) = large();
    mmu.release_frame(&mut machine, Gfn::new(3));
    settle(&mut machine, &mut mmu, 0x80_5000, READ);
    let before = machine.flushes;
    machine.poke(3, 4, 1024 << 12 | ALL | bits::PS);
    mmu.invlpg(&mut machine, VCPU, Gva::new(0x80_0000));
    assert!(machine.flushes > before);
}

/// Of the two shadows of frame 4 one has been flushed since it was unlinked, the other has not.
#[test]
fn a_frame_with_two_shadows_is_let_go_after_a_flush() {
    // By itself, when nothing leads to it any more, or, if it went with others, when it is written.
    for bytes in [8, 16] {
        let (mut machine, mut mmu) = start(false, ALL);
        machine.poke(3, 1, 4 << 12 | ALL & !W);
        machine.poke(3, 3, 20 << 12 | ALL);
        machine.poke(20, 0, 4 << 12 | ALL);
        for gva in [0x5000, 0x20_5000, 0x60_0000] {
            settle(&mut machine, &mut mmu, gva, READ);
        }
        store(&mut machine, &mut mmu, 3, 0, 0);
        mmu.flush_guest(&mut machine);
        let before = machine.flushes;
        mmu.write_guest(&mut machine, Gfn::new(3).entry(1), &[0; 16][..bytes]);
        mmu.audit(&machine).unwrap();
        assert_eq!(machine.flushes > before, bytes == 8);
        settle(&mut machine, &mut mmu, 0x60_0000, supervisor_write());
        assert!(machine.flushes > before);
    }
}

/// Frame 4 is let go: whether that comes with a flush.
fn is_flushed_when_let_go(mut machine: Machine, mut mmu: Mmu) -> bool {
    settle(&mut machine, &mut mmu, 0x5000, READ);
    let before = (machine.flushes, mmu.counters().detached);
    store(&mut machine, &mut mmu, 3, 0, 0);
    assert_eq!(mmu.counters().detached, before.1 + 1);
    machine.flushes > before.0
}

#[test]
fn a_detached_table_is_flushed_before_it_may_be_written() {
    let (machine, mmu) = start(true, ALL);
    assert!(is_flushed_when_let_go(machine, mmu), "the CPU still walks the old shadow");
}
