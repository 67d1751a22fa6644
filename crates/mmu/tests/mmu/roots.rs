//! Roots that a vCPU loads without an exit: what the MMU offers, what it withdraws, and where the
//! frames lie.

use crate::common::*;
use umbra_mmu::{FilterPolicy, MIN_FRAMES_PER_VCPU, Mmu};
use umbra_paging::{Access, Gfn, Gva, Mode, Paging};

const READ: Access = Access::user_read();

/// Roots in frames 1 and 10 that share everything below, page tables in 4 and 5. Frame 9 is data,
/// and mapped.
fn start(loadable_roots: usize) -> (Machine, Mmu) {
    let mut machine = Machine::identical(2048, 64);
    machine.chain();
    machine.poke(10, 0, 2 << 12 | P | W | U | A);
    machine.poke(3, 1, 5 << 12 | P | W | U | A);
    machine.poke(4, 0, 0x9000 | P | W | U | A | D);
    machine.poke(4, 1, 0x1000 | P | W | U | A | D);
    machine.poke(5, 0, 0xa000 | P | W | U | A | D);
    let config = config_with(|config| {
        config.loadable_roots = loadable_roots;
        config.filter = FilterPolicy::Auto;
    });
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    (machine, mmu)
}

fn offer(machine: &mut Machine, mmu: &mut Mmu) -> bool {
    let offered = mmu.allow_native_load(machine, VCPU);
    mmu.audit(machine).unwrap();
    offered
}

#[test]
fn an_offered_root_lies_where_the_guests_cr3_points() {
    let (mut machine, mut mmu) = start(2);
    settle(&mut machine, &mut mmu, 0x1000, READ);
    assert_ne!(mmu.root(&machine, VCPU).hpa().raw(), 0x1000);
    assert!(offer(&mut machine, &mut mmu) && offer(&mut machine, &mut mmu));
    assert_eq!(mmu.root(&machine, VCPU).hpa().raw(), 0x1000);
    assert_eq!(mmu.counters().roots_moved, 1);
    // What mapped the guest's frame follows it at once; a tracked table is never writable.
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::Page { gfn: 1, user: true, write: false });
    // The guest's store to its root, wherever that lies now.
    store(&mut machine, &mut mmu, 1, 5, 2 << 12 | P | W | U | A);
    settle(&mut machine, &mut mmu, 5 << 39, READ);
}

#[test]
fn the_guest_switches_between_two_roots() {
    let (mut machine, mut mmu) = start(2);
    assert!(offer(&mut machine, &mut mmu));
    mmu.load_paging(&mut machine, VCPU, paging(10));
    assert!(offer(&mut machine, &mut mmu));
    let before = mmu.counters();
    for root in [1, 10, 1, 1, 10] {
        mmu.switched(VCPU, Gfn::new(root));
        mmu.audit(&machine).unwrap();
        assert_eq!(mmu.root(&machine, VCPU).hpa().raw(), root << 12);
        assert_eq!(mmu.paging(VCPU).root, Gfn::new(root));
        settle(&mut machine, &mut mmu, 0, READ);
    }
    assert_eq!(
        (mmu.counters().built, mmu.counters().flushes),
        (before.built + 3, before.flushes + 3)
    );
}

#[test]
#[should_panic(expected = "the CPU loads only what it was offered")]
fn a_root_that_was_not_offered_is_not_switched_to() {
    let (mut machine, mut mmu) = start(2);
    assert!(offer(&mut machine, &mut mmu));
    mmu.switched(VCPU, Gfn::new(10));
}

