//! Changes of the MMU that a review or `cargo xtask mutants` made, and that no other test here
//! noticed.

use crate::common::*;
use umbra_mmu::{FaultOutcome, FilterPolicy, GuestFaults, MIN_FRAMES_PER_VCPU, Mmu, ShadowFrames};
use umbra_paging::{Access, Features, Gfn, Hpa, Paging, bits};

const ALL: u64 = P | W | U | A | D;

fn start(machine: &mut Machine, paging: Paging) -> Mmu {
    let mut mmu = Mmu::new(config(), machine).unwrap();
    mmu.load_paging(machine, VCPU, paging);
    mmu
}

fn wp_clear() -> Paging {
    Paging { wp: false, ..paging(1) }
}

#[test]
fn what_lies_behind_every_revoked_region_is_asked_for_again() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(3, 4, 512 << 12 | ALL | bits::PS);
    machine.poke(3, 5, 1024 << 12 | ALL | bits::PS);
    let mut mmu = start(&mut machine, paging(1));
    settle(&mut machine, &mut mmu, 0x80_0000, Access::user_read());
    settle(&mut machine, &mut mmu, 0xa0_0000, Access::user_read());
    mmu.revoke(&mut machine, Gfn::new(512)..Gfn::new(1536));
    machine.holes.push(1025);
    settle(&mut machine, &mut mmu, 0xa0_0000, Access::user_read());
    assert_eq!(hardware(&machine, &mmu, 0xa0_1000), Seen::Reserved, "no memory is mapped there");
}

#[test]
fn a_write_to_a_device_sets_dirty_also_without_w() {
    let mut machine = Machine::new(256, 64);
    machine.chain();
    machine.holes.push(100);
    machine.poke(4, 5, 100 << 12 | P | U | A);
    let mut mmu = start(&mut machine, wp_clear());
    for access in [Access::supervisor_read(), supervisor_write()] {
        let outcome = fault(&mut machine, &mut mmu, 0x5000, access);
        assert!(matches!(outcome, FaultOutcome::Mmio { .. }), "{outcome:?}");
    }
    assert!(machine.peek(4, 5).dirty());
}

#[test]
fn the_form_for_a_supervisors_write_runs_no_code_under_smep() {
    let mut machine = Machine::new(256, 64);
    machine.chain();
    machine.poke(4, 5, 100 << 12 | P | U | A | D);
    let mut mmu = start(&mut machine, Paging { smep: true, ..wp_clear() });
    settle(&mut machine, &mut mmu, 0x5000, supervisor_write());
    let entry = machine.mapping_of(100).unwrap();
    assert_eq!(entry & (W | U | bits::NX), W | bits::NX, "user code would run as the supervisor");
}

#[test]
fn the_guests_tables_are_walked_while_one_is_unsync() {
    let mut machine = Machine::new(256, 64);
    machine.chain();
    machine.poke(4, 7, 3 << 12 | ALL);
    let mut mmu = start(&mut machine, paging(1));
    settle(&mut machine, &mut mmu, 0x7000, Access::user_read());
    mmu.release_frame(&mut machine, Gfn::new(4));
    settle(&mut machine, &mut mmu, 0x7000, Access::user_read());
    machine.poke(4, 7, 3 << 12 | ALL & !W);
    let outcome = fault(&mut machine, &mut mmu, 0x7000, user_write());
    assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
}

#[test]
fn one_vcpu_with_wp_clear_is_enough_against_the_user_filter() {
    let mut machine = Machine::new(256, 2 * MIN_FRAMES_PER_VCPU as usize);
    machine.chain();
    let config = config_with(|config| (config.vcpus, config.filter) = (2, FilterPolicy::User));
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    load_everywhere(&mut machine, &mut mmu, 2);
    assert_eq!(mmu.entry_state(&machine, VCPU).guest_faults, GuestFaults::User);
    mmu.load_paging(&mut machine, OTHER_VCPU, wp_clear());
    assert_eq!(mmu.entry_state(&machine, VCPU).guest_faults, GuestFaults::Present);
}

#[test]
fn what_is_remembered_of_one_root_is_not_said_of_another() {
    let mut machine = Machine::new(256, 64);
    machine.chain();
    machine.holes.extend([100, 101]);
    machine.poke(4, 5, 100 << 12 | ALL);
    for table in 10..13 {
        machine.poke(table, 0, (table + 1) << 12 | ALL);
    }
    machine.poke(13, 5, 101 << 12 | ALL);
    let mut mmu = start(&mut machine, paging(1));
    for (root, hole) in [(1, 100), (10, 101), (1, 100), (10, 101)] {
        mmu.load_paging(&mut machine, VCPU, paging(root));
        let outcome = fault(&mut machine, &mut mmu, 0x5000, Access::user_read());
        assert_eq!(outcome, FaultOutcome::Mmio { gpa: Gfn::new(hole).base() }, "root {root}");
    }
}

#[test]
fn nx_of_a_gib_page_stands_in_its_link() {
    let mut machine = Machine::new(1024, 64);
    machine.chain();
    machine.poke(2, 1, ALL | bits::PS | bits::NX);
    let config = config_with(|config| config.features = Features::new(40, true));
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 1 << 30 | 0x20_0000, Access::user_read());
    let root = machine.frame_at(mmu.entry_state(&machine, VCPU).root.hpa());
    let below = machine.frame_at(Hpa::new(machine.read_shadow(root, 0) & bits::ADDRESS));
    assert_eq!(machine.read_shadow(below, 1) & (P | bits::NX), P | bits::NX);
}

#[test]
fn a_large_page_of_read_only_memory_is_not_writable() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(3, 1, 512 << 12 | ALL | bits::PS);
    machine.read_only = 512..1024;
    let mut mmu = start(&mut machine, paging(1));
    let gva = 512 << 12;
    settle(&mut machine, &mut mmu, gva, Access::user_read());
    let page = Seen::Page { gfn: 512, user: true, write: false };
    assert_eq!(hardware(&machine, &mmu, gva), page);
    let outcome = fault(&mut machine, &mut mmu, gva, user_write());
    assert!(matches!(outcome, FaultOutcome::Mmio { .. }), "{outcome:?}");
    assert_eq!(hardware(&machine, &mmu, gva), page);
}

#[test]
fn a_write_across_two_pages_is_one_to_each() {
    let mut machine = Machine::new(256, 64);
    machine.chain();
    machine.poke(4, 0, 100 << 12 | ALL);
    let mut mmu = start(&mut machine, paging(1));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    let entry = 101 << 12 | ALL as u32;
    let bytes = [[0; 4], entry.to_le_bytes()].concat();
    mmu.write_guest(&mut machine, Gfn::new(3).entry(511) + 4, &bytes);
    mmu.audit(&machine).unwrap();
    assert_eq!(machine.peek(4, 0).frame(), Gfn::new(101));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Page { gfn: 101, user: true, write: true });
}

#[test]
fn a_revocation_leaves_alone_what_it_is_not_about() {
    let mut machine = Machine::new(256, 64);
    machine.chain();
    machine.poke(4, 5, 100 << 12 | ALL);
    let mut mmu = start(&mut machine, paging(1));
    settle(&mut machine, &mut mmu, 0x5000, Access::user_read());
    mmu.revoke(&mut machine, Gfn::new(101)..Gfn::new(102));
    let page = Seen::Page { gfn: 100, user: true, write: true };
    assert_eq!(hardware(&machine, &mmu, 0x5000), page);
}
