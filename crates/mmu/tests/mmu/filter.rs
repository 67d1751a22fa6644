//! Which faults go to the guest by themselves, and that no page gives user mode less meanwhile
//! (I4).

use crate::common::*;
use umbra_mmu::{
    FaultOutcome, FilterPolicy, GuestFaults, Invariant, Mmu, ShadowFrame, ShadowFrames,
};
use umbra_paging::{Access, Gfn, Paging, bits};

const ALL: u64 = P | W | U | A | D;
/// Pages of user mode: dirty, clean (which would be narrow), read-only, and one that shows page
/// table 4.
const DIRTY: u64 = 0;
const CLEAN: u64 = 0x1000;
const READ_ONLY: u64 = 0x2000;
const TABLE: u64 = 0x3000;
/// Of the supervisor, clean.
const KERNEL: u64 = 0x4000;
/// Clean pages follow.
const MORE: u64 = 0x10_0000;

fn start(filter: FilterPolicy) -> (Machine, Mmu) {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 0, 100 << 12 | ALL);
    machine.poke(4, 1, 101 << 12 | ALL & !D);
    machine.poke(4, 2, 102 << 12 | ALL & !W);
    machine.poke(4, 3, 4 << 12 | ALL);
    machine.poke(4, 4, 104 << 12 | P | W | A);
    (256..512).for_each(|n| machine.poke(4, n, (300 + n as u64) << 12 | ALL & !D));
    let mut mmu = Mmu::new(config_with(|config| config.filter = filter), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    (machine, mmu)
}

/// User mode writes a page that it may only read.
fn refused(machine: &mut Machine, mmu: &mut Mmu) {
    let outcome = fault(machine, mmu, READ_ONLY, user_write());
    assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
}

/// User mode reads where nothing is, or the kernel does.
fn absent(machine: &mut Machine, mmu: &mut Mmu, user: bool) {
    let outcome = fault(machine, mmu, 0x7000, Access { user, ..Access::user_read() });
    assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
}

#[test]
fn user_is_in_force_from_the_start_and_no_page_is_narrow() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    settle(&mut machine, &mut mmu, DIRTY, user_write());
    settle(&mut machine, &mut mmu, READ_ONLY, Access::user_read());
    settle(&mut machine, &mut mmu, KERNEL, Access::supervisor_read());
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    // Filled with the others, but for what would be narrow.
    for gva in [CLEAN, TABLE, MORE] {
        assert_eq!(hardware(&machine, &mmu, gva), Seen::Reserved, "{gva:#x}");
    }
    // Written at once, it never is.
    settle(&mut machine, &mut mmu, CLEAN, user_write());
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    assert_eq!(mmu.counters().filter_switches, 0);
}

#[test]
fn a_clean_page_that_is_read_is_the_end_of_it_until_a_fault_would_pay() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    for round in 0..3 {
        machine.poke(4, 1, 101 << 12 | ALL & !D);
        store(&mut machine, &mut mmu, 4, 1, 101 << 12 | ALL & !D);
        settle(&mut machine, &mut mmu, CLEAN, Access::user_read());
        assert_eq!(mmu.guest_faults(), GuestFaults::Present, "round {round}");
        assert_eq!(
            hardware(&machine, &mmu, CLEAN),
            Seen::Page { gfn: 101, user: true, write: false }
        );
        absent(&mut machine, &mut mmu, true);
        absent(&mut machine, &mut mmu, false);
        assert_eq!(mmu.guest_faults(), GuestFaults::Present);
        // The first that the other filter would have spared.
        let before = machine.flushes;
        refused(&mut machine, &mut mmu);
        assert_eq!(mmu.guest_faults(), GuestFaults::User);
        assert!(machine.flushes > before, "the CPU may hold the page as it was");
        assert_eq!(hardware(&machine, &mmu, CLEAN), Seen::Reserved);
        // Dirty, it is as the guest says.
        settle(&mut machine, &mut mmu, CLEAN, user_write());
        assert_eq!(mmu.guest_faults(), GuestFaults::User);
    }
    assert_eq!(mmu.counters().filter_switches, 6);
}

