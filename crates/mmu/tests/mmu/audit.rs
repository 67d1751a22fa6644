//! The auditor sees what is wrong: each test makes a good state bad behind the MMU's back.

use crate::common::*;
use umbra_mmu::{FaultOutcome, Invariant, Mmu, ShadowFrame, ShadowFrames};
use umbra_paging::{Access, Gfn, GuestEntry, Gva, Level, Mode, Paging, bits};

struct Good {
    machine: Machine,
    mmu: Mmu,
}

impl Good {
    /// Guest memory of two regions and a bit, with tables that are the test's; root 1.
    fn new(build: impl FnOnce(&mut Machine)) -> Good {
        let mut machine = Machine::new(2048, 64);
        machine.chain();
        build(&mut machine);
        let mut mmu = Mmu::new(config(), &mut machine).unwrap();
        mmu.load_paging(&mut machine, VCPU, paging(1));
        mmu.audit(&machine).unwrap();
        Good { machine, mmu }
    }

    fn settle(&mut self, gva: u64, access: Access) {
        settle(&mut self.machine, &mut self.mmu, gva, access);
    }

    /// Lets the shadow learn that there is a device.
    fn settle_device(&mut self, gva: u64) {
        for _ in 0..2 {
            let outcome = fault(&mut self.machine, &mut self.mmu, gva, Access::user_read());
            assert!(matches!(outcome, FaultOutcome::Mmio { .. }), "{outcome:?}");
        }
    }

    /// Where the shadow entry for `gva` stands that the hardware reads at `level`.
    fn slot(&self, gva: u64, level: Level) -> (ShadowFrame, usize) {
        let mut frame = self.machine.frame(self.mmu.root(&self.machine, VCPU).hpa());
        for above in [Level::L4, Level::L3, Level::L2, Level::L1] {
            let index = Gva::new(gva).index(above);
            if above == level {
                return (frame, index);
            }
            let entry = GuestEntry::new(self.machine.read_shadow(frame, index));
            assert!(entry.present() && !entry.is_leaf(above), "{gva:#x} has no table at {level:?}");
            frame = self.machine.frame(umbra_paging::Hpa::new(entry.frame().base().raw()));
        }
        unreachable!("all levels were tried")
    }

    /// Expects one violation after the shadow entry was changed, and none after it was put back.
    #[track_caller]
    fn refuses(
        &mut self,
        (frame, index): (ShadowFrame, usize),
        change: impl Fn(u64) -> u64,
        expected: Invariant,
    ) -> String {
        self.mmu.audit(&self.machine).unwrap();
        let good = self.machine.read_shadow(frame, index);
        self.machine.write_shadow(frame, index, change(good));
        let sentence = self.violation(expected);
        self.machine.write_shadow(frame, index, good);
        self.mmu.audit(&self.machine).unwrap();
        sentence
    }

    #[track_caller]
    fn violation(&mut self, expected: Invariant) -> String {
        let violation = self.mmu.audit(&self.machine).expect_err("the auditor is content");
        assert_eq!(violation.invariant, expected, "{violation}");
        violation.to_string()
    }
}

fn trap_entry() -> u64 {
    config().encodings.probes()[0]
}

#[test]
fn an_absent_entry_that_the_guest_has_filled() {
    let mut good = Good::new(|machine| machine.poke(4, 0, 0x9000 | P | U | A));
    good.settle(0, Access::user_read());
    good.machine.poke(4, 1, 0xa000 | P | U | A);
    let sentence = good.violation(Invariant::NeverStale);
    assert!(sentence.starts_with("I1 (never stale): "), "{sentence}");
    // The log of changes cannot know of a change that should have been made.
    good.machine.poke(4, 1, 0);
    good.mmu.audit(&good.machine).unwrap();
}

#[test]
fn a_page_with_more_than_the_guest_gives() {
    let mut good = Good::new(|machine| {
        machine.poke(4, 0, 0x9000 | P | A | bits::NX);
        machine.poke(3, 1, 0x20_0000 | P | A | bits::PS);
    });
    for (gva, level, next) in [(0, Level::L1, 1 << 12), (0x20_0000, Level::L2, 1 << 21)] {
        good.settle(gva, Access::supervisor_read());
        let slot = good.slot(gva, level);
        let mut wider = vec![W, U, bits::G, next];
        if level == Level::L1 {
            wider.push(bits::NX);
        } else {
            wider.push(bits::PS);
        }
        for bit in wider {
            let sentence = good.refuses(slot, |entry| entry ^ bit, Invariant::NeverWider);
            assert!(sentence.starts_with("I2 (never wider): "), "{sentence}");
        }
    }
}

#[test]
fn a_link_to_another_page_or_with_more_rights() {
    let mut good = Good::new(|machine| {
        machine.poke(4, 0, 0x9000 | P | U | A);
        machine.poke(2, 0, 3 << 12 | P | A | bits::NX);
    });
    good.settle(0, Access::supervisor_read());
    let root = good.machine.frame(good.mmu.root(&good.machine, VCPU).hpa());
    let elsewhere = good.machine.hpa(root).raw();
    let slot = good.slot(0, Level::L3);
    for bit in [W, U, bits::NX, bits::PS] {
        good.refuses(slot, |entry| entry ^ bit, Invariant::NeverWider);
    }
    good.refuses(slot, |entry| entry & !bits::ADDRESS | elsewhere, Invariant::NeverWider);
}

