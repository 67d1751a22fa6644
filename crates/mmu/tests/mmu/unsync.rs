//! Page tables whose writes are not seen while the guest changes them entry by entry.

use std::cell::RefCell;
use std::rc::Rc;

use crate::common::*;
use umbra_mmu::policy::{Answer, TableWrite, Unsync, UnsyncFlush, WritePolicy};
use umbra_mmu::{Config, Encodings, FaultOutcome, FilterPolicy, GuestFaults, Mmu, Work};
use umbra_paging::{Access, Gfn, Gva, Paging};

const ALL: u64 = P | W | U | A | D;
const READ: Access = Access::supervisor_read();
/// Where page table 4 shows to the kernel.
const SHOWN: u64 = 64 << 12;
/// An address that page table 4 maps.
const PAGE: u64 = 0x5000;

/// The page table in frame 4 is to be unsync until another address is flushed, or all addresses, or
/// a fault exits for it, for so many times more. Others are emulated.
#[derive(Clone, Default)]
struct Policy {
    more: usize,
    faults: usize,
    told: Rc<RefCell<Vec<UnsyncFlush>>>,
}

impl WritePolicy for Policy {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        if write.gpa.gfn() == Gfn::new(4) { Answer::Unsync } else { Answer::Emulate }
    }

    fn flushed(&mut self, flush: UnsyncFlush) -> bool {
        self.told.borrow_mut().push(flush);
        let left = match flush {
            UnsyncFlush::All(..) => &mut self.more,
            UnsyncFlush::Fault => &mut self.faults,
            _ => return flush != UnsyncFlush::Elsewhere,
        };
        left.checked_sub(1).inspect(|&next| *left = next).is_some()
    }
}

/// Root 1, tables 2 and 3, and page table 4, which maps frame 101 and is unsync. The page tables 6
/// and 7 are tracked.
fn start(vcpus: usize, page: u64) -> (Machine, Mmu<Policy>) {
    start_with(Policy::default(), vcpus, page)
}

fn start_with<P: WritePolicy>(policy: P, vcpus: usize, page: u64) -> (Machine, Mmu<P>) {
    start_configured(policy, vcpus, page, |config| config.loadable_roots = 1)
}

