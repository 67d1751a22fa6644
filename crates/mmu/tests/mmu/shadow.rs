//! The behaviour of the shadow MMU, seen from the hardware and from the guest.

use crate::common::*;
use umbra_mmu::{ConfigError, Encodings, FaultOutcome, Mmu, RootFormat, ShadowFrames, Work};
use umbra_paging::{Access, Gfn, Gpa, Gva, Mode, Paging, Pfec, bits};

fn start(frames: u64, pool: usize, build: impl FnOnce(&mut Machine)) -> (Machine, Mmu) {
    let mut machine = Machine::new(frames, pool);
    build(&mut machine);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    mmu.audit(&machine).unwrap();
    (machine, mmu)
}

#[test]
fn a_missing_guest_entry_is_absent_and_a_missing_shadow_is_pending() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | W | U);
    });
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Reserved);
    assert_eq!(hardware(&machine, &mmu, 1 << 39), Seen::NotPresent);
    assert_eq!(
        fault(&mut machine, &mut mmu, 0, Access::user_read()),
        FaultOutcome::Resume(Work::Link)
    );
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 9, user: true, write: false });
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::NotPresent);
}

#[test]
fn a_not_present_fault_above_which_nothing_was_linked_is_left_to_the_cpu() {
    let (mut machine, mut mmu) = start(64, 64, Machine::chain);
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Reserved);
    assert_eq!(
        fault(&mut machine, &mut mmu, 0, Access::user_read()),
        FaultOutcome::Resume(Work::Link)
    );
    assert_eq!(hardware(&machine, &mmu, 0), Seen::NotPresent);
    store(&mut machine, &mut mmu, 2, 0, 3 << 12 | P | W | U);
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Reserved, "A is clear above");
    assert!(matches!(
        fault(&mut machine, &mut mmu, 0, Access::user_read()),
        FaultOutcome::Guest(_)
    ));
    assert!(!machine.peek(2, 0).accessed());
}

#[test]
fn accessed_and_dirty_are_set_when_they_are_due() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | W | U);
        machine.poke(4, 1, 0xa000 | P | W | U);
    });
    fault(&mut machine, &mut mmu, 0, Access::user_read());
    assert!(machine.peek(4, 0).accessed() && !machine.peek(4, 0).dirty());
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::Reserved, "A is clear");
    assert_eq!(
        fault(&mut machine, &mut mmu, 0x1000, Access::user_read()),
        FaultOutcome::Resume(Work::Accessed)
    );
    assert_eq!(fault(&mut machine, &mut mmu, 0, user_write()), FaultOutcome::Resume(Work::Dirty));
    assert!(machine.peek(4, 0).dirty());
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 9, user: true, write: true });
}

#[test]
fn what_is_dirty_already_only_becomes_accessed() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | W | U | A | D);
        machine.poke(4, 1, 0xa000 | P | W | U | D);
    });
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    let outcome = fault(&mut machine, &mut mmu, 0x1000, user_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Accessed));
}

#[test]
fn a_write_to_a_table_is_followed_at_once() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 4 << 12 | P | W | U | A | D);
    });
    assert_eq!(
        fault(&mut machine, &mut mmu, 0, Access::user_read()),
        FaultOutcome::Resume(Work::Link)
    );
    assert_eq!(
        hardware(&machine, &mmu, 0),
        Seen::Page { gfn: 4, user: true, write: false },
        "tracked"
    );
    let gpa = Gpa::new(4 << 12 | 8);
    let outcome = fault(&mut machine, &mut mmu, 8, user_write());
    assert!(
        matches!(outcome, FaultOutcome::TableWrite { gpa: at, .. } if at == gpa),
        "{outcome:?}"
    );
    store(&mut machine, &mut mmu, 4, 1, 0xa000 | P | W | U | A | D);
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::Page { gfn: 10, user: true, write: true });
    store(&mut machine, &mut mmu, 4, 1, 0);
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::NotPresent);
}