#[test]
fn an_entry_and_its_list_that_do_not_agree() {
    let mut good = Good::new(|machine| machine.poke(4, 0, 0x9000 | P | U | A));
    good.settle(0, Access::user_read());
    let (mapped, absent) = (good.slot(0, Level::L1), good.slot(0x1000, Level::L1));
    let entry = good.machine.read_shadow(mapped.0, mapped.1);
    for none in [0, trap_entry()] {
        let sentence = good.refuses(mapped, |_| none, Invariant::Lifetime);
        assert!(
            sentence.starts_with("I5 (lifetime): ") && sentence.contains("stands in"),
            "{sentence}"
        );
    }
    good.refuses(absent, |_| entry, Invariant::Lifetime);
    // Trapping is always right.
    good.machine.write_shadow(absent.0, absent.1, trap_entry());
    good.mmu.audit(&good.machine).unwrap();
}

#[test]
fn a_page_that_the_guest_has_taken_away() {
    let mut good = Good::new(|machine| machine.poke(4, 0, 0x9000 | P | U | A));
    good.settle(0, Access::user_read());
    for gone in [0, 0x9000 | U, 0x9000 | P | U, 0x9000 | P | U | A | 1 << 45] {
        good.machine.poke(4, 0, gone);
        good.violation(Invariant::NeverWider);
    }
}

