//! Guests with PAE and 32-bit paging, on PAE shadow tables.

use crate::common::*;
use umbra_mmu::policy::{Answer, EmulateReachable, TableWrite, WritePolicy};
use umbra_mmu::{FaultOutcome, Mmu, RootFormat, Work};
use umbra_paging::{
    Access, AccessKind, Format, Gfn, Gpa, Gva, Mode, Paging, Pdptes, Pfec, bits, walk,
};

const PS: u64 = bits::PS;
const ALL: u64 = P | W | U | A | D;

fn legacy(root: u64, pse: bool) -> Paging {
    Paging { mode: Mode::Legacy32 { pse }, nxe: false, ..paging(root) }
}

fn start<Q: WritePolicy>(
    policy: Q,
    paging: Paging,
    build: impl FnOnce(&mut Machine),
) -> (Machine, Mmu<Q>) {
    let mut machine = Machine::new(0x800, 64);
    build(&mut machine);
    let mut mmu = Mmu::with_policy(config(), &mut machine, policy).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging);
    mmu.audit(&machine).unwrap();
    (machine, mmu)
}

/// A PAE guest with a directory in frame 2, for the second GiB, and a table in frame 3.
fn pae_chain(machine: &mut Machine) {
    machine.poke(2, 0, 0x3000 | ALL);
    machine.poke(3, 0, 0x9000 | P | W | U);
}

const GIB: u64 = 1 << 30;

