//! Roots of PAE paging that a vCPU loads without an exit: they hold what the guest's table held
//! when they were offered, and end with the first write to its frame.

use crate::common::*;
use umbra_mmu::policy::{Answer, FaultContext, TableWrite, UnsyncFlush, WritePolicy};
use umbra_mmu::{Encodings, FaultOutcome, MIN_FRAMES_PER_VCPU, Mmu, VcpuId, Work};
use umbra_paging::{Access, AccessKind, Gfn, Gva, Mode, Paging, Pdptes};

const READ: Access = Access::user_read();
const GIB: u64 = 1 << 30;
/// The PDPTEs in frame 1 and in frame 10.
const OWN: [u64; 4] = [0, 0x2001, 0, 0];
const OTHER: [u64; 4] = [0x2001, 0, 0x4001, 0];

/// PDPTEs in frames 1 and 10, directories in 2 and 4, a page table in 3 which both lead to, and
/// data in 9. The guest runs on frame 1, and maps that at 0x1000 of the second GiB.
fn start(vcpus: usize) -> (Machine, Mmu) {
    let mut machine = Machine::identical(2048, 256);
    lay_out(&mut machine);
    let config = config_with(|config| (config.loadable_roots, config.vcpus) = (2, vcpus));
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    for vcpu in (0..vcpus).map(VcpuId::new) {
        mmu.load_paging(&mut machine, vcpu, pae(OWN));
    }
    settle(&mut machine, &mut mmu, GIB, READ);
    (machine, mmu)
}

fn lay_out(machine: &mut Machine) {
    for (frame, pdptes) in [(1, OWN), (10, OTHER)] {
        pdptes.into_iter().enumerate().for_each(|(index, pdpte)| machine.poke(frame, index, pdpte));
    }
    machine.poke(2, 0, 0x3000 | ALL);
    machine.poke(4, 0, 0x3000 | ALL);
    machine.poke(3, 0, 0x9000 | ALL);
    machine.poke(3, 1, 0x1000 | ALL);
}

const ALL: u64 = P | W | U | A | D;

fn other() -> Paging {
    Paging { root: Gfn::new(10), ..pae(OTHER) }
}

fn offer(machine: &mut Machine, mmu: &mut Mmu) -> bool {
    let offered = mmu.allow_native_load(machine, VCPU);
    mmu.audit(machine).unwrap();
    offered
}

fn is_in_place<Q>(machine: &Machine, mmu: &Mmu<Q>, root: u64) -> bool {
    mmu.root(machine, VCPU).hpa().raw() == root << 12
}

#[test]
fn an_offered_root_lies_where_cr3_points_and_leads_where_it_led() {
    let (mut machine, mut mmu) = start(1);
    let before = mmu.counters().flushes;
    assert!(!is_in_place(&machine, &mmu, 1));
    assert!(offer(&mut machine, &mut mmu) && offer(&mut machine, &mut mmu));
    assert!(is_in_place(&machine, &mmu, 1) && mmu.is_loadable(VCPU, Gfn::new(1)));
    assert_eq!(hardware(&machine, &mmu, GIB), Seen::Page { gfn: 9, user: true, write: true });
    assert_eq!(hardware(&machine, &mmu, 0), Seen::NotPresent);
    assert!(mmu.counters().flushes > before, "the frame was writable");
    // Where the guest's own table lies now, its entries can be read, and not written unseen.
    settle(&mut machine, &mut mmu, GIB + 0x1000, READ);
    let seen = hardware(&machine, &mmu, GIB + 0x1000);
    assert_eq!(seen, Seen::Page { gfn: 1, user: true, write: false });
}

#[test]
fn a_load_without_an_exit_takes_the_pdptes_along() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    assert!(mmu.may_allow_native_load(&machine, VCPU, Gfn::new(10)));
    assert!(mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(10)));
    mmu.audit(&machine).unwrap();
    for (root, pdptes, mapped) in [(10, OTHER, 0), (1, OWN, GIB), (10, OTHER, 2 * GIB)] {
        mmu.switched(VCPU, Gfn::new(root));
        mmu.audit(&machine).unwrap();
        assert!(is_in_place(&machine, &mmu, root));
        let expected = Pdptes::checked(pdptes, &FEATURES).unwrap();
        assert_eq!(mmu.paging(VCPU).mode, Mode::Pae { pdptes: expected });
        settle(&mut machine, &mut mmu, mapped, READ);
        assert_eq!(hardware(&machine, &mmu, 3 * GIB), Seen::NotPresent);
    }
    // By an exit, too, it runs on the page that it may load.
    mmu.load_paging(&mut machine, VCPU, pae(OWN));
    mmu.audit(&machine).unwrap();
    assert!(is_in_place(&machine, &mmu, 1));
}

