//! What another vCPU does by what it has latched at its VM entry, or while the MMU works. Each of
//! these was found by the small programs of `umbra_reference::schedule`, or by random ones.

use crate::common::*;
use umbra_mmu::{
    ConfigError, FaultOutcome, FilterPolicy, GuestFaults, MIN_FRAMES_PER_VCPU, Mmu, TranslateError,
    Work,
};
use umbra_paging::{Access, Gfn, Gva, Hfn, bits};

const ALL: u64 = P | W | U | A | D;
const POOL: usize = 2 * MIN_FRAMES_PER_VCPU as usize + 8;

/// Root 1, tables 2 and 3, page table 4, which maps frame 100, a clean page of frame 101, and
/// nothing.
fn start(vcpus: usize) -> (Machine, Mmu) {
    let mut machine = Machine::identical(2048, POOL);
    machine.chain();
    machine.poke(4, 0, 100 << 12 | ALL);
    machine.poke(4, 1, 101 << 12 | ALL & !D);
    let config = config_with(|config| {
        config.vcpus = vcpus;
        config.filter = FilterPolicy::User;
        config.loadable_roots = 2;
    });
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    load_everywhere(&mut machine, &mut mmu, vcpus);
    (machine, mmu)
}

#[test]
fn all_vcpus_leave_the_guest_before_an_entry_is_narrow() {
    let (mut machine, mut mmu) = start(2);
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    assert_eq!(
        (mmu.entry_state(&machine, OTHER_VCPU).guest_faults, machine.kicks),
        (GuestFaults::User, 0)
    );
    settle(&mut machine, &mut mmu, 0x1000, Access::user_read());
    assert_eq!(
        (mmu.entry_state(&machine, OTHER_VCPU).guest_faults, machine.kicks),
        (GuestFaults::Present, 1)
    );
    let narrow = |entry: &&u64| **entry & (bits::ADDRESS | P) == 101 << 12 | P;
    assert!(machine.mapping_of(101).is_some());
    assert_eq!(machine.shadow_at_kick.iter().flatten().find(narrow), None, "it came too soon");
}

#[test]
fn one_vcpu_need_not_be_made_to_leave() {
    let (mut machine, mut mmu) = start(1);
    settle(&mut machine, &mut mmu, 0x1000, Access::user_read());
    assert_eq!(
        (mmu.entry_state(&machine, VCPU).guest_faults, machine.kicks),
        (GuestFaults::Present, 0)
    );
}

#[test]
fn an_entry_is_not_absent_while_a_present_one_is_written() {
    for bytes in [8, 4] {
        let (mut machine, mut mmu) = start(2);
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        assert_eq!(hardware(&machine, &mmu, 0x5000), Seen::NotPresent);
        let frame = machine.frame_of_table(4, &mmu);
        let entry = (102u64 << 12 | ALL).to_le_bytes();
        mmu.write_guest(&mut machine, Gfn::new(4).entry(5), &entry[..bytes]);
        let then = machine.shadow_at_write[frame][5];
        assert_ne!(then & P, 0, "another vCPU sees the new entry, and faults on the old one");
        assert_ne!(then & FEATURES.address_reserved(), 0);
    }
}

#[test]
fn small_pages_of_a_large_one_are_flushed_before_another_vcpu_sees_that_it_changes() {
    let (mut machine, mut mmu) = start(2);
    machine.poke(3, 4, bits::PS | ALL);
    // The region at 0 holds the tables.
    settle(&mut machine, &mut mmu, 0x80_5000, Access::user_read());
    let before = machine.flushes;
    store(&mut machine, &mut mmu, 3, 4, 1024 << 12 | ALL | bits::PS);
    assert!(machine.flushes_at_write > before, "its INVLPG leaves all small pages but one");
}