fn start_configured<P: WritePolicy>(
    policy: P,
    vcpus: usize,
    page: u64,
    change: impl FnOnce(&mut Config),
) -> (Machine, Mmu<P>) {
    let mut machine = Machine::identical(2048, 96 * vcpus);
    machine.chain();
    machine.poke(4, 5, 101 << 12 | page);
    machine.poke(4, 6, 6 << 12 | ALL);
    machine.poke(4, 8, 105 << 12 | ALL);
    machine.poke(4, 64, 4 << 12 | ALL & !U);
    for (n, table) in [(6, 6), (7, 7)] {
        machine.poke(3, n, table << 12 | ALL);
        machine.poke(table, 0, 103 << 12 | ALL);
    }
    let config = config_with(|config| {
        config.vcpus = vcpus;
        change(config);
    });
    let mut mmu = Mmu::with_policy(config, &mut machine, policy).unwrap();
    load_everywhere(&mut machine, &mut mmu, vcpus);
    for gva in [PAGE, 0x6000, 0x8000, SHOWN, 6 << 21, 7 << 21] {
        settle(&mut machine, &mut mmu, gva, READ);
    }
    let outcome = fault(&mut machine, &mut mmu, SHOWN, supervisor_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    (machine, mmu)
}

fn page(gfn: u64) -> Seen {
    Seen::Page { gfn, user: true, write: true }
}

#[test]
fn writes_are_not_seen_and_invlpg_brings_its_entry_up_to_date() {
    let (mut machine, mut mmu) = start(1, ALL);
    assert_eq!(hardware(&machine, &mmu, SHOWN), Seen::Page { gfn: 4, user: false, write: true });
    assert!(mmu.entry_state(&machine, VCPU).flushes_exit);
    machine.poke(4, 5, 102 << 12 | ALL);
    machine.poke(4, 7, 104 << 12 | ALL);
    assert_eq!(hardware(&machine, &mmu, PAGE), page(101), "as a TLB that still holds it");
    let before = (machine.flushes, machine.page_flushes);
    mmu.invlpg(&mut machine, VCPU, Gva::new(PAGE));
    assert_eq!(hardware(&machine, &mmu, PAGE), page(102));
    assert_eq!(hardware(&machine, &mmu, 0x7000), Seen::Reserved, "what nobody has asked for waits");
    assert_eq!((machine.flushes, machine.page_flushes), (before.0, before.1 + 1));
    assert!(mmu.has_unsync_tables());
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_larger_flush_brings_all_up_to_date_and_may_leave_the_table_unsync() {
    let policy = Policy { more: 3, ..Policy::default() };
    let (mut machine, mut mmu) = start_with(policy.clone(), 1, ALL);
    machine.poke(4, 5, 102 << 12 | ALL);
    mmu.load_paging(&mut machine, VCPU, paging(1));
    assert!(mmu.has_unsync_tables() && mmu.entry_state(&machine, VCPU).flushes_exit);
    assert_eq!(hardware(&machine, &mmu, PAGE), page(102));
    // What is cleared is Trapping, so that nothing depends on seeing how it comes back.
    machine.poke(4, 5, 0);
    machine.poke(4, 9, 104 << 12 | ALL);
    mmu.flush_guest(&mut machine);
    assert_eq!(hardware(&machine, &mmu, PAGE), Seen::Reserved);
    assert_eq!(hardware(&machine, &mmu, 0x9000), page(104));
    mmu.audit(&machine).unwrap();
    mmu.flush_guest(&mut machine);
    assert_eq!(
        *policy.told.borrow(),
        [1, 2, 0].map(|changed| UnsyncFlush::All(Gfn::new(4), changed))
    );
    machine.poke(4, 9, 0);
    mmu.flush_guest(&mut machine);
    assert!(!mmu.has_unsync_tables(), "the policy had enough of it");
    assert_eq!(hardware(&machine, &mmu, PAGE), Seen::NotPresent);
    assert_eq!(hardware(&machine, &mmu, 0x9000), Seen::NotPresent);
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_root_is_built_only_once_all_tables_are_tracked() {
    let (mut machine, mut mmu) = start_with(Policy { more: 3, ..Policy::default() }, 1, ALL);
    machine.poke(10, 0, 2 << 12 | ALL);
    mmu.load_paging(&mut machine, VCPU, paging(10));
    assert!(!mmu.has_unsync_tables());
    assert_eq!(hardware(&machine, &mmu, PAGE), page(101), "linked at once");
    mmu.audit(&machine).unwrap();
}

/// The page of the PDPTEs is there already, but what they reference is not: they cannot wait for a
/// fault.
#[test]
fn pdptes_are_loaded_only_once_all_tables_are_tracked() {
    let policy = Policy { more: 3, ..Policy::default() };
    let (mut machine, mut mmu) = start_with(policy, 1, ALL);
    let directory = 3 << 12 | P;
    mmu.load_paging(&mut machine, VCPU, pae([directory, 0, 0, 0]));
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, SHOWN, READ);
    let outcome = fault(&mut machine, &mut mmu, SHOWN, supervisor_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    assert!(mmu.has_unsync_tables());
    mmu.load_paging(&mut machine, VCPU, pae([directory, directory, 0, 0]));
    assert!(!mmu.has_unsync_tables());
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_root_is_offered_only_once_all_tables_are_tracked() {
    let (mut machine, mut mmu) = start_with(Policy { more: 3, ..Policy::default() }, 1, ALL);
    mmu.load_paging(&mut machine, VCPU, paging(1));
    assert!(mmu.has_unsync_tables());
    assert!(mmu.allow_native_load(&mut machine, VCPU) && !mmu.has_unsync_tables());
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_root_that_only_serves_reads_is_built_only_once_all_tables_are_tracked() {
    let (mut machine, mut mmu) = start_configured(Policy::default(), 1, ALL, |config| {
        (config.loadable_roots, config.cr3_loads_exit) = (1, true);
    });
    assert!(mmu.has_unsync_tables() && mmu.allow_native_load(&mut machine, VCPU));
    mmu.withdraw_root(VCPU, Gfn::new(1));
    assert!(mmu.has_unsync_tables(), "nothing was built");
    // The unsync page table itself, as a root.
    mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(4));
    mmu.audit(&machine).unwrap();
    assert!(!mmu.has_unsync_tables());
}

#[test]
fn the_policy_is_told_what_a_flush_came_to() {
    let policy = Policy::default();
    let (mut machine, mut mmu) = start_with(policy.clone(), 1, ALL);
    let at = Gfn::new(4).entry(5);
    let entries = [102 << 12 | ALL, 102 << 12 | ALL, 0, 103 << 12 | ALL];
    for entry in entries {
        machine.poke(4, 5, entry);
        mmu.invlpg(&mut machine, VCPU, Gva::new(PAGE));
    }
    assert!(mmu.has_unsync_tables());
    mmu.invlpg(&mut machine, VCPU, Gva::new(6 << 21));
    assert!(!mmu.has_unsync_tables(), "the policy has said so");
    let told = [
        UnsyncFlush::Changed(at),
        UnsyncFlush::Unchanged(at),
        UnsyncFlush::Cleared(at),
        UnsyncFlush::Changed(at),
        UnsyncFlush::Elsewhere,
    ];
    assert_eq!(*policy.told.borrow(), told);
}

/// Takes note of how often the guest had flushed by each write.
#[derive(Default)]
struct FlushesBefore(Rc<RefCell<Vec<u64>>>);

impl WritePolicy for FlushesBefore {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        self.0.borrow_mut().push(write.flushes);
        Answer::Emulate
    }
}

#[test]
fn the_policy_can_tell_whether_the_guest_has_flushed_since_another_write() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 64, 4 << 12 | ALL & !U);
    let told = Rc::default();
    let policy = FlushesBefore(Rc::clone(&told));
    let mut mmu = Mmu::with_policy(config(), &mut machine, policy).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, SHOWN, READ);
    let write = |machine: &mut Machine, mmu: &mut Mmu<FlushesBefore>| {
        let outcome = fault(machine, mmu, SHOWN, supervisor_write());
        assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
        told.borrow().last().copied().unwrap()
    };
    let first = write(&mut machine, &mut mmu);
    assert_eq!(write(&mut machine, &mut mmu), first);
    mmu.flush_guest(&mut machine);
    assert_eq!(write(&mut machine, &mut mmu), first + 1);
    mmu.load_paging(&mut machine, VCPU, paging(1));
    assert_eq!(write(&mut machine, &mut mmu), first + 2);
}