#[test]
fn a_store_across_two_entries_changes_both() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | U | A);
    });
    fault(&mut machine, &mut mmu, 0, Access::user_read());
    let bytes = [0, 0, 0, 0, 0x25, 0xa0, 0, 0];
    mmu.write_guest(&mut machine, Gpa::new(0x400c), &bytes);
    mmu.audit(&machine).unwrap();
    assert_eq!(hardware(&machine, &mmu, 0x2000), Seen::Page { gfn: 10, user: true, write: false });
}

#[test]
fn guest_faults_carry_the_error_code_of_the_guests_tables() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | U);
        machine.poke(4, 1, 0x9000 | P | 1 << 45);
    });
    let pfec = |outcome| match outcome {
        FaultOutcome::Guest(fault) => fault.pfec,
        other => panic!("{other:?}"),
    };
    fault(&mut machine, &mut mmu, 0x5000, Access::user_read());
    let outcome = fault(&mut machine, &mut mmu, 0x5000, Access::user_read());
    assert_eq!(pfec(outcome), Pfec::USER);
    let outcome = fault(&mut machine, &mut mmu, 0, user_write());
    assert_eq!(pfec(outcome), Pfec::USER | Pfec::PRESENT | Pfec::WRITE);
    let outcome = fault(&mut machine, &mut mmu, 0x1000, Access::supervisor_read());
    assert_eq!(pfec(outcome), Pfec::PRESENT | Pfec::RSVD);
    assert!(!machine.peek(4, 0).accessed(), "an access that faults sets nothing");
}

#[test]
fn a_freed_table_becomes_data_by_no_exit() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | U | A);
        machine.poke(3, 1, 5 << 12 | P | W | U | A);
        machine.poke(5, 0, 4 << 12 | P | W | U | A | D);
    });
    fault(&mut machine, &mut mmu, 0, Access::user_read());
    fault(&mut machine, &mut mmu, 0x20_0000, Access::user_read());
    assert_eq!(
        hardware(&machine, &mmu, 0x20_0000),
        Seen::Page { gfn: 4, user: true, write: false }
    );
    let before = machine.flushes;
    store(&mut machine, &mut mmu, 3, 0, 0);
    assert!(machine.flushes > before, "what the CPU has cached of the table would be out of date");
    assert_eq!(hardware(&machine, &mmu, 0x20_0000), Seen::Page { gfn: 4, user: true, write: true });
    // As data it says nothing of any address; used as a table again, it counts as it is then.
    machine.poke(4, 1, 0xa000 | P | U | A);
    store(&mut machine, &mut mmu, 3, 0, 4 << 12 | P | W | U | A);
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::Reserved);
    settle(&mut machine, &mut mmu, 0x1000, Access::user_read());
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::Page { gfn: 10, user: true, write: false });
    // Tracked again: user mode may read it.
    assert_eq!(
        hardware(&machine, &mmu, 0x20_0000),
        Seen::Page { gfn: 4, user: true, write: false }
    );
}

/// Two tables in one store: neither is looked at until it is written.
#[test]
fn a_table_freed_with_another_becomes_data_by_one_exit() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | U | A);
        machine.poke(3, 1, 6 << 12 | P | W | U | A);
        machine.poke(3, 2, 5 << 12 | P | W | U | A);
        machine.poke(5, 0, 4 << 12 | P | W | U | A | D);
    });
    for gva in [0, 0x20_0000, 0x40_0000] {
        fault(&mut machine, &mut mmu, gva, Access::user_read());
    }
    mmu.write_guest(&mut machine, Gfn::new(3).entry(0), &[0; 16]);
    mmu.audit(&machine).unwrap();
    let outcome = fault(&mut machine, &mut mmu, 0x40_0000, user_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    assert_eq!(hardware(&machine, &mmu, 0x40_0000), Seen::Page { gfn: 4, user: true, write: true });
}