#[test]
fn there_is_room_for_so_many() {
    for room in 0..2 {
        let (mut machine, mut mmu) = start(room);
        assert_eq!(mmu.loadable_roots(), room);
        assert_eq!(offer(&mut machine, &mut mmu), room > 0);
        assert_eq!(mmu.counters().roots_moved, room as u64, "none moves for nothing");
        mmu.load_paging(&mut machine, VCPU, paging(10));
        assert!(!offer(&mut machine, &mut mmu));
        let before = mmu.roots_changed();
        mmu.withdraw_root(VCPU, Gfn::new(1));
        assert_eq!(mmu.roots_changed(), before, "the embedder knows");
        assert_eq!(offer(&mut machine, &mut mmu), room > 0);
        assert_eq!(
            (mmu.is_loadable(VCPU, Gfn::new(1)), mmu.is_loadable(VCPU, Gfn::new(10))),
            (false, room > 0)
        );
        let loadable = mmu.loadable(VCPU, Gfn::new(10)).map(|root| root.gfn());
        assert_eq!(
            (mmu.loadable(VCPU, Gfn::new(1)), loadable),
            (None, (room > 0).then_some(Gfn::new(10)))
        );
    }
}

#[test]
fn loadable_roots_leave_the_frames_that_one_instruction_needs() {
    for (vcpus, more, room) in [(1, 0, 0), (1, 3, 3), (1, 9, 4), (2, 5, 2)] {
        let pool = vcpus * MIN_FRAMES_PER_VCPU as usize + more;
        let config = config_with(|config| (config.vcpus, config.loadable_roots) = (vcpus, 4));
        let mmu = Mmu::new(config, &mut Machine::identical(2048, pool)).unwrap();
        assert_eq!(mmu.loadable_roots(), room, "{vcpus} vCPUs, {more} frames more than needed");
    }
}

#[test]
fn nothing_moves_for_a_root_that_has_no_room() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    let before = mmu.counters();
    assert!(!mmu.allow_native_load_of(&mut machine, VCPU, Gfn::new(10)));
    let now = mmu.counters();
    assert_eq!((now.built, now.roots_moved), (before.built, before.roots_moved));
}

#[test]
fn the_embedder_hears_of_a_root_that_moves_back() {
    let (mut machine, mut mmu) = start(2);
    assert!(offer(&mut machine, &mut mmu));
    mmu.withdraw_root(VCPU, Gfn::new(1));
    let before = mmu.roots_changed();
    mmu.revoke(&mut machine, Gfn::new(1)..Gfn::new(2));
    assert_ne!(mmu.root(&machine, VCPU).hpa().raw(), 0x1000, "the frame's place is needed");
    assert_ne!(mmu.roots_changed(), before);
}

/// What happens to the root in frame 1, which is loadable, while the guest runs on 10 or on 1:
/// whether it stays so.
fn after(current: u64, event: impl FnOnce(&mut Machine, &mut Mmu)) -> bool {
    let (mut machine, mut mmu) = start(2);
    assert!(offer(&mut machine, &mut mmu));
    mmu.load_paging(&mut machine, VCPU, paging(current));
    settle(&mut machine, &mut mmu, 0x1000, READ);
    let before = mmu.roots_changed();
    event(&mut machine, &mut mmu);
    mmu.audit(&machine).unwrap();
    let stays = mmu.is_loadable(VCPU, Gfn::new(1));
    assert!(stays || mmu.roots_changed() != before, "the embedder does not hear of it");
    if stays {
        mmu.switched(VCPU, Gfn::new(1));
        settle(&mut machine, &mut mmu, 0, READ);
    }
    stays
}

#[test]
fn a_root_is_withdrawn_as_soon_as_it_is_not_what_the_guest_would_load() {
    for current in [1, 10] {
        for change in [
            Paging { wp: false, ..paging(current) },
            Paging { nxe: false, ..paging(current) },
            Paging { smep: true, ..paging(current) },
            Paging { smap: true, ..paging(current) },
            Paging { mode: Mode::Off, ..paging(current) },
        ] {
            assert!(
                !after(current, |machine, mmu| {
                    mmu.load_paging(machine, VCPU, change);
                }),
                "{change:?}"
            );
        }
        assert!(!after(current, |machine, mmu| mmu.revoke(machine, Gfn::new(1)..Gfn::new(2))));
        // Any unsync table: its writes are seen at a flush of the guest only, which must exit.
        assert!(!after(current, |machine, mmu| mmu.release_frame(machine, Gfn::new(2))));
        let pge = Paging { pge: true, ..paging(current) };
        assert!(after(current, |machine, mmu| {
            mmu.load_paging(machine, VCPU, pge);
        }));
        assert!(after(current, |machine, mmu| mmu.zap_all(machine)), "roots in use stay");
        assert!(after(current, |machine, mmu| mmu.flush_guest(machine)));
        assert!(after(current, |machine, mmu| store(machine, mmu, 1, 7, 2 << 12 | P | A)));
    }
}