#[test]
fn a_write_to_the_frame_ends_it_and_the_registers_stay_what_they_were() {
    // To a PDPTE in use, to one that is not, and to what is none.
    for index in [1, 3, 100] {
        let (mut machine, mut mmu) = start(1);
        assert!(offer(&mut machine, &mut mmu));
        let epoch = mmu.roots_changed();
        store(&mut machine, &mut mmu, 1, index, 0x4001);
        assert!(!mmu.is_loadable(VCPU, Gfn::new(1)) && mmu.roots_changed() != epoch);
        assert!(!is_in_place(&machine, &mmu, 1));
        assert_eq!(hardware(&machine, &mmu, GIB), Seen::Page { gfn: 9, user: true, write: true });
        assert_eq!(hardware(&machine, &mmu, 3 * GIB), Seen::NotPresent);
        assert_eq!(*mmu.paging(VCPU), pae(OWN));
        // What memory says now is not what would be loaded, unless it was no PDPTE.
        assert_eq!(offer(&mut machine, &mut mmu), index == 100);
    }
}

/// What the real CR3 must hold is another page then.
#[test]
fn the_embedder_hears_that_a_root_is_left_which_it_had_withdrawn() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    mmu.withdraw_root(VCPU, Gfn::new(1));
    assert!(is_in_place(&machine, &mmu, 1), "the vCPU still runs on it");
    let epoch = mmu.roots_changed();
    store(&mut machine, &mut mmu, 1, 3, 0x4001);
    assert!(!is_in_place(&machine, &mmu, 1) && mmu.roots_changed() != epoch);
}

#[test]
fn the_guests_own_store_goes_on_after_one_exit() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    settle(&mut machine, &mut mmu, GIB + 0x1000, READ);
    let write = Access { kind: AccessKind::Write, ..READ };
    // Told from the shadow alone, and by a walk.
    assert_eq!(
        fault(&mut machine, &mut mmu, GIB + 0x1000, write),
        FaultOutcome::Resume(Work::Detach)
    );
    settle(&mut machine, &mut mmu, GIB + 0x1000, write);
    mmu.audit(&machine).unwrap();
}

#[test]
fn only_what_would_be_loaded_is_offered() {
    // Reserved bits, other values than the vCPU has, and what is no memory.
    for pdptes in [[0x2007, 0, 0, 0], [0, 0x4001, 0, 0], [0, 0x4000_0001, 0, 0]] {
        let (mut machine, mut mmu) = start(1);
        for (index, pdpte) in pdptes.into_iter().enumerate() {
            store(&mut machine, &mut mmu, 1, index, pdpte);
        }
        assert!(!offer(&mut machine, &mut mmu), "{pdptes:x?}");
        // From another root: that may load what can be loaded.
        mmu.load_paging(&mut machine, VCPU, other());
        let loadable = mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(1));
        mmu.audit(&machine).unwrap();
        assert_eq!(loadable, pdptes[1] == 0x4001, "{pdptes:x?}");
    }
}

#[test]
fn what_cr3_names_is_loaded_or_may_be_loaded_but_never_both_of_two() {
    let (mut machine, mut mmu) = start(1);
    mmu.load_paging(&mut machine, VCPU, other());
    assert!(mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(1)));
    // PDPTEs from somewhere else in that frame.
    mmu.load_paging(&mut machine, VCPU, pae([0x4001, 0, 0, 0]));
    mmu.audit(&machine).unwrap();
    assert!(!mmu.is_loadable(VCPU, Gfn::new(1)));
    assert!(!mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(1)));
    settle(&mut machine, &mut mmu, 0, READ);
}

