//! Entries that map nothing, and what a terminal fault may make of them (L1TF).

use crate::common::*;
use umbra_mmu::{Encodings, FaultContext, FaultOutcome, Mmu};
use umbra_paging::{Access, Gfn, Gva};

/// A host frame that is not the guest's: the first of the shadow pages, for example.
const SECRET: u64 = 0x8000_0000 >> 12;

fn start() -> (Machine, Mmu) {
    start_on(FEATURES.maxphyaddr)
}

/// A guest on a real CPU of this MAXPHYADDR.
fn start_on(maxphyaddr: u8) -> (Machine, Mmu) {
    let mut machine = Machine::new(64, 64);
    machine.chain();
    // Stored inverted as the guest's CPU would, this gfn would be the host frame.
    let gfn = !SECRET & ((1 << (FEATURES.maxphyaddr - 12)) - 1);
    machine.poke(4, 5, Gfn::new(gfn).base().raw() | P | W | U | A | D);
    let encodings = Encodings::reserved(maxphyaddr).unwrap();
    let mut mmu =
        Mmu::new(config_with(|config| config.encodings = encodings), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    (machine, mmu)
}

/// Whether an access to the device there leaves an entry that names the host frame.
fn leaves_a_hint(machine: Machine, mmu: Mmu) -> bool {
    leaves_a_hint_on(FEATURES.maxphyaddr, machine, mmu)
}

fn leaves_a_hint_on(maxphyaddr: u8, mut machine: Machine, mut mmu: Mmu) -> bool {
    for _ in 0..2 {
        let outcome = mmu.page_fault(
            &mut machine,
            VCPU,
            Gva::new(0x5000),
            Access::user_read(),
            &FaultContext::at(Gva::new(0)),
        );
        assert!(matches!(outcome, FaultOutcome::Mmio { .. }), "{outcome:?}");
    }
    machine.hints_at(SECRET, maxphyaddr)
}

#[test]
fn a_guest_cannot_make_an_entry_name_a_host_frame_of_its_choice() {
    let (machine, mmu) = start();
    assert!(!leaves_a_hint(machine, mmu));
}

#[test]
fn the_real_cpu_decides_what_an_entry_names() {
    for maxphyaddr in [41, 46, 51] {
        let (machine, mmu) = start_on(maxphyaddr);
        assert!(!leaves_a_hint_on(maxphyaddr, machine, mmu), "MAXPHYADDR {maxphyaddr}");
    }
}