fn pfec(outcome: FaultOutcome) -> Pfec {
    match outcome {
        FaultOutcome::Guest(fault) => fault.pfec,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pae_guest_runs_on_its_pdptes() {
    let (mut machine, mut mmu) = start(EmulateReachable, pae([0, 0x2001, 0, 0]), pae_chain);
    assert_eq!(mmu.root(&machine, VCPU).format(), RootFormat::Pae);
    for gib in [0, 2, 3] {
        assert_eq!(hardware(&machine, &mmu, gib * GIB), Seen::NotPresent);
    }
    assert_eq!(hardware(&machine, &mmu, GIB), Seen::Reserved);
    assert_eq!(
        fault(&mut machine, &mut mmu, GIB, Access::user_read()),
        FaultOutcome::Resume(Work::Link)
    );
    assert_eq!(hardware(&machine, &mmu, GIB), Seen::Page { gfn: 9, user: true, write: false });
    assert_eq!(fault(&mut machine, &mut mmu, GIB, user_write()), FaultOutcome::Resume(Work::Dirty));
    assert_eq!(machine.peek(3, 0).raw(), 0x9000 | ALL);
    assert_eq!(hardware(&machine, &mmu, GIB + 0x1000), Seen::NotPresent);
    let outcome = fault(&mut machine, &mut mmu, 3 * GIB, Access::user_read());
    assert_eq!(pfec(outcome), Pfec::USER, "a fault that the CPU delivers, if it ever exits");
}

#[test]
fn a_write_to_a_page_directory_is_followed_and_never_detaches_it() {
    let (mut machine, mut mmu) = start(Detach, pae([0x2001, 0x2001, 0, 0]), pae_chain);
    machine.poke(3, 1, 0x2000 | ALL);
    settle(&mut machine, &mut mmu, 0x1000, Access::user_read());
    let outcome = fault(&mut machine, &mut mmu, 0x1008, user_write());
    let FaultOutcome::TableWrite { gpa, ticket } = outcome else { panic!("{outcome:?}") };
    assert_eq!(gpa, Gpa::new(0x2008), "both PDPTEs name it: nothing above could be Trapping");
    store(&mut machine, &mut mmu, 2, 1, 0x3000 | ALL);
    settle(&mut machine, &mut mmu, GIB + 0x20_0000, Access::user_read());
    // If the write cannot be emulated, the directory is out of step until the next flush.
    mmu.release(&mut machine, ticket);
    mmu.audit(&machine).unwrap();
    assert!(mmu.has_unsync_tables());
    machine.poke(2, 2, 0x3000 | ALL);
    mmu.flush_guest(&mut machine);
    mmu.audit(&machine).unwrap();
    settle(&mut machine, &mut mmu, GIB + 0x40_0000, Access::user_read());
}

#[test]
fn a_page_table_of_a_pae_guest_is_detached_and_attached() {
    let (mut machine, mut mmu) = start(Detach, pae([0x2001, 0, 0, 0]), pae_chain);
    machine.poke(3, 1, 0x3000 | ALL);
    settle(&mut machine, &mut mmu, 0x1000, Access::user_read());
    assert_eq!(
        fault(&mut machine, &mut mmu, 0x1000, user_write()),
        FaultOutcome::Resume(Work::Detach)
    );
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::Reserved);
    machine.poke(3, 2, 0xa000 | ALL);
    settle(&mut machine, &mut mmu, 0x2000, user_write());
    assert_eq!(hardware(&machine, &mmu, 0x2000), Seen::Page { gfn: 10, user: true, write: true });
}

#[test]
fn another_load_of_cr3_lets_the_old_directories_go() {
    let (mut machine, mut mmu) = start(Detach, pae([0x2001, 0, 0, 0]), pae_chain);
    machine.poke(3, 1, 0x2000 | ALL);
    machine.poke(4, 0, 0x3000 | ALL);
    settle(&mut machine, &mut mmu, 0x1000, Access::user_read());
    mmu.load_paging(&mut machine, VCPU, pae([0, 0, 0, 0x4001]));
    mmu.audit(&machine).unwrap();
    assert_eq!(hardware(&machine, &mmu, 0x1000), Seen::NotPresent);
    settle(&mut machine, &mut mmu, 3 * GIB + 0x1000, Access::user_read());
    // Nothing leads to the old one any more, so it is detached for a write.
    let outcome = fault(&mut machine, &mut mmu, 3 * GIB + 0x1000, user_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    machine.poke(2, 1, 0x3000 | ALL);
    mmu.load_paging(&mut machine, VCPU, pae([0x2001, 0, 0, 0]));
    mmu.audit(&machine).unwrap();
    settle(&mut machine, &mut mmu, 0x20_0000, Access::user_read());
}

#[test]
fn more_address_spaces_than_the_pool_holds() {
    let (mut machine, mut mmu) = start(EmulateReachable, pae([0, 0, 0, 0]), |machine| {
        for table in 0x100..0x200 {
            machine.poke(table, 0, 0x3000 | ALL);
        }
        machine.poke(3, 0, 0x9000 | ALL);
    });
    for round in 0..32 {
        let directory = |n: u64| (0x100 + (round * 7 + n * 61) % 256) << 12 | P;
        mmu.load_paging(&mut machine, VCPU, pae([0, 1, 2, 3].map(directory)));
        mmu.audit(&machine).unwrap();
        for gib in 0..4 {
            settle(&mut machine, &mut mmu, gib * GIB, user_write());
        }
    }
    assert!(mmu.counters().reclaimed > 0);
}

#[test]
fn bits_52_to_62_and_nx_are_reserved_as_the_guest_has_it() {
    let fill = |machine: &mut Machine| {
        machine.poke(2, 0, 0x3000 | ALL);
        machine.poke(3, 0, 0x9000 | ALL | 1 << 52);
        machine.poke(3, 1, 0x9000 | ALL | 1 << 62);
        machine.poke(3, 2, 0x9000 | ALL | bits::NX);
        machine.poke(2, 1, 0x3000 | ALL | 1 << 57);
        machine.poke(2, 2, ALL | PS | 1 << 13);
    };
    for nxe in [false, true] {
        let (mut machine, mut mmu) =
            start(EmulateReachable, Paging { nxe, ..pae([0x2001, 0, 0, 0]) }, fill);
        for gva in [0, 0x1000, 0x20_0000, 0x40_0000] {
            let outcome = fault(&mut machine, &mut mmu, gva, Access::user_read());
            assert_eq!(pfec(outcome), Pfec::PRESENT | Pfec::RSVD | Pfec::USER, "{gva:#x}");
            assert_eq!(hardware(&machine, &mmu, gva), Seen::Reserved);
        }
        if nxe {
            settle(&mut machine, &mut mmu, 0x2000, user_write());
            // The others were filled with it.
            for gva in [0, 0x1000] {
                assert_eq!(hardware(&machine, &mmu, gva), Seen::Reserved, "{gva:#x}");
            }
        } else {
            let outcome = fault(&mut machine, &mut mmu, 0x2000, Access::user_read());
            assert_eq!(pfec(outcome), Pfec::PRESENT | Pfec::RSVD | Pfec::USER);
        }
    }
}

#[test]
fn a_directory_that_is_no_memory_is_emulated_through() {
    let (mut machine, mut mmu) = start(Detach, pae([0x2001, 0x77_7000_0001, 0x2001, 0]), pae_chain);
    let outcome = fault(&mut machine, &mut mmu, GIB, Access::user_read());
    assert_eq!(pfec(outcome), Pfec::PRESENT | Pfec::RSVD | Pfec::USER, "the bus gives ones");
    assert_eq!(hardware(&machine, &mmu, GIB), Seen::Reserved);
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    mmu.load_paging(&mut machine, VCPU, legacy(0x77_7000, true));
    mmu.audit(&machine).unwrap();
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Reserved);
}

#[test]
fn revoked_and_zapped_directories_come_back() {
    for format in 0..2 {
        let paging = if format == 0 { pae([0x2001, 0, 0, 0]) } else { legacy(2, false) };
        let (mut machine, mut mmu) = start(Detach, paging, |machine| {
            machine.poke(2, 0, 0x3000 | ALL);
            machine.poke(3, 0, 0x9000 | ALL);
        });
        settle(&mut machine, &mut mmu, 0, user_write());
        mmu.zap_all(&mut machine);
        mmu.audit(&machine).unwrap();
        assert_eq!(hardware(&machine, &mmu, 0), Seen::Reserved);
        settle(&mut machine, &mut mmu, 0, user_write());
        mmu.revoke(&mut machine, Gfn::new(2)..Gfn::new(3));
        machine.holes.push(2);
        mmu.audit(&machine).unwrap();
        let outcome = fault(&mut machine, &mut mmu, 0, Access::user_read());
        assert!(!matches!(outcome, FaultOutcome::Resume(_)), "{outcome:?}");
        mmu.revoke(&mut machine, Gfn::new(2)..Gfn::new(3));
        machine.holes.clear();
        settle(&mut machine, &mut mmu, 0, user_write());
    }
}

#[test]
fn tables_of_a_process_are_linked_ahead() {
    for legacy32 in [false, true] {
        let mut machine = Machine::new(0x800, 128);
        let entry = |machine: &mut Machine, index: usize, table: u64| match legacy32 {
            true => machine.poke32(2, index, (table << 12 | 0x67) as u32),
            false => machine.poke(2, index, table << 12 | ALL),
        };
        for (index, table) in [(0, 3), (9, 4), (300, 5)] {
            entry(&mut machine, index, table);
            machine.poke32(table, 0, 0x9067);
        }
        let mode = if legacy32 { legacy(2, false) } else { pae([0x2001, 0, 0x2001, 0]) };
        let mut ahead = config();
        ahead.prefetch_tables = true;
        let mut mmu = Mmu::with_policy(ahead, &mut machine, EmulateReachable).unwrap();
        mmu.load_paging(&mut machine, VCPU, mode);
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        let shift = if legacy32 { 22 } else { 21 };
        for index in [9, 300] {
            let seen = hardware(&machine, &mmu, index << shift);
            assert_eq!(seen, Seen::Page { gfn: 9, user: true, write: true }, "{index}");
        }
        mmu.audit(&machine).unwrap();
    }
}

/// A guest of 32-bit paging: its directory is in frame 2, a table for the fifth 4 MiB in frame 3.
fn legacy_chain(machine: &mut Machine) {
    machine.poke32(2, 5, 0x3067);
    machine.poke32(3, 7, 0x9007);
    machine.poke32(3, 0x207, 0xa007);
}

const FIFTH: u64 = 5 << 22;

#[test]
fn both_halves_of_a_32_bit_table_are_mapped() {
    let (mut machine, mut mmu) = start(EmulateReachable, legacy(2, false), legacy_chain);
    assert_eq!(mmu.root(&machine, VCPU).format(), RootFormat::Pae);
    assert_eq!(hardware(&machine, &mmu, 0), Seen::NotPresent);
    for (gva, gfn) in [(FIFTH + 0x7000, 9), (FIFTH + 0x20_7000, 10)] {
        assert_eq!(hardware(&machine, &mmu, gva), Seen::Reserved);
        assert_eq!(
            fault(&mut machine, &mut mmu, gva, Access::user_read()),
            FaultOutcome::Resume(Work::Link)
        );
        assert_eq!(hardware(&machine, &mmu, gva), Seen::Page { gfn, user: true, write: false });
        assert_eq!(
            fault(&mut machine, &mut mmu, gva, user_write()),
            FaultOutcome::Resume(Work::Dirty)
        );
        assert_eq!(hardware(&machine, &mmu, gva), Seen::Page { gfn, user: true, write: true });
        assert_eq!(hardware(&machine, &mmu, gva + 0x1000), Seen::NotPresent);
    }
    assert_eq!([7, 0x207].map(|index| machine.peek32(3, index).raw()), [0x9067, 0xa067]);
    assert_eq!([6, 8, 0x206, 0x208].map(|index| machine.peek32(3, index).raw()), [0; 4]);
    store32(&mut machine, &mut mmu, 3, 0x206, 0xb067);
    assert_eq!(
        hardware(&machine, &mmu, FIFTH + 0x20_6000),
        Seen::Page { gfn: 11, user: true, write: true }
    );
    store32(&mut machine, &mut mmu, 2, 5, 0);
    assert_eq!(hardware(&machine, &mmu, FIFTH + 0x7000), Seen::NotPresent);
    assert_eq!(hardware(&machine, &mmu, FIFTH + 0x20_7000), Seen::NotPresent);
}

#[test]
fn a_32_bit_table_is_detached_and_attached_as_a_whole() {
    let (mut machine, mut mmu) = start(Detach, legacy(2, false), legacy_chain);
    machine.poke32(3, 1, 0x3067);
    for gva in [FIFTH + 0x1000, FIFTH + 0x20_7000] {
        settle(&mut machine, &mut mmu, gva, Access::user_read());
    }
    let outcome = fault(&mut machine, &mut mmu, FIFTH + 0x1000, user_write());
    assert_eq!(outcome, FaultOutcome::Resume(Work::Detach));
    assert_eq!(hardware(&machine, &mmu, FIFTH + 0x1000), Seen::Reserved);
    assert_eq!(hardware(&machine, &mmu, FIFTH + 0x20_7000), Seen::Reserved);
    let built = mmu.counters().built;
    machine.poke32(3, 0x208, 0xb067);
    machine.poke32(3, 8, 0xc067);
    settle(&mut machine, &mut mmu, FIFTH + 0x8000, user_write());
    settle(&mut machine, &mut mmu, FIFTH + 0x20_8000, user_write());
    assert_eq!(
        hardware(&machine, &mmu, FIFTH + 0x20_8000),
        Seen::Page { gfn: 11, user: true, write: true }
    );
    assert_eq!(mmu.counters().built, built, "both parts were kept");
    assert_eq!(mmu.counters().attached, 1);
}

#[test]
fn a_4_mib_page_is_two_and_counts_as_split() {
    let (mut machine, mut mmu) = start(EmulateReachable, legacy(2, true), |machine| {
        machine.poke32(2, 1, 0x40_00e7);
    });
    let low = 1 << 22;
    for (half, gva) in [(0, low), (1, low + 0x20_0000)] {
        settle(&mut machine, &mut mmu, gva + 0x5000, user_write());
        let page = Seen::Page { gfn: 0x405 + 0x200 * half, user: true, write: true };
        assert_eq!(hardware(&machine, &mmu, gva + 0x5000), page);
    }
    // INVLPG drops one half of what the guest may count on as a whole.
    let flushes = machine.flushes;
    store32(&mut machine, &mut mmu, 2, 1, 0);
    assert!(machine.flushes > flushes);
    assert_eq!(hardware(&machine, &mmu, low), Seen::NotPresent);
    assert_eq!(hardware(&machine, &mmu, low + 0x20_0000), Seen::NotPresent);
}

#[test]
fn reserved_bits_of_a_4_mib_page_depend_on_pse_and_on_maxphyaddr() {
    // MAXPHYADDR is 40 here: all of bits 13 to 20 are address, and bit 21 is reserved.
    let fill = |machine: &mut Machine| {
        machine.poke32(2, 0, 0x20_3000 | 0xe7);
        machine.poke32(2, 1, 0x2000 | 0xe7);
        machine.poke32(0x203, 0, 0x9067);
        machine.poke32(2, 2, 0x3000 | 0xe7);
        machine.poke32(3, 0, 0x9067);
    };
    let (mut machine, mut mmu) = start(EmulateReachable, legacy(2, true), fill);
    let outcome = fault(&mut machine, &mut mmu, 0, Access::user_read());
    assert_eq!(pfec(outcome), Pfec::PRESENT | Pfec::RSVD | Pfec::USER);
    assert_eq!(hardware(&machine, &mmu, 0), Seen::Reserved);
    let outcome = fault(&mut machine, &mut mmu, 1 << 22, Access::user_read());
    assert_eq!(outcome, FaultOutcome::Mmio { gpa: Gpa::new(1 << 32) }, "bit 13 is address bit 32");
    // CR4.PSE is cleared under large pages: PS means nothing any more.
    mmu.load_paging(&mut machine, VCPU, legacy(2, false));
    mmu.audit(&machine).unwrap();
    settle(&mut machine, &mut mmu, 0, user_write());
    settle(&mut machine, &mut mmu, 2 << 22, user_write());
    assert_eq!(hardware(&machine, &mmu, 2 << 22), Seen::Page { gfn: 9, user: true, write: true });
}

#[test]
fn a_store_of_8_bytes_changes_two_32_bit_entries_of_any_part() {
    let (mut machine, mut mmu) = start(EmulateReachable, legacy(2, true), |machine| {
        machine.poke32(2, 0, 0x3067);
    });
    settle_all(&mut machine, &mut mmu, &[(255, 256), (767, 768)]);
    // Across the middle of a page table, unaligned.
    machine.poke32(3, 0, 0x8067);
    settle(&mut machine, &mut mmu, 0, Access::user_read());
    let entries = [0x9067_u32, 0xa067].map(u32::to_le_bytes).concat();
    mmu.write_guest(&mut machine, Gpa::new(0x3000 + 4 * 511), &entries);
    mmu.audit(&machine).unwrap();
    settle(&mut machine, &mut mmu, 0x1f_f000, Access::user_read());
    settle(&mut machine, &mut mmu, 0x20_0000, Access::user_read());
}

/// Stores directory entries in pairs, which two shadow pages share, and looks at all of it.
fn settle_all<Q: WritePolicy>(machine: &mut Machine, mmu: &mut Mmu<Q>, pairs: &[(u64, u64)]) {
    for &(first, second) in pairs {
        let entries = [0x80_00e7_u32, 0x40_00e7].map(u32::to_le_bytes).concat();
        mmu.write_guest(machine, Gpa::new(0x2000 + 4 * first), &entries);
        mmu.audit(machine).unwrap();
        for (entry, gfn) in [(first, 0x800), (second, 0x400)] {
            let gva = entry << 22;
            if gfn < 0x800 {
                settle(machine, mmu, gva, user_write());
                assert_eq!(
                    hardware(machine, mmu, gva),
                    Seen::Page { gfn, user: true, write: true }
                );
            } else {
                let outcome = fault(machine, mmu, gva, user_write());
                assert_eq!(outcome, FaultOutcome::Mmio { gpa: Gpa::new(gfn << 12) });
            }
        }
    }
}

#[test]
fn one_frame_is_a_table_of_every_format() {
    let (mut machine, mut mmu) = start(EmulateReachable, legacy(2, true), |machine| {
        machine.poke(2, 0, 0x2000 | ALL);
        machine.poke(2, 1, 0x2000 | ALL);
    });
    let modes = [legacy(2, true), pae([0x2001, 0x2001, 0, 0]), paging(2), legacy(2, false)];
    for (round, mode) in modes.into_iter().cycle().take(12).enumerate() {
        mmu.load_paging(&mut machine, VCPU, mode);
        mmu.audit(&machine).unwrap();
        settle(&mut machine, &mut mmu, 0, Access::user_read());
        let entry = 0x2000 | ALL | (round as u64 % 2) << 12;
        store(&mut machine, &mut mmu, 2, 1, entry);
        mmu.load_paging(&mut machine, VCPU, Paging { mode: Mode::Off, ..mode });
        mmu.audit(&machine).unwrap();
        settle(&mut machine, &mut mmu, 0x2000, Access::user_read());
    }
}

/// Random tables, accesses and writes in all formats, with every switch between them: what the
/// hardware maps is what a walk of the guest's own tables gives, and the auditor is content.
#[test]
fn random_guests_of_every_format() {
    let mut seen = Outcomes::default();
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut machine = Machine::new(0x440, 64);
        let mut mmu =
            Mmu::with_policy(config(), &mut machine, Mixed(fastrand::Rng::with_seed(seed)))
                .unwrap();
        let mut mode = random_paging(&mut random);
        mmu.load_paging(&mut machine, VCPU, mode);
        for step in 0..1500 {
            match random.u32(..100) {
                0 => {
                    mode = random_paging(&mut random);
                    mmu.load_paging(&mut machine, VCPU, mode);
                }
                1 => mmu.flush_guest(&mut machine),
                2 => mmu.zap_all(&mut machine),
                3..35 => {
                    let at = random.u64(1..6) << 12
                        | random_index(&mut random) << 3
                        | random.u64(0..2) << 2;
                    let bytes = random_entry(&mut random).to_le_bytes();
                    let length = if at & 4 != 0 { 4 } else { *random.choice(&[4, 8]).unwrap() };
                    mmu.write_guest(&mut machine, Gpa::new(at), &bytes[..length]);
                }
                _ => access(&mut machine, &mut mmu, &mode, &mut random, &mut seen),
            }
            mmu.audit_changed(&machine).unwrap();
            if step % 64 == 0 {
                mmu.audit(&machine).unwrap();
            }
        }
    }
    let Outcomes { not_present, mapped, guest, elsewhere, tables } = seen;
    let least = [not_present, mapped, guest, elsewhere, tables].into_iter().min();
    assert!(least > Some(50), "{seen:?}");
}