#[test]
fn a_larger_flush_tracks_the_table_again() {
    let (mut machine, mut mmu) = start(1, ALL);
    machine.poke(4, 5, 102 << 12 | ALL);
    mmu.flush_guest(&mut machine);
    assert!(!mmu.has_unsync_tables() && !mmu.entry_state(&machine, VCPU).flushes_exit);
    assert_eq!(hardware(&machine, &mmu, PAGE), page(102));
    assert_eq!(hardware(&machine, &mmu, SHOWN), Seen::Page { gfn: 4, user: false, write: false });
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_table_that_is_also_a_directory_is_tracked() {
    let (mut machine, mut mmu) = start(1, ALL);
    // Frame 4 is a page directory, too, whose entry 5 is a page table in frame 101.
    machine.poke(101, 0, 105 << 12 | ALL);
    store(&mut machine, &mut mmu, 2, 1, 4 << 12 | ALL);
    settle(&mut machine, &mut mmu, 1 << 30 | 5 << 21, READ);
    assert!(!mmu.has_unsync_tables());
    let outcome = fault(&mut machine, &mut mmu, SHOWN, supervisor_write());
    assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
}

#[test]
fn all_vcpus_leave_the_guest_before_a_write_is_unseen() {
    let (machine, mmu) = start(2, ALL);
    assert_eq!((machine.kicks, mmu.entry_state(&machine, OTHER_VCPU).flushes_exit), (1, true));
    let table = machine.mapping_of(4).unwrap();
    assert_ne!(table & W, 0);
    let writable = |&&entry: &&u64| entry == table;
    assert_eq!(machine.shadow_at_kick.iter().flatten().find(writable), None, "it came too soon");
    assert_eq!(start(1, ALL).0.kicks, 0, "nobody else is there");
}

/// Entry `index` of `table` becomes a new reference, by way of which `base` is what 0 was. Two
/// entries of page table 4 have changed since it is unsync.
fn refer(table: u64, index: usize, entry: u64, base: u64) {
    let (mut machine, mut mmu) = start(1, ALL);
    machine.poke(4, 5, 102 << 12 | ALL);
    machine.poke(4, 8, 106 << 12 | ALL);
    store(&mut machine, &mut mmu, table, index, entry);
    assert_eq!(hardware(&machine, &mmu, base | PAGE), Seen::Reserved);
    assert_eq!(hardware(&machine, &mmu, 0x8000), page(105), "the old reference may be old");
    settle(&mut machine, &mut mmu, base | PAGE, READ);
    for (gva, gfn) in [(PAGE, 102), (0x8000, 106)] {
        assert_eq!(hardware(&machine, &mmu, base | gva), page(gfn));
    }
}

#[test]
fn a_new_reference_shows_nothing_old() {
    refer(3, 1, 4 << 12 | ALL, 0x20_0000);
}

#[test]
fn a_new_reference_above_shows_nothing_old() {
    refer(2, 1, 3 << 12 | ALL, 1 << 30);
}

#[test]
fn a_table_that_is_tracked_is_linked_at_once() {
    let (mut machine, mut mmu) = start(1, ALL);
    store(&mut machine, &mut mmu, 3, 9, 6 << 12 | ALL);
    assert_eq!(hardware(&machine, &mmu, 9 << 21), page(103));
    assert!(mmu.has_unsync_tables());
}

#[test]
fn a_new_reference_to_a_released_table_shows_nothing_old() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 5, 101 << 12 | ALL);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, PAGE, READ);
    mmu.release_frame(&mut machine, Gfn::new(4));
    settle(&mut machine, &mut mmu, PAGE, READ);
    assert!(mmu.has_unsync_tables());
    machine.poke(4, 5, 102 << 12 | ALL);
    store(&mut machine, &mut mmu, 3, 1, 4 << 12 | ALL);
    assert_eq!(hardware(&machine, &mmu, 0x20_0000 | PAGE), Seen::Reserved);
    settle(&mut machine, &mut mmu, 0x20_0000 | PAGE, READ);
    assert_eq!(hardware(&machine, &mmu, 0x20_0000 | PAGE), page(102));
}