#[test]
fn a_page_that_shows_a_table_is_narrow() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    settle(&mut machine, &mut mmu, TABLE, Access::user_read());
    assert_eq!(mmu.guest_faults(), GuestFaults::Present);
    assert_eq!(hardware(&machine, &mmu, TABLE), Seen::Page { gfn: 4, user: true, write: false });
    refused(&mut machine, &mut mmu);
    assert_eq!(hardware(&machine, &mmu, TABLE), Seen::Reserved);
    // A frame that becomes a table while it is mapped.
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    settle(&mut machine, &mut mmu, DIRTY, user_write());
    machine.poke(100, 0, 9 << 12 | ALL);
    store(&mut machine, &mut mmu, 3, 1, 100 << 12 | ALL);
    settle(&mut machine, &mut mmu, 0x20_0000, Access::user_read());
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    assert_eq!(hardware(&machine, &mmu, DIRTY), Seen::Reserved);
}

#[test]
fn auto_takes_the_filter_that_would_have_spared_more() {
    let (mut machine, mut mmu) = start(FilterPolicy::Auto);
    assert_eq!(mmu.guest_faults(), GuestFaults::Present);
    settle(&mut machine, &mut mmu, READ_ONLY, Access::user_read());
    for round in 0..3 {
        refused(&mut machine, &mut mmu);
        assert_eq!(mmu.guest_faults(), GuestFaults::Present, "round {round}");
        refused(&mut machine, &mut mmu);
        assert_eq!(mmu.guest_faults(), GuestFaults::User, "round {round}");
        // Those of user mode do not even exit now. Those of the supervisor do.
        absent(&mut machine, &mut mmu, true);
        absent(&mut machine, &mut mmu, false);
        assert_eq!(mmu.guest_faults(), GuestFaults::User, "round {round}");
        absent(&mut machine, &mut mmu, false);
        assert_eq!(mmu.guest_faults(), GuestFaults::Present, "round {round}");
    }
}

#[test]
fn present_is_for_good() {
    let (mut machine, mut mmu) = start(FilterPolicy::Present);
    for _ in 0..8 {
        refused(&mut machine, &mut mmu);
        settle(&mut machine, &mut mmu, CLEAN, Access::user_read());
        assert_eq!(mmu.guest_faults(), GuestFaults::Present);
    }
    assert_eq!(mmu.counters().filter_switches, 0);
}

#[test]
fn clean_pages_stay_mapped_where_present_is_for_good() {
    let (mut machine, mut mmu) = start(FilterPolicy::Present);
    let pages = || (0..200).map(|n| MORE + n * 4096);
    pages().for_each(|gva| settle(&mut machine, &mut mmu, gva, Access::user_read()));
    assert!(pages().all(|gva| hardware(&machine, &mmu, gva) != Seen::Reserved));
}

/// More narrow pages than are remembered: some are Trapping then, all are once the filter is on.
#[test]
fn narrow_pages_are_gone_when_the_filter_is_turned_on() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    let pages: Vec<u64> = (0..200).map(|n| MORE + n * 4096).collect();
    for round in 0..2 {
        pages.iter().for_each(|&gva| settle(&mut machine, &mut mmu, gva, Access::user_read()));
        assert_eq!(mmu.guest_faults(), GuestFaults::Present);
        let mapped = |machine: &Machine, mmu: &Mmu| {
            pages.iter().filter(|&&gva| hardware(machine, mmu, gva) != Seen::Reserved).count()
        };
        assert_eq!(mapped(&machine, &mmu), 64, "round {round}");
        refused(&mut machine, &mut mmu);
        assert_eq!(mmu.guest_faults(), GuestFaults::User);
        assert_eq!(mapped(&machine, &mmu), 0, "round {round}");
    }
}