/// A freed root is used as data: its writes are seen as long as it is loadable, then it is
/// detached.
#[test]
fn a_freed_root_is_withdrawn_before_it_is_written_freely() {
    let (mut machine, mut mmu) = start(2);
    assert!(offer(&mut machine, &mut mmu));
    mmu.load_paging(&mut machine, VCPU, paging(10));
    settle(&mut machine, &mut mmu, 0x1000, READ);
    let before = mmu.roots_changed();
    let mut exits = 0;
    while !matches!(hardware(&machine, &mmu, 0x1000), Seen::Page { gfn: 1, write: true, .. }) {
        assert!(mmu.is_loadable(VCPU, Gfn::new(1)), "protected without a reason");
        for _ in 0..3 {
            mmu.page_fault(
                &mut machine,
                VCPU,
                Gva::new(0x1000 + 8 * exits),
                user_write(),
                &umbra_mmu::FaultContext::at(Gva::new(0x7000)).with_back_to_back(exits > 0),
            );
            mmu.audit(&machine).unwrap();
            exits += 1;
        }
        assert!(exits < 16);
    }
    assert!(!mmu.is_loadable(VCPU, Gfn::new(1)) && mmu.roots_changed() != before);
}

#[test]
fn the_frame_of_a_revoked_root_lies_where_it_lay() {
    let (mut machine, mut mmu) = start(2);
    assert!(offer(&mut machine, &mut mmu));
    mmu.revoke(&mut machine, Gfn::new(1)..Gfn::new(2));
    mmu.audit(&machine).unwrap();
    assert_ne!(mmu.root(&machine, VCPU).hpa().raw(), 0x1000, "the root in use has moved away");
    settle(&mut machine, &mut mmu, 0, READ);
    assert!(offer(&mut machine, &mut mmu), "and can come back");
}

#[test]
fn no_root_is_offered_while_a_table_is_unsync() {
    let (mut machine, mut mmu) = start(2);
    settle(&mut machine, &mut mmu, 0, READ);
    mmu.release_frame(&mut machine, Gfn::new(4));
    assert!(mmu.has_unsync_tables() && !offer(&mut machine, &mut mmu));
    mmu.flush_guest(&mut machine);
    assert!(offer(&mut machine, &mut mmu));
}

/// A root in a frame that lies elsewhere, or in none, cannot be where the guest's CR3 points.
#[test]
fn roots_elsewhere_are_not_offered() {
    let (mut machine, mut mmu) = start(2);
    mmu.revoke(&mut machine, Gfn::new(77)..Gfn::new(78));
    machine.holes.push(77);
    for root in [77, 5000] {
        mmu.load_paging(&mut machine, VCPU, paging(root));
        assert!(!offer(&mut machine, &mut mmu));
    }
    mmu.load_paging(&mut machine, VCPU, Paging { mode: Mode::Off, ..paging(1) });
    assert!(!offer(&mut machine, &mut mmu));
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    let mut mmu = Mmu::new(config_with(|config| config.loadable_roots = 2), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    assert!(!offer(&mut machine, &mut mmu), "guest frame 1 lies in another host frame");
}

fn allow_other(machine: &mut Machine, mmu: &mut Mmu, root: u64) -> bool {
    let expected = mmu.may_allow_native_load(machine, VCPU, Gfn::new(root));
    let offered = mmu.allow_native_load_of(machine, VCPU, Gfn::new(root));
    assert!(expected || !offered, "what is not expected is not offered");
    mmu.audit(machine).unwrap();
    assert_eq!(offered, mmu.is_loadable(VCPU, Gfn::new(root)));
    offered
}

#[test]
fn a_root_that_was_never_loaded_is_switched_to() {
    let (mut machine, mut mmu) = start(2);
    settle(&mut machine, &mut mmu, 0, READ);
    assert!(offer(&mut machine, &mut mmu) && !mmu.knows_root(VCPU, Gfn::new(10)));
    assert!(allow_other(&mut machine, &mut mmu, 10) && mmu.knows_root(VCPU, Gfn::new(10)));
    assert_eq!(mmu.paging(VCPU).root, Gfn::new(1), "the vCPU runs where it ran");
    assert_eq!(mmu.root(&machine, VCPU).hpa().raw(), 0x1000);
    mmu.switched(VCPU, Gfn::new(10));
    assert_eq!(mmu.root(&machine, VCPU).hpa().raw(), 0xa000);
    // What the two roots share is there already.
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 9, user: true, write: true });
    // Its writes are seen from the start.
    mmu.switched(VCPU, Gfn::new(1));
    store(&mut machine, &mut mmu, 10, 0, 0);
    mmu.switched(VCPU, Gfn::new(10));
    assert_eq!(hardware(&machine, &mmu, 0), Seen::NotPresent);
    assert!(
        allow_other(&mut machine, &mut mmu, 10) && allow_other(&mut machine, &mut mmu, 1),
        "again"
    );
}