#[test]
fn a_table_in_the_frame_ends_it() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    // The frame with the PDPTEs as a page table, in which A is set by the first walk.
    store(&mut machine, &mut mmu, 2, 1, 0x1000 | ALL);
    let outcome = fault(&mut machine, &mut mmu, GIB + 0x20_1000, Access::supervisor_read());
    mmu.audit(&machine).unwrap();
    assert!(matches!(outcome, FaultOutcome::Resume(_)), "{outcome:?}");
    assert!(!mmu.is_loadable(VCPU, Gfn::new(1)));
    assert_eq!(machine.peek(1, 1).raw() & A, A);
    assert!(!offer(&mut machine, &mut mmu));
}

/// Nothing has to be set in it, so it ends only while the shadow is being made.
#[test]
fn a_table_in_the_frame_that_is_accessed_already_ends_it_and_the_access_is_repeated() {
    let (mut machine, mut mmu) = start(1);
    store(&mut machine, &mut mmu, 2, 1, 0x1000 | ALL);
    store(&mut machine, &mut mmu, 1, 100, 0x9000 | ALL);
    assert!(offer(&mut machine, &mut mmu));
    let gva = GIB + 0x20_0000 + (100 << 12);
    let outcome = fault(&mut machine, &mut mmu, gva, READ);
    assert_eq!(outcome, FaultOutcome::Resume(Work::Raced));
    assert!(!mmu.is_loadable(VCPU, Gfn::new(1)) && !is_in_place(&machine, &mmu, 1));
    settle(&mut machine, &mut mmu, gva, READ);
    assert!(!offer(&mut machine, &mut mmu), "it is a table of another kind, too");
}

#[test]
fn no_root_is_offered_while_a_directory_is_unsync() {
    let mut machine = Machine::identical(2048, 256);
    lay_out(&mut machine);
    let config = config_with(|config| (config.loadable_roots, config.cr3_loads_exit) = (2, true));
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, pae(OWN));
    settle(&mut machine, &mut mmu, GIB, READ);
    mmu.release_frame(&mut machine, Gfn::new(2));
    assert!(!offer(&mut machine, &mut mmu) && mmu.has_unsync_tables());
    mmu.flush_guest(&mut machine);
    assert!(offer(&mut machine, &mut mmu));
}

#[test]
fn what_the_pdptes_reference_may_be_reclaimed_once_they_cannot_be_loaded() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    mmu.withdraw_root(VCPU, Gfn::new(1));
    mmu.load_paging(&mut machine, VCPU, Paging { root: Gfn::new(11), ..pae([0x4001, 0, 0, 0]) });
    mmu.zap_all(&mut machine);
    mmu.audit(&machine).unwrap();
    let built = mmu.counters().built;
    mmu.load_paging(&mut machine, VCPU, pae(OWN));
    assert_eq!(mmu.counters().built, built + 1, "the directory");
}

#[test]
fn a_root_stays_loadable_when_a_table_goes_that_no_pdpte_references() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    mmu.revoke(&mut machine, Gfn::new(3)..Gfn::new(4));
    mmu.audit(&machine).unwrap();
    assert!(mmu.is_loadable(VCPU, Gfn::new(1)));
}

#[test]
fn what_the_pdptes_reference_is_there_for_as_long_as_they_may_be_loaded() {
    let (mut machine, mut mmu) = start(1);
    mmu.load_paging(&mut machine, VCPU, other());
    assert!(mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(1)));
    mmu.load_paging(&mut machine, VCPU, Paging { root: Gfn::new(11), ..pae([0x4001, 0, 0, 0]) });
    // Nothing of it is in use now: all that can be reclaimed goes.
    mmu.zap_all(&mut machine);
    mmu.audit(&machine).unwrap();
    assert!(mmu.is_loadable(VCPU, Gfn::new(1)));
    mmu.switched(VCPU, Gfn::new(1));
    mmu.audit(&machine).unwrap();
    settle(&mut machine, &mut mmu, GIB, READ);
    // Without its directory it cannot be loaded.
    mmu.load_paging(&mut machine, VCPU, Paging { root: Gfn::new(11), ..pae([0x4001, 0, 0, 0]) });
    mmu.revoke(&mut machine, Gfn::new(2)..Gfn::new(3));
    mmu.audit(&machine).unwrap();
    assert!(!mmu.is_loadable(VCPU, Gfn::new(1)));
}