#[test]
fn a_large_page_is_mapped_whole_until_a_table_lies_inside() {
    let (mut machine, mut mmu) = start(2048, 64, |machine| {
        machine.chain();
        machine.poke(3, 1, 0x20_0000 | P | W | U | A | D | bits::PS);
        machine.poke(3, 2, 0x20_5000 | P | W | U | A);
        machine.poke(0x205, 0, 0x9000 | P | U | A);
    });
    fault(&mut machine, &mut mmu, 0x20_0000, user_write());
    assert_eq!(
        hardware(&machine, &mmu, 0x20_5000),
        Seen::Page { gfn: 0x205, user: true, write: true }
    );
    assert_eq!(mmu.counters().splits, 0);
    let before = machine.flushes;
    fault(&mut machine, &mut mmu, 0x40_0000, Access::user_read());
    assert!(machine.flushes > before, "protection is void without a flush");
    fault(&mut machine, &mut mmu, 0x20_6000, user_write());
    assert_eq!(
        hardware(&machine, &mmu, 0x20_6000),
        Seen::Page { gfn: 0x206, user: true, write: true }
    );
    assert_eq!(
        hardware(&machine, &mmu, 0x20_5000),
        Seen::Page { gfn: 0x205, user: true, write: false }
    );
    assert_eq!(mmu.counters().splits, 1);
    let before = machine.flushes;
    store(&mut machine, &mut mmu, 3, 1, 0);
    assert!(machine.flushes > before, "INVLPG would drop one small page of many");
}

#[test]
fn paging_off_runs_on_four_pdptes() {
    let mut machine = Machine::new(2048, 64);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    let root = mmu.root(&machine, VCPU);
    assert_eq!(root.format(), RootFormat::Pae);
    let frame = machine.frame(root.hpa());
    for index in 0..4 {
        let pdpte = machine.read_shadow(frame, index);
        assert_eq!(pdpte & !bits::ADDRESS, P, "PDPTE {index}");
    }
    let apic = 0xfee0_0020;
    for _ in 0..2 {
        let outcome = fault(&mut machine, &mut mmu, apic, supervisor_write());
        assert_eq!(outcome, FaultOutcome::Mmio { gpa: Gpa::new(apic) });
    }
    let outcome = fault(&mut machine, &mut mmu, 0x1000, supervisor_write());
    assert!(matches!(outcome, FaultOutcome::Resume(_)));
}

#[test]
fn wp_clear_lets_the_supervisor_write_and_user_mode_not() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | U | A);
    });
    mmu.load_paging(&mut machine, VCPU, Paging { wp: false, ..paging(1) });
    assert!(matches!(
        fault(&mut machine, &mut mmu, 0, supervisor_write()),
        FaultOutcome::Resume(_)
    ));
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 9, user: false, write: true });
    assert!(matches!(
        fault(&mut machine, &mut mmu, 0, Access::user_read()),
        FaultOutcome::Resume(_)
    ));
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 9, user: true, write: false });
    assert!(matches!(fault(&mut machine, &mut mmu, 0, user_write()), FaultOutcome::Guest(_)));
    let smap = Paging { wp: false, smap: true, ..paging(1) };
    mmu.load_paging(&mut machine, VCPU, smap);
    let override_write = Access { smap_override: true, ..supervisor_write() };
    let outcome = fault(&mut machine, &mut mmu, 0, override_write);
    assert_eq!(outcome, FaultOutcome::Override { gpa: Gpa::new(0x9000) });
}

#[test]
fn a_released_root_holds_no_absent_entry_until_the_guest_flushes() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 1 << 12 | P | W | U | A | D);
    });
    fault(&mut machine, &mut mmu, 0, Access::user_read());
    mmu.release_frame(&mut machine, Gfn::new(1));
    mmu.audit(&machine).unwrap();
    assert_eq!(hardware(&machine, &mmu, 1 << 39), Seen::Reserved);
    assert!(matches!(fault(&mut machine, &mut mmu, 0, user_write()), FaultOutcome::Resume(_)));
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 1, user: true, write: true });
    machine.poke(1, 1, 2 << 12 | P | W | U | A);
    mmu.invlpg(&mut machine, VCPU, Gva::new(0));
    mmu.audit(&machine).unwrap();
    assert_eq!(hardware(&machine, &mmu, 2 << 39), Seen::NotPresent);
    fault(&mut machine, &mut mmu, 1 << 39, Access::user_read());
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 1, user: true, write: false });
}