#[test]
fn another_root_is_not_offered_where_it_cannot_be_loaded() {
    let (mut machine, mut mmu) = start(1);
    assert!(offer(&mut machine, &mut mmu));
    assert!(!allow_other(&mut machine, &mut mmu, 10), "there is no room");
    assert!(mmu.may_allow_native_load(&machine, VCPU, Gfn::new(10)), "once another is withdrawn");
    let (mut machine, mut mmu) = start(2);
    mmu.revoke(&mut machine, Gfn::new(77)..Gfn::new(78));
    machine.holes.push(77);
    for nowhere in [77, 5000, u64::MAX >> 12] {
        assert!(!allow_other(&mut machine, &mut mmu, nowhere));
        assert!(!mmu.may_allow_native_load(&machine, VCPU, Gfn::new(nowhere)));
        assert!(!mmu.knows_root(VCPU, Gfn::new(nowhere)));
    }
    settle(&mut machine, &mut mmu, 0, READ);
    mmu.release_frame(&mut machine, Gfn::new(4));
    assert!(!allow_other(&mut machine, &mut mmu, 10), "a table is unsync");
    mmu.flush_guest(&mut machine);
    assert!(allow_other(&mut machine, &mut mmu, 10));
    mmu.load_paging(&mut machine, VCPU, Paging { mode: Mode::Off, ..paging(1) });
    assert!(!allow_other(&mut machine, &mut mmu, 10), "paging is off");
}

/// A table that was detached is out of date until it is attached.
#[test]
fn another_root_that_is_detached_is_attached() {
    let (mut machine, mut mmu) = start(2);
    mmu.load_paging(&mut machine, VCPU, paging(10));
    settle(&mut machine, &mut mmu, 0, READ);
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0, READ);
    assert!(mmu.knows_root(VCPU, Gfn::new(10)));
    // Nothing leads to it: it is let go of at the first write.
    settle(&mut machine, &mut mmu, 0x20_0000, user_write());
    assert!(!mmu.knows_root(VCPU, Gfn::new(10)));
    machine.poke(10, 0, 0);
    assert!(allow_other(&mut machine, &mut mmu, 10) && mmu.knows_root(VCPU, Gfn::new(10)));
    mmu.switched(VCPU, Gfn::new(10));
    assert_eq!(hardware(&machine, &mmu, 0), Seen::NotPresent);
}

/// What the CPUs have cached of a frame, and of the shadow page that takes its place, is flushed
/// before they change places: the flushes up to then, from when nothing maps the frame any more.
fn flushes_before_a_move(mut machine: Machine, mut mmu: Mmu) -> u64 {
    settle(&mut machine, &mut mmu, 0x1000, READ);
    machine.flushes = 0;
    assert!(mmu.allow_native_load(&mut machine, VCPU));
    machine.flushes_at_exchange.expect("the root has moved")
}

#[test]
fn a_frame_moves_after_a_flush() {
    let (machine, mmu) = start(2);
    assert!(flushes_before_a_move(machine, mmu) > 0);
}