#[test]
fn a_host_fault_drops_what_is_cached_of_the_old_entry() {
    let (mut machine, mut mmu) = start(1, ALL & !W);
    machine.poke(4, 5, 102 << 12 | ALL);
    let before = machine.page_flushes;
    let outcome = fault(&mut machine, &mut mmu, PAGE, supervisor_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Install));
    assert_eq!((hardware(&machine, &mmu, PAGE), machine.page_flushes), (page(102), before + 1));
    assert!(mmu.has_unsync_tables());
}

#[test]
fn a_guest_fault_brings_its_address_up_to_date() {
    let (mut machine, mut mmu) = start(1, ALL & !W);
    machine.poke(4, 5, 102 << 12 | ALL & !W);
    machine.poke(4, 6, 0);
    let before = machine.page_flushes;
    let outcome = fault(&mut machine, &mut mmu, PAGE, user_write());
    assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
    assert_eq!(hardware(&machine, &mmu, PAGE), Seen::Page { gfn: 102, user: true, write: false });
    assert!(machine.page_flushes > before && mmu.has_unsync_tables());
    assert_eq!(hardware(&machine, &mmu, 0x6000), Seen::Page { gfn: 6, user: true, write: false });
}

#[test]
fn a_table_write_through_an_old_entry_brings_that_up_to_date() {
    let (mut machine, mut mmu) = start(1, ALL & !W);
    machine.poke(4, 5, 6 << 12 | ALL);
    let outcome = fault(&mut machine, &mut mmu, PAGE, supervisor_write());
    assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "{outcome:?}");
    assert_eq!(hardware(&machine, &mmu, PAGE), Seen::Page { gfn: 6, user: true, write: false });
}