/// A large page of user mode that is mapped by small ones, some of which are write-protected.
#[test]
fn a_large_page_with_a_table_inside_is_narrow() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    store(&mut machine, &mut mmu, 3, 1, 512 << 12 | ALL | bits::PS);
    settle(&mut machine, &mut mmu, 0x20_0000, user_write());
    assert_eq!(mmu.guest_faults(), GuestFaults::User, "whole and dirty");
    // Frame 600 becomes a table.
    machine.poke(600, 0, 9 << 12 | ALL);
    store(&mut machine, &mut mmu, 3, 2, 600 << 12 | ALL);
    settle(&mut machine, &mut mmu, 0x40_0000, Access::user_read());
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    assert_eq!(hardware(&machine, &mmu, 0x20_0000), Seen::Reserved);
    settle(&mut machine, &mut mmu, 0x20_0000, user_write());
    assert_eq!(mmu.guest_faults(), GuestFaults::Present);
    refused(&mut machine, &mut mmu);
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    assert_eq!(hardware(&machine, &mmu, 0x20_0000), Seen::Reserved);
    // Read-only for the guest, too, there is nothing that it lacks.
    store(&mut machine, &mut mmu, 3, 1, 512 << 12 | ALL & !W | bits::PS);
    settle(&mut machine, &mut mmu, 0x20_0000, Access::user_read());
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
}

/// Rights that user mode has not are none that it could lack.
#[test]
fn a_table_in_a_large_page_that_user_mode_may_only_read_is_not_narrow() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    machine.poke(600, 0, 9 << 12 | ALL);
    store(&mut machine, &mut mmu, 3, 1, 512 << 12 | ALL & !W | bits::PS);
    store(&mut machine, &mut mmu, 3, 2, 600 << 12 | ALL);
    settle(&mut machine, &mut mmu, 0x40_0000, Access::user_read());
    let inside = 0x20_0000 + ((600 - 512) << 12);
    settle(&mut machine, &mut mmu, inside, Access::user_read());
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
}

/// The CPU still holds small pages of it, of which the guest's INVLPG drops one.
#[test]
fn a_large_page_that_gave_way_to_narrow_pages_is_flushed_before_it_is_replaced() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    machine.poke(600, 0, 9 << 12 | ALL);
    store(&mut machine, &mut mmu, 3, 1, 512 << 12 | ALL | bits::PS);
    store(&mut machine, &mut mmu, 3, 2, 600 << 12 | ALL);
    settle(&mut machine, &mut mmu, 0x40_0000, Access::user_read());
    settle(&mut machine, &mut mmu, 0x20_0000, user_write());
    for n in 0..200 {
        settle(&mut machine, &mut mmu, MORE + n * 4096, Access::user_read());
    }
    assert_eq!(hardware(&machine, &mmu, 0x20_0000), Seen::Reserved, "it gave way");
    let before = machine.flushes;
    store(&mut machine, &mut mmu, 3, 1, 1024 << 12 | ALL | bits::PS);
    assert!(machine.flushes_at_write > before);
}

/// Faults of other control bits, or of a guest that may see what is not there any more, must be
/// looked at.
#[test]
fn user_is_suspended_where_it_does_not_hold() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    mmu.load_paging(&mut machine, VCPU, Paging { wp: false, ..paging(1) });
    assert_eq!(mmu.guest_faults(), GuestFaults::Present);
    mmu.load_paging(&mut machine, VCPU, paging(1));
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    settle(&mut machine, &mut mmu, DIRTY, Access::user_read());
    mmu.release_frame(&mut machine, Gfn::new(4));
    assert_eq!(mmu.guest_faults(), GuestFaults::Trap);
    mmu.flush_guest(&mut machine);
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
}

#[test]
fn the_auditor_sees_a_narrow_page() {
    let (mut machine, mut mmu) = start(FilterPolicy::User);
    settle(&mut machine, &mut mmu, CLEAN, Access::user_read());
    let narrow = machine.mapping_of(101).unwrap();
    settle(&mut machine, &mut mmu, CLEAN, user_write());
    refused(&mut machine, &mut mmu);
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    mmu.audit(&machine).unwrap();
    let wide = machine.mapping_of(101).unwrap();
    let (frame, index) = (0..64)
        .map(ShadowFrame::new)
        .flat_map(|frame| (0..512).map(move |n| (frame, n)))
        .find(|&(frame, n)| machine.read_shadow(frame, n) == wide)
        .unwrap();
    machine.write_shadow(frame, index, narrow);
    let violation = mmu.audit(&machine).unwrap_err();
    assert_eq!(violation.invariant, Invariant::NeverNarrower, "{violation}");
    assert!(violation.to_string().starts_with("I4 (never narrower): "), "{violation}");
}