/// How accesses ended.
#[derive(Debug, Default)]
struct Outcomes {
    /// With a fault that the CPU delivers.
    not_present: u32,
    mapped: u32,
    guest: u32,
    /// With an emulated access.
    elsewhere: u32,
    tables: u32,
}

/// Answers table writes at random.
struct Mixed(fastrand::Rng);

impl WritePolicy for Mixed {
    fn answer(&mut self, _: &TableWrite) -> Answer {
        if self.0.bool() { Answer::Detach } else { Answer::Emulate }
    }
}

fn random_index(random: &mut fastrand::Rng) -> u64 {
    *random.choice(&[0, 0, 1, 2, 127, 128, 255, 256, 510, 511]).unwrap()
}

/// Mostly an entry of PAE or 4-level paging, or two of 32-bit paging: of tables in frames 1 to 5.
fn random_entry(random: &mut fastrand::Rng) -> u64 {
    let half = |random: &mut fastrand::Rng| {
        let frame =
            *random.choice(&[1, 2, 3, 4, 5, 8, 9, 0x200, 0x400, 0x40_0000 >> 12, 0x4ff]).unwrap();
        let flips = 1 << *random.choice(&[0, 1, 2, 5, 6, 7, 7, 8, 13, 17, 21]).unwrap();
        frame << 12 | 0x67 ^ if random.bool() { flips } else { 0 }
    };
    match random.u32(..8) {
        0 => half(random) | 1 << random.u32(32..64),
        1..5 => half(random),
        _ => half(random) | half(random) << 32,
    }
}