#[test]
fn nothing_is_told_from_an_unsync_shadow_alone() {
    let (mut machine, mut mmu) = start(1, ALL);
    assert_eq!(mmu.code(&machine, VCPU, Gva::new(PAGE)), None);
    assert!(mmu.code(&machine, VCPU, Gva::new(6 << 21)).is_some());
    // The shadow still says that only the tracking of table 6 holds the write back.
    machine.poke(4, 6, 7 << 12 | ALL & !W);
    let outcome = fault(&mut machine, &mut mmu, 0x6000, user_write());
    assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
}

/// Not-present faults come from tables that are tracked; protection faults may come from what the
/// unsync one held before.
#[test]
fn only_not_present_faults_pass_while_a_page_table_is_unsync() {
    for filter in [FilterPolicy::User, FilterPolicy::Present] {
        let (mut machine, mut mmu) =
            start_configured(Policy::default(), 1, ALL, |config| config.filter = filter);
        assert_eq!(mmu.guest_faults(), GuestFaults::Present);
        // In the unsync table nothing is NotPresent, elsewhere it is.
        assert_eq!(hardware(&machine, &mmu, 0x7000), Seen::Reserved);
        assert_eq!(hardware(&machine, &mmu, (7 << 21) + 0x7000), Seen::NotPresent);
        mmu.flush_guest(&mut machine);
        let user = filter == FilterPolicy::User;
        let expected = if user { GuestFaults::User } else { GuestFaults::Present };
        assert_eq!(mmu.guest_faults(), expected);
        assert_eq!(hardware(&machine, &mmu, 0x7000), Seen::NotPresent);
        mmu.release_frame(&mut machine, Gfn::new(4));
        assert_eq!(mmu.guest_faults(), GuestFaults::Trap);
        mmu.audit(&machine).unwrap();
    }
    let (_, mmu) = start_configured(Policy::default(), 1, ALL, |config| {
        config.encodings = Encodings::not_present(FEATURES.maxphyaddr);
    });
    assert_eq!(mmu.guest_faults(), GuestFaults::Trap, "what is Trapping is not present to the CPU");
}

#[test]
fn the_policy_is_told_of_faults_that_would_have_passed() {
    let guest_fault = |machine: &mut Machine, mmu: &mut Mmu<Policy>, (gva, access)| {
        let outcome = fault(machine, mmu, gva, access);
        assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
    };
    let (absent, refused) = ((0x7000, READ), (PAGE, user_write()));
    for (filter, exits, passes) in
        [(FilterPolicy::User, absent, refused), (FilterPolicy::Present, refused, absent)]
    {
        for faults in [1, 0] {
            let policy = Policy { faults, ..Policy::default() };
            let (mut machine, mut mmu) =
                start_configured(policy.clone(), 1, ALL & !W, |config| config.filter = filter);
            guest_fault(&mut machine, &mut mmu, exits);
            assert_eq!(*policy.told.borrow(), [], "{filter:?}: it exits in any case");
            guest_fault(&mut machine, &mut mmu, passes);
            assert_eq!(*policy.told.borrow(), [UnsyncFlush::Fault], "{filter:?}");
            assert_eq!(mmu.has_unsync_tables(), faults == 1, "as the policy says");
            assert_eq!(mmu.counters().filter_switches, 0);
            mmu.audit(&machine).unwrap();
            mmu.flush_guest(&mut machine);
            policy.told.borrow_mut().clear();
            guest_fault(&mut machine, &mut mmu, passes);
            assert_eq!(*policy.told.borrow(), [], "nothing is unsync");
        }
    }
}