#[test]
fn revoked_memory_is_not_reachable() {
    let (mut machine, mut mmu) = start(64, 64, |machine| {
        machine.chain();
        machine.poke(4, 0, 0x9000 | P | W | U | A | D);
    });
    fault(&mut machine, &mut mmu, 0, user_write());
    mmu.revoke(&mut machine, Gfn::new(9)..Gfn::new(10));
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Reserved);
    machine.holes.push(9);
    mmu.audit(&machine).unwrap();
    assert_eq!(
        fault(&mut machine, &mut mmu, 0, user_write()),
        FaultOutcome::Mmio { gpa: Gpa::new(0x9000) }
    );
    mmu.revoke(&mut machine, Gfn::new(9)..Gfn::new(10));
    machine.holes.clear();
    assert!(matches!(fault(&mut machine, &mut mmu, 0, user_write()), FaultOutcome::Resume(_)));
}

#[test]
fn a_small_pool_reclaims_and_never_fails() {
    let (mut machine, mut mmu) = start(4096, 48, |machine| {
        machine.chain();
        for n in 0..256 {
            machine.poke(3, n as usize, (16 + n) << 12 | P | W | U | A);
            machine.poke(16 + n, 0, 0x9000 | P | U | A);
        }
    });
    for round in 0..2 {
        for n in 0..256 {
            assert_eq!(
                fault(&mut machine, &mut mmu, n << 21, Access::user_read()),
                FaultOutcome::Resume(Work::Link),
                "{round}"
            );
            assert_eq!(
                hardware(&machine, &mmu, n << 21),
                Seen::Page { gfn: 9, user: true, write: false }
            );
        }
    }
    assert!(mmu.counters().reclaimed > 400);
}

/// No fault leads through the root of a vCPU that does not run: it is the oldest page of all.
#[test]
fn the_root_of_an_idle_vcpu_is_not_reclaimed() {
    let mut machine = Machine::new(4096, 96);
    machine.chain();
    for n in 0..256 {
        machine.poke(3, n as usize, (16 + n) << 12 | P | W | U | A);
        machine.poke(16 + n, 0, 0x9000 | P | U | A);
    }
    let mut mmu = Mmu::new(config_with(|config| config.vcpus = 2), &mut machine).unwrap();
    let idle = mmu.load_paging(&mut machine, OTHER_VCPU, paging(5));
    mmu.load_paging(&mut machine, VCPU, paging(1));
    (0..256).for_each(|n| settle(&mut machine, &mut mmu, n << 21, Access::user_read()));
    assert!(mmu.counters().reclaimed > 100);
    assert_eq!(mmu.root(&machine, OTHER_VCPU), idle);
}

#[test]
fn trapping_leaves_nothing_to_the_cpu() {
    let mut machine = Machine::new(64, 64);
    machine.chain();
    let trap = config_with(|config| config.encodings = Encodings::not_present(FEATURES.maxphyaddr));
    let mut mmu = Mmu::new(trap, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    assert_eq!(hardware(&machine, &mmu, 0), Seen::NotPresent);
    assert!(matches!(
        fault(&mut machine, &mut mmu, 0, Access::user_read()),
        FaultOutcome::Guest(_)
    ));
}

#[test]
fn a_root_outside_memory_only_faults() {
    let (mut machine, mut mmu) = start(64, 64, |_| ());
    for root in [63, 64, (1 << 28) - 1] {
        machine.holes = vec![63];
        mmu.load_paging(&mut machine, VCPU, paging(root));
        mmu.audit(&machine).unwrap();
        let outcome = fault(&mut machine, &mut mmu, 0, Access::user_read());
        assert!(
            matches!(outcome, FaultOutcome::Guest(fault) if fault.pfec.contains(Pfec::RSVD)),
            "{root}"
        );
    }
    mmu.load_paging(&mut machine, VCPU, Paging { mode: Mode::Off, ..paging(0) });
    mmu.zap_all(&mut machine);
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_pool_that_is_too_small_is_refused_in_words() {
    let mut machine = Machine::new(64, 47);
    let error = Mmu::new(config(), &mut machine).err().unwrap();
    assert_eq!(error, ConfigError::TooFewFrames { frames: 47, needed: 48 });
    assert_eq!(error.to_string(), "47 shadow frames are too few: at least 48 are needed");
}