#[test]
fn what_a_vcpu_has_loaded_is_learned_before_a_root_is_withdrawn() {
    let (mut machine, mut mmu) = start(2);
    machine.poke(10, 0, 2 << 12 | ALL);
    mmu.load_paging(&mut machine, OTHER_VCPU, paging(10));
    assert!(mmu.allow_native_load(&mut machine, OTHER_VCPU));
    mmu.load_paging(&mut machine, OTHER_VCPU, paging(1));
    assert!(mmu.is_loadable(OTHER_VCPU, Gfn::new(10)));
    // It loads root 10 without an exit; then the other vCPU writes to that.
    machine.loaded_root = Some((OTHER_VCPU, Gfn::new(10)));
    mmu.release_frame(&mut machine, Gfn::new(10));
    assert_eq!((mmu.paging(OTHER_VCPU).root, machine.loaded_root), (Gfn::new(10), None));
    assert!(!mmu.is_loadable(OTHER_VCPU, Gfn::new(10)));
    mmu.audit(&machine).unwrap();
    assert!(machine.kicks > 0);
}

/// Another vCPU stores to an entry that is to be marked, so often.
fn raced(stores: u64) -> (Machine, Mmu) {
    let (mut machine, mmu) = start(2);
    machine.poke(4, 2, 102 << 12 | P | W | U | D);
    machine.racing_stores = stores;
    (machine, mmu)
}

#[test]
fn an_entry_that_changes_all_the_time_ends_the_exit_and_not_the_guest() {
    let (mut machine, mut mmu) = raced(u64::MAX);
    machine.work.set(0);
    let outcome = exit_at(&mut machine, &mut mmu, 0, 0x2000, Access::user_read());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Raced));
    assert!(machine.work.get() < 1000, "{}", machine.work.get());
    let translated = mmu.translate(&mut machine, VCPU, Gva::new(0x2000), Access::user_read());
    assert_eq!(translated, Err(TranslateError::Raced));
    // The other one lets go.
    machine.racing_stores = 0;
    settle(&mut machine, &mut mmu, 0x2000, Access::user_read());
}

#[test]
fn an_entry_that_changes_a_few_times_costs_no_exit() {
    for stores in 0..4 {
        let (mut machine, mut mmu) = raced(stores);
        let outcome = fault(&mut machine, &mut mmu, 0x2000, Access::user_read());
        assert!(!matches!(outcome, FaultOutcome::Resume(Work::Raced)), "{stores}: {outcome:?}");
        // Before the last round nobody is in the guest any more.
        assert_eq!(machine.kicks, u64::from(stores == 3), "{stores}");
    }
}

#[test]
fn two_guest_frames_in_one_host_frame_are_refused() {
    let (mut machine, mmu) = start(1);
    assert_eq!(mmu.check_backing(&machine), Ok(()));
    machine.share(7, 300);
    let shared =
        ConfigError::SharedFrame { gfn: Gfn::new(7), other: Gfn::new(300), hfn: Hfn::new(7) };
    assert_eq!(mmu.check_backing(&machine), Err(shared));
    assert_eq!(Mmu::new(config(), &mut machine).err(), Some(shared));
    let sentence = shared.to_string();
    assert!(sentence.contains("0x7 and 0x12c") && sentence.contains("each its own"), "{sentence}");
    // In another order, but each its own.
    let (mut machine, mmu) = start(1);
    machine.share(7, 300);
    machine.share(300, 7);
    assert_eq!(mmu.check_backing(&machine), Ok(()));
}

/// Between the walk and the mapping another vCPU clears the entry: the instruction is executed
/// again, not emulated.
#[test]
fn an_entry_that_goes_after_the_walk_is_a_race() {
    for entry in [0, 100 << 12 | ALL & !A, 100 << 12 | ALL | 1 << 45] {
        let (mut machine, mut mmu) = start(2);
        // It stores before the new shadow of the page table is filled.
        machine.before_flush = Some((4, 0, entry));
        let outcome = fault(&mut machine, &mut mmu, 0, Access::user_read());
        assert_eq!(outcome, FaultOutcome::Resume(Work::Raced), "{entry:#x}");
        machine.poke(4, 0, 100 << 12 | ALL);
        settle(&mut machine, &mut mmu, 0, Access::user_read());
    }
}

#[test]
fn a_root_that_another_vcpu_runs_on_does_not_move() {
    let (mut machine, mut mmu) = start(2);
    let root = mmu.root(&machine, OTHER_VCPU);
    assert!(!mmu.allow_native_load(&mut machine, VCPU), "the other would walk the guest's table");
    assert_eq!(mmu.root(&machine, OTHER_VCPU), root);
    mmu.load_paging(&mut machine, OTHER_VCPU, paging(5));
    assert!(mmu.allow_native_load(&mut machine, VCPU));
}