#[test]
fn another_vcpu_goes_on_with_the_registers_that_it_has() {
    let (mut machine, mut mmu) = start(2);
    for vcpu in [VCPU, OTHER_VCPU] {
        assert!(mmu.allow_native_load(&mut machine, vcpu));
    }
    mmu.audit(&machine).unwrap();
    assert_eq!(mmu.root(&machine, VCPU), mmu.root(&machine, OTHER_VCPU));
    store(&mut machine, &mut mmu, 1, 0, 0x4001);
    for vcpu in [VCPU, OTHER_VCPU] {
        assert!(!mmu.is_loadable(vcpu, Gfn::new(1)));
        assert_eq!(*mmu.paging(vcpu), pae(OWN));
    }
    assert_ne!(
        mmu.root(&machine, VCPU),
        mmu.root(&machine, OTHER_VCPU),
        "each has its own registers"
    );
}

/// Leaves tables unsync, and emulates what cannot be.
struct Unsync;

impl WritePolicy for Unsync {
    fn answer(&mut self, _: &TableWrite) -> Answer {
        Answer::Unsync
    }

    fn flushed(&mut self, _: UnsyncFlush) -> bool {
        true
    }
}

/// The guest runs on one of two roots that it could load by itself, and its page table is unsync.
fn start_unsync(cr3_loads_exit: bool, root: Paging) -> (Machine, Mmu<Unsync>) {
    let mut machine = Machine::identical(2048, 256);
    lay_out(&mut machine);
    machine.poke(3, 2, 0x3000 | ALL);
    let config = config_with(|config| {
        (config.loadable_roots, config.cr3_loads_exit) = (2, cr3_loads_exit);
        config.encodings = Encodings::not_present(FEATURES.maxphyaddr);
    });
    let mut mmu = Mmu::with_policy(config, &mut machine, Unsync).unwrap();
    mmu.load_paging(&mut machine, VCPU, pae(OWN));
    assert!(mmu.allow_native_load(&mut machine, VCPU));
    assert!(mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(10)));
    mmu.load_paging(&mut machine, VCPU, root);
    let table = if root.root == Gfn::new(10) { 0x2000 } else { GIB + 0x2000 };
    let write = Access { kind: AccessKind::Write, ..READ };
    while !matches!(hardware(&machine, &mmu, table), Seen::Page { write: true, .. }) {
        match fault(&mut machine, &mut mmu, table, write) {
            FaultOutcome::Resume(_) => (),
            FaultOutcome::TableWrite { .. } => break,
            outcome => panic!("{outcome:?}"),
        }
    }
    mmu.audit(&machine).unwrap();
    assert!(mmu.has_unsync_tables());
    (machine, mmu)
}

#[test]
fn roots_that_only_serve_reads_of_cr3_stay_while_tables_are_unsync() {
    for cr3_loads_exit in [false, true] {
        let (mut machine, mut mmu) = start_unsync(cr3_loads_exit, pae(OWN));
        assert_eq!(mmu.is_loadable(VCPU, Gfn::new(1)), cr3_loads_exit);
        mmu.load_paging(&mut machine, VCPU, pae(OWN));
        assert_eq!(mmu.root(&machine, VCPU).hpa().raw() == 0x1000, cr3_loads_exit);
        mmu.audit(&machine).unwrap();
    }
}

/// The guest has loaded the root in frame 10 by itself, and runs on it. The page for its registers
/// holds what it loaded by an exit.
fn on_another_root(vcpus: usize) -> (Machine, Mmu) {
    let (mut machine, mut mmu) = start(vcpus);
    assert!(offer(&mut machine, &mut mmu));
    assert!(mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(10)));
    mmu.switched(VCPU, Gfn::new(10));
    mmu.audit(&machine).unwrap();
    (machine, mmu)
}

#[test]
fn registers_are_never_trapping_while_a_table_is_unsync() {
    // The frame itself; a directory in use; a page table.
    for released in [10, 4, 3] {
        let (mut machine, mut mmu) = on_another_root(1);
        mmu.release_frame(&mut machine, Gfn::new(released));
        mmu.write_guest(&mut machine, Gfn::new(10).entry(100), &[0; 8]);
        // Panics with "VM entry would fail".
        hardware(&machine, &mmu, 0);
        mmu.audit(&machine).unwrap();
    }
}