fn random_paging(random: &mut fastrand::Rng) -> Paging {
    let root = random.u64(1..6);
    let pdpte =
        |random: &mut fastrand::Rng| random.u64(1..7) << 12 | u64::from(random.u8(..4) != 0);
    let mode = match random.u32(..9) {
        0 => Mode::Off,
        1 => Mode::Long4,
        2..5 => {
            let entries = core::array::from_fn(|_| pdpte(random));
            Mode::Pae { pdptes: Pdptes::checked(entries, &FEATURES).unwrap() }
        }
        _ => Mode::Legacy32 { pse: random.bool() },
    };
    let nxe = random.bool() && !matches!(mode, Mode::Legacy32 { .. });
    let (wp, smep, smap) = (random.u8(..4) != 0, random.bool(), random.bool());
    Paging { mode, root: Gfn::new(root), wp, smep, smap, pge: false, nxe }
}

/// One access, until the hardware allows it or the MMU has another answer.
fn access<Q: WritePolicy>(
    machine: &mut Machine,
    mmu: &mut Mmu<Q>,
    paging: &Paging,
    random: &mut fastrand::Rng,
    seen: &mut Outcomes,
) {
    let gva = random_address(paging, random);
    let kind = *random.choice(&[AccessKind::Read, AccessKind::Write]).unwrap();
    let access = Access { kind, user: random.bool(), smap_override: true };
    for _ in 0..20 {
        let walked = walk(machine, paging, &FEATURES, Gva::new(gva), access);
        match hardware(machine, mmu, gva) {
            Seen::NotPresent => {
                let fault = walked.expect_err("a guest fault that is none");
                assert!(!fault.pfec.contains(Pfec::PRESENT), "{fault:?}");
                seen.not_present += 1;
                return;
            }
            Seen::Page { gfn, user, write }
                if (user || !access.user) && (write || !access.is_write()) =>
            {
                let walked = walked.expect("the hardware allows what the guest refuses");
                assert_eq!(gfn, walked.gpa().gfn().raw(), "{gva:#x}");
                seen.mapped += 1;
                return;
            }
            _ => (),
        }
        match exit_at(machine, mmu, 0, gva, access) {
            FaultOutcome::Resume(_) => (),
            FaultOutcome::Guest(fault) => {
                assert_eq!(walked.expect_err("a guest fault that is none"), fault);
                seen.guest += 1;
                return;
            }
            FaultOutcome::Mmio { gpa } | FaultOutcome::Override { gpa } => {
                assert_eq!(gpa, walked.unwrap().gpa());
                seen.elsewhere += 1;
                return;
            }
            FaultOutcome::TableWrite { gpa, ticket } => {
                assert_eq!(gpa, walked.unwrap().gpa());
                seen.tables += 1;
                if random.u8(..8) == 0 {
                    mmu.release(machine, ticket);
                    mmu.flush_guest(machine);
                }
                return;
            }
        }
    }
    panic!("no progress at {gva:#x}");
}

fn random_address(paging: &Paging, random: &mut fastrand::Rng) -> u64 {
    let Some(format) = paging.mode.format() else { return random.u64(..0x50_0000) };
    let mut gva = match format {
        Format::Long4 => random_index(random) << 39 | random_index(random) << 30,
        _ => random.u64(..4) << 30,
    };
    for level in [umbra_paging::Level::L2, umbra_paging::Level::L1] {
        gva |= (random_index(random) * 2 + random.u64(..2)) << format.shift(level);
    }
    match format {
        Format::Long4 => ((gva << 16) as i64 >> 16) as u64,
        _ => gva & 0xffff_ffff,
    }
}
