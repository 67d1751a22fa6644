//! I4: while user protection faults go around the hypervisor, user mode has all of the guest's
//! rights.

use umbra_mmu::{FaultOutcome, FilterPolicy, GuestFaults, Mmu};
use umbra_paging::{Access, bits};

use crate::common::*;

#[test]
fn a_large_user_page_mapped_by_smaller_ones_holds_no_write_back_under_the_user_filter() {
    // A 2 MiB page of user mode has a page table (frame 600) inside, which five other entries map,
    // too: more than get their right to write back at once when the table is let go.
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(3, 1, 512 << 12 | P | W | U | A | D | bits::PS);
    machine.poke(3, 2, 600 << 12 | P | W | U | A);
    machine.poke(600, 0, 20 << 12 | P | W | U | A | D);
    (0..5).for_each(|n| machine.poke(4, n, 600 << 12 | P | W | A | D));
    machine.poke(4, 10, 30 << 12 | P | U | A);
    let config = config_with(|config| config.filter = FilterPolicy::Auto);
    let mut mmu = Mmu::new(config, &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 4 << 20, Access::user_read());
    settle(&mut machine, &mut mmu, 2 << 20, user_write());
    settle(&mut machine, &mut mmu, 0, Access::supervisor_read());
    let inside = (2 << 20) + ((600 - 512) << 12);
    settle(&mut machine, &mut mmu, inside, Access::user_read());
    store(&mut machine, &mut mmu, 3, 2, 0);
    for _ in 0..2 {
        let outcome = fault(&mut machine, &mut mmu, 10 << 12, user_write());
        assert!(matches!(outcome, FaultOutcome::Guest(_)), "{outcome:?}");
    }
    assert_eq!(mmu.guest_faults(), GuestFaults::User);
    assert_eq!(hardware(&machine, &mmu, inside), Seen::Reserved, "a user write there must exit");
    settle(&mut machine, &mut mmu, inside, user_write());
}