#[test]
fn without_a_log_only_the_whole_is_looked_at() {
    let mut machine = Machine::new(64, 64);
    machine.chain();
    machine.poke(4, 0, 0x9000 | P | U | A);
    let mut mmu = Mmu::new(config_with(|config| config.log_changes = false), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    machine.poke(4, 1, 0xa000 | P | U | A);
    mmu.audit_changed(&machine).unwrap();
    assert_eq!(mmu.audit(&machine).unwrap_err().invariant, Invariant::NeverStale);
    mmu.zap_all(&mut machine);
    mmu.audit(&machine).unwrap();
}

#[test]
fn a_table_that_is_mapped_writable() {
    // Of the supervisor: for user mode it would be Trapping from then on, not read-only.
    let mut good = Good::new(|machine| machine.poke(4, 0, 5 << 12 | P | W | A | D));
    good.settle(0, supervisor_write());
    // Now frame 5 becomes a table. Its shadow is audited before the page that maps it.
    let mapped = good.slot(0, Level::L1);
    good.mmu.load_paging(&mut good.machine, VCPU, paging(5));
    let sentence = good.refuses(mapped, |entry| entry | W, Invariant::NeverStale);
    assert!(sentence.contains("maps the table Gfn(0x5) writable"), "{sentence}");
}

#[test]
fn a_device_where_the_guest_has_memory_or_gives_less() {
    let mut good = Good::new(|machine| {
        machine.holes.push(9);
        machine.poke(4, 0, 0x9000 | P | U | A);
    });
    good.settle_device(0);
    let slot = good.slot(0, Level::L1);
    good.refuses(slot, |entry| entry | W, Invariant::NeverWider);
    good.machine.poke(4, 0, 0xa000 | P | U | A);
    good.violation(Invariant::NeverWider);
    // After a change of the map it counts no longer, whatever it says.
    good.mmu.revoke(&mut good.machine, Gfn::new(0x20)..Gfn::new(0x21));
    good.mmu.audit(&good.machine).unwrap();
}

/// As a TLB may keep a page, an unsync table may keep a device.
#[test]
fn a_device_in_an_unsync_table_that_the_guest_has_changed_since() {
    let mut good = Good::new(|machine| {
        machine.holes.push(9);
        machine.poke(4, 0, 0x9000 | P | U | A);
    });
    good.settle_device(0);
    good.mmu.release_frame(&mut good.machine, Gfn::new(4));
    good.settle_device(0);
    good.machine.poke(4, 0, 0);
    good.mmu.audit(&good.machine).unwrap();
    good.mmu.flush_guest(&mut good.machine);
    good.mmu.audit(&good.machine).unwrap();
}

#[test]
fn a_unsync_table_that_leads_to_memory_that_is_gone() {
    for (table, gva, frame) in [(4, 0, 9), (3, 0x20_0000, 0x2ff)] {
        let mut good = Good::new(|machine| {
            machine.poke(4, 0, 0x9000 | P | U | A);
            machine.poke(3, 1, 0x20_0000 | P | U | A | bits::PS);
        });
        good.settle(gva, Access::user_read());
        good.mmu.release_frame(&mut good.machine, Gfn::new(table));
        good.settle(gva, Access::user_read());
        good.machine.poke(
            table,
            Gva::new(gva).index(if table == 4 { Level::L1 } else { Level::L2 }),
            0,
        );
        good.mmu.audit(&good.machine).expect("what a TLB may keep, an unsync table may keep");
        good.machine.holes.push(frame);
        let sentence = good.violation(Invariant::NeverWider);
        assert!(sentence.contains("of a table that is out of date leads elsewhere"), "{sentence}");
        good.machine.holes.clear();
        good.mmu.audit(&good.machine).unwrap();
    }
}

#[test]
fn a_region_whose_memory_has_changed() {
    let mut good = Good::new(|machine| machine.poke(3, 1, 0x20_0000 | P | U | A | bits::PS));
    good.settle(0x20_0000, Access::user_read());
    good.machine.holes.push(0x2ff);
    let sentence = good.violation(Invariant::Lifetime);
    assert!(sentence.contains("is remembered"), "{sentence}");
    good.mmu.revoke(&mut good.machine, Gfn::new(0x2ff)..Gfn::new(0x300));
    good.mmu.audit(&good.machine).unwrap();
}

#[test]
fn identity_pages_below_a_large_page_with_more_than_it_gives() {
    // A table inside the large page splits it; when the table is gone, the link may stay as it is.
    let mut good = Good::new(|machine| {
        machine.poke(3, 1, 0x20_0000 | P | U | A | bits::PS);
        machine.poke(3, 2, 0x20_5000 | P | W | U | A);
    });
    fault(&mut good.machine, &mut good.mmu, 0x40_0000, Access::user_read());
    good.settle(0x20_0000, Access::user_read());
    assert_eq!(good.mmu.counters().splits, 1);
    let link = good.slot(0x20_0000, Level::L2);
    good.refuses(link, |entry| entry | W, Invariant::NeverWider);
    store(&mut good.machine, &mut good.mmu, 3, 2, 0);
    good.mmu.revoke(&mut good.machine, Gfn::new(0x205)..Gfn::new(0x206));
    good.settle(0x20_0000, Access::user_read());
    let link = good.slot(0x20_0000, Level::L2);
    good.refuses(link, |entry| entry | W, Invariant::NeverWider);
}

#[test]
fn pdptes_of_a_guest_without_paging() {
    let mut good = Good::new(|_| ());
    good.mmu.load_paging(&mut good.machine, VCPU, Paging { mode: Mode::Off, ..paging(0) });
    let root = good.machine.frame(good.mmu.root(&good.machine, VCPU).hpa());
    good.refuses((root, 1), |_| trap_entry(), Invariant::Lifetime);
    let second = good.machine.read_shadow(root, 1);
    good.refuses((root, 0), |_| second, Invariant::NeverWider);
}

#[test]
fn more_changes_than_the_log_holds_are_a_reason_to_look_at_everything() {
    let mut good = Good::new(|machine| machine.poke(4, 0, 0x9000 | P | U | A));
    good.settle(0, Access::user_read());
    // A change that the log does not have.
    good.machine.poke(4, 1, 0xa000 | P | U | A);
    good.mmu.audit_changed(&good.machine).unwrap();
    // Every new root is a page of entries.
    for root in 0x20..0x40 {
        good.mmu.load_paging(&mut good.machine, VCPU, paging(root));
    }
    let violation = good.mmu.audit_changed(&good.machine).unwrap_err();
    assert_eq!(violation.invariant, Invariant::NeverStale);
    good.machine.poke(4, 1, 0);
    good.mmu.audit_changed(&good.machine).unwrap();
    // Empty again, it holds the next ones.
    good.machine.poke(4, 1, 0xa000 | P | U | A);
    good.mmu.audit_changed(&good.machine).unwrap();
}

/// States that only a broken rule leads to. `cargo xtask sabotage` expects these tests to fail with
/// the auditor's sentence; here they show that the rule is kept.
mod broken {
    use umbra_mmu::FaultContext;

    use super::*;

    #[test]
    fn a_large_page_over_a_table() {
        let mut good = Good::new(|machine| {
            machine.poke(3, 1, 0x20_0000 | P | U | A | bits::PS);
            machine.poke(3, 2, 0x20_5000 | P | W | U | A);
        });
        fault(&mut good.machine, &mut good.mmu, 0x40_0000, Access::user_read());
        let context = FaultContext::at(Gva::new(0));
        good.mmu.page_fault(
            &mut good.machine,
            VCPU,
            Gva::new(0x20_0000),
            Access::user_read(),
            &context,
        );
        good.mmu.audit(&good.machine).unwrap();
    }

    #[test]
    fn a_trapping_pdpte() {
        let mut good = Good::new(|_| ());
        good.mmu.load_paging(&mut good.machine, VCPU, Paging { mode: Mode::Off, ..paging(0) });
        good.mmu.zap_all(&mut good.machine);
        good.mmu.audit(&good.machine).unwrap();
    }

    #[test]
    fn a_link_to_a_page_that_is_gone() {
        let mut good = Good::new(|machine| machine.poke(4, 0, 0x9000 | P | U | A));
        good.settle(0, Access::user_read());
        good.mmu.revoke(&mut good.machine, Gfn::new(4)..Gfn::new(5));
        good.mmu.audit(&good.machine).unwrap();
    }
}