#[test]
fn a_vcpu_may_have_loaded_its_own_root_again() {
    let (mut machine, mut mmu) = start(2);
    assert!(mmu.allow_native_load(&mut machine, OTHER_VCPU));
    machine.loaded_root = Some((OTHER_VCPU, Gfn::new(1)));
    mmu.release_frame(&mut machine, Gfn::new(2));
    // vCPU 1 has left the guest by now, but its own hypervisor thread waits for the MMU.
    mmu.write_guest(&mut machine, Gfn::new(1).entry(100), &[0; 8]);
    hardware(&machine, &mmu, 0);
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_store_to_pdptes_that_another_vcpu_loads_is_emulated_in_the_end() {
    let (mut machine, mut mmu) = start(2);
    machine.poke(3, 3, 0x1000 | ALL);
    settle(&mut machine, &mut mmu, GIB + 0x3000, READ);
    let write = Access { kind: AccessKind::Write, ..READ };
    let context = FaultContext::at(Gva::new(0x1000));
    let gone = (0..20).any(|_| {
        mmu.load_paging(&mut machine, VCPU, pae(OWN));
        mmu.allow_native_load(&mut machine, VCPU);
        let gva = Gva::new(GIB + 0x3000);
        let outcome = mmu.page_fault(&mut machine, OTHER_VCPU, gva, write, &context);
        matches!(outcome, FaultOutcome::TableWrite { .. })
    });
    assert!(gone);
}

#[test]
fn what_the_registers_held_before_binds_nothing() {
    let (mut machine, mut mmu) = on_another_root(1);
    mmu.withdraw_root(VCPU, Gfn::new(1));
    // The directory of the root in frame 1 is not used any more.
    mmu.revoke(&mut machine, Gfn::new(3)..Gfn::new(4));
    mmu.audit(&machine).unwrap();
    mmu.zap_all(&mut machine);
    mmu.audit(&machine).unwrap();
    // The vCPU goes on from its registers all the same.
    store(&mut machine, &mut mmu, 10, 100, 0);
    settle(&mut machine, &mut mmu, 0, READ);
    assert_eq!(hardware(&machine, &mmu, GIB), Seen::NotPresent);
}

#[test]
fn nothing_is_built_for_pdptes_that_cannot_be_loaded() {
    let (mut machine, mut mmu) = start(1);
    machine.poke(11, 0, 0x2007);
    let before = mmu.counters();
    assert!(!mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(11)));
    machine.poke(1, 0, 0x4001);
    assert!(!mmu.allow_native_load(&mut machine, VCPU));
    let after = mmu.counters();
    assert_eq!((after.built, after.flushes), (before.built, before.flushes));
}

#[test]
fn a_small_pool_has_no_room_for_them() {
    for (more, room) in [(10, false), (30, true)] {
        let mut machine = Machine::identical(2048, MIN_FRAMES_PER_VCPU as usize + more);
        lay_out(&mut machine);
        let config = config_with(|config| config.loadable_roots = 2);
        let mut mmu = Mmu::new(config, &mut machine).unwrap();
        mmu.load_paging(&mut machine, VCPU, pae(OWN));
        assert_eq!(mmu.allow_native_load(&mut machine, VCPU), room);
        mmu.load_paging(&mut machine, VCPU, other());
        assert_eq!(mmu.allow_native_load(&mut machine, VCPU), room);
        // Not a third.
        mmu.load_paging(&mut machine, VCPU, Paging { root: Gfn::new(12), ..pae([0; 4]) });
        assert!(!mmu.allow_native_load(&mut machine, VCPU));
        mmu.audit(&machine).unwrap();
    }
}

/// The page for the registers repeats the references that the vCPU has: none is new.
#[test]
fn the_registers_are_what_was_loaded_though_tables_are_unsync() {
    for cr3_loads_exit in [false, true] {
        let (mut machine, mut mmu) = start_unsync(cr3_loads_exit, other());
        settle(&mut machine, &mut mmu, 0, READ);
        store(&mut machine, &mut mmu, 10, 3, 0x4001);
        assert!(mmu.has_unsync_tables() && !is_in_place(&machine, &mmu, 10));
        assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 9, user: true, write: true });
        assert_eq!(hardware(&machine, &mmu, 3 * GIB), Seen::NotPresent);
    }
}