/// The filter `user` would not be in force, and would take the narrow pages away.
#[test]
fn no_filter_is_chosen_while_it_would_not_decide() {
    const READ_ONLY: u64 = (6 << 21) + 0x1000;
    let refused = |machine: &mut Machine, mmu: &mut Mmu<Policy>| {
        for _ in 0..5 {
            let outcome = fault(machine, mmu, READ_ONLY, user_write());
            assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
        }
        mmu.counters().filter_switches
    };
    let auto = |config: &mut Config| config.filter = FilterPolicy::Auto;
    let (mut machine, mut mmu) = start_configured(Policy::default(), 1, ALL, auto);
    store(&mut machine, &mut mmu, 6, 1, 104 << 12 | ALL & !W);
    assert_eq!(refused(&mut machine, &mut mmu), 0, "a table is unsync");
    mmu.flush_guest(&mut machine);
    mmu.load_paging(&mut machine, VCPU, Paging { wp: false, ..paging(1) });
    assert_eq!(refused(&mut machine, &mut mmu), 0, "CR0.WP is clear");
    mmu.load_paging(&mut machine, VCPU, paging(1));
    assert_eq!(refused(&mut machine, &mut mmu), 1);
}

/// What unsync would switch off, as the policy is told at a write.
#[test]
fn loads_of_roots_and_faults_that_pass_are_named() {
    let told = |loadable_roots, cr3_loads_exit, filter: bool, table: u64| {
        let (mut machine, seen) = (Machine::identical(2048, 96), Rc::new(RefCell::new(None)));
        machine.chain();
        machine.poke(4, 5, 101 << 12 | ALL);
        machine.poke(4, 64, table << 12 | ALL);
        let config = config_with(|config| {
            (config.loadable_roots, config.cr3_loads_exit) = (loadable_roots, cr3_loads_exit);
            if !filter {
                config.encodings = Encodings::not_present(FEATURES.maxphyaddr);
            }
        });
        let policy = Asked { seen: seen.clone() };
        let mut mmu = Mmu::with_policy(config, &mut machine, policy).unwrap();
        mmu.load_paging(&mut machine, VCPU, paging(1));
        settle(&mut machine, &mut mmu, SHOWN, READ);
        fault(&mut machine, &mut mmu, SHOWN, supervisor_write());
        seen.take().unwrap()
    };
    assert_eq!(told(1, false, true, 4), Unsync::SwitchesOff);
    assert_eq!(told(0, false, true, 4), Unsync::FlushesAndFaults);
    assert_eq!(told(1, true, true, 4), Unsync::FlushesAndFaults);
    assert_eq!(told(0, false, true, 3), Unsync::Impossible, "it is a directory");
    assert_eq!(told(1, false, false, 4), Unsync::OnlyFlushes, "none is offered");
    assert_eq!(told(0, false, false, 4), Unsync::OnlyFlushes);
}

/// Emulates, and keeps what it was told of unsync.
struct Asked {
    seen: Rc<RefCell<Option<Unsync>>>,
}

impl WritePolicy for Asked {
    fn answer(&mut self, write: &TableWrite) -> Answer {
        *self.seen.borrow_mut() = Some(write.unsync);
        Answer::Emulate
    }
}

#[test]
fn tables_that_are_zapped_are_not_unsync_any_more() {
    let (mut machine, mut mmu) = start(1, ALL);
    mmu.zap_all(&mut machine);
    assert!(!mmu.has_unsync_tables());
    mmu.audit(&machine).unwrap();
    settle(&mut machine, &mut mmu, PAGE, READ);
}

#[test]
fn a_root_that_is_released_ends_unsync() {
    let (mut machine, mut mmu) = start(1, ALL);
    machine.poke(4, 5, 102 << 12 | ALL);
    mmu.release_frame(&mut machine, Gfn::new(1));
    mmu.audit(&machine).unwrap();
    settle(&mut machine, &mut mmu, PAGE, READ);
    assert_eq!(hardware(&machine, &mmu, PAGE), page(102));
    let outcome = fault(&mut machine, &mut mmu, SHOWN, supervisor_write());
    assert!(matches!(outcome, FaultOutcome::TableWrite { .. }), "one kind at a time: {outcome:?}");
}
