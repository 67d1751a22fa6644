//! Detached tables, and the progress of who writes them (I6).

use crate::common::*;
use umbra_mmu::policy::EmulateReachable;
use umbra_mmu::{FaultContext, FaultOutcome, Mmu};
use umbra_paging::{Access, Gfn, Gva};

const ALL: u64 = P | W | U | A | D;

/// The table maps the target of the write itself.
#[test]
fn another_vcpus_faults_are_no_progress_of_this_one() {
    let mut machine = Machine::new(2048, 128);
    machine.chain();
    machine.poke(4, 3, 4 << 12 | ALL);
    machine.poke(4, 5, 9 << 12 | ALL);
    // The other vCPU's own space.
    for t in 21..24 {
        machine.poke(t, 0, (t + 1) << 12 | ALL);
    }
    machine.poke(24, 2, 102 << 12 | ALL & !W);
    let mut mmu =
        Mmu::with_policy(config_with(|config| config.vcpus = 2), &mut machine, Detach).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    mmu.load_paging(&mut machine, OTHER_VCPU, paging(21));
    for round in 0..40 {
        let outcome = exit_at(&mut machine, &mut mmu, 0x1000, 3 << 12, supervisor_write());
        if matches!(outcome, FaultOutcome::TableWrite { .. }) {
            return;
        }
        let gva = if round % 2 == 0 { 2 << 12 } else { 7 << 12 };
        mmu.page_fault(
            &mut machine,
            OTHER_VCPU,
            Gva::new(gva),
            user_write(),
            &FaultContext::at(Gva::new(0x2000 + round)),
        );
    }
    panic!("no progress");
}

/// Two vCPUs are about to emulate writes, and cannot: each table is detached for its own write, in
/// whatever order they are released. None becomes unsync.
#[test]
fn a_release_is_of_its_own_write_whatever_happens_on_another_vcpu() {
    for order in [[0, 1], [1, 0]] {
        let mut machine = Machine::new(2048, 128);
        machine.chain();
        machine.poke(4, 0, 9 << 12 | ALL);
        machine.poke(3, 1, 5 << 12 | ALL);
        machine.poke(5, 0, 9 << 12 | ALL);
        machine.poke(3, 2, 6 << 12 | ALL);
        machine.poke(6, 4, 4 << 12 | ALL);
        machine.poke(6, 5, 5 << 12 | ALL);
        let config = config_with(|config| config.vcpus = 2);
        let mut mmu = Mmu::with_policy(config, &mut machine, EmulateReachable).unwrap();
        load_everywhere(&mut machine, &mut mmu, 2);
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        settle(&mut machine, &mut mmu, 1 << 21, Access::user_read());
        let tickets = [VCPU, OTHER_VCPU].map(|vcpu| {
            let n = vcpu.index() as u64;
            let (gva, rip) = (2 << 21 | (4 + n) << 12, 0x1000 + n);
            let context = FaultContext::at(Gva::new(rip));
            for _ in 0..4 {
                if let FaultOutcome::TableWrite { ticket, .. } =
                    mmu.page_fault(&mut machine, vcpu, Gva::new(gva), user_write(), &context)
                {
                    return ticket;
                }
            }
            panic!("the table is tracked");
        });
        order.iter().for_each(|&vcpu| mmu.release(&mut machine, tickets[vcpu]));
        assert_eq!((mmu.counters().detached, mmu.has_unsync_tables()), (2, false));
        mmu.audit(&machine).unwrap();
    }
}

/// Where an emulated instruction's stack lies is read for hints only; an unsync table may map it to
/// a device by now.
#[test]
fn a_stack_that_an_unsync_table_maps_is_no_ram_any_more() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(3, 1, 5 << 12 | ALL);
    machine.poke(4, 0, 9 << 12 | ALL);
    machine.poke(5, 0, 6 << 12 | ALL);
    machine.poke(3, 2, 6 << 12 | ALL);
    machine.poke(6, 0, 10 << 12 | ALL);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 2 << 21, Access::user_read());
    settle(&mut machine, &mut mmu, 1 << 21, Access::user_read());
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    mmu.release_frame(&mut machine, Gfn::new(4));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    machine.poke(4, 0, 0xfee00 << 12 | ALL);
    let context = FaultContext::at(Gva::new(0x1000)).with_stack(Gva::new(0x10));
    mmu.page_fault(&mut machine, VCPU, Gva::new(1 << 21), supervisor_write(), &context);
}

/// While a table above page tables is unsync all faults exit. What its entries were made from may be
/// narrower than what the guest's say now.
#[test]
fn a_unsync_table_may_be_narrower_than_the_guests() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 0, 9 << 12 | ALL);
    let large = umbra_paging::bits::PS | ALL & !W;
    machine.poke(3, 1, large);
    let config = config_with(|config| config.filter = umbra_mmu::FilterPolicy::User);
    let mut mmu = Mmu::with_policy(config, &mut machine, Detach).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    mmu.release_frame(&mut machine, Gfn::new(3));
    settle(&mut machine, &mut mmu, 1 << 21 | 9 << 12, Access::user_read());
    assert!(mmu.has_unsync_tables());
    machine.poke(3, 1, large | W);
    mmu.audit(&machine).unwrap();
    assert_eq!(mmu.guest_faults(), umbra_mmu::GuestFaults::Trap);
    mmu.flush_guest(&mut machine);
    mmu.audit(&machine).unwrap();
}

/// A new reference to a table that is followed leads to an unsync one below it: what that one kept
/// is old for the addresses that the reference adds.
#[test]
fn what_an_unsync_table_kept_serves_no_new_address_over_another_table() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.poke(4, 0, 9 << 12 | ALL);
    machine.poke(5, 0, 100 << 12 | ALL);
    let mut mmu = Mmu::with_policy(config(), &mut machine, Detach).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    mmu.release_frame(&mut machine, Gfn::new(3));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    machine.poke(3, 0, 5 << 12 | ALL);
    let entry = 2 << 12 | ALL;
    mmu.write_guest(&mut machine, Gfn::new(1).entry(5), &entry.to_le_bytes());
    assert_eq!(hardware(&machine, &mmu, 5 << 39), Seen::Reserved);
}
