//! Programs that once failed, as they were after shrinking.

use arrayvec::ArrayVec;
use umbra_mmu::FilterPolicy;
use umbra_paging::{Access, AccessKind, Format, Gfn, Gpa, Gva};
use umbra_reference::hardware::Temper;
use umbra_reference::machine::ShadowConfig;
use umbra_reference::program::{HostEvent, Op, Program};
use umbra_reference::registers::{Cpu, Privileged};
use umbra_reference::{Config, run_program};

fn config() -> Config {
    Config {
        model: Cpu { maxphyaddr: 40, gib_pages: true },
        cpus: 1,
        pcid: false,
        temper: Temper::STICKY,
        shadow: Some(ShadowConfig::plain(true, 64)),
        full_audit: 1,
        races: 0,
    }
}

fn load(gva: u64, kind: AccessKind, user: bool) -> Op {
    Op::Load {
        cpu: 0,
        gva: Gva::new(gva),
        access: Access { kind, user, smap_override: false },
        length: 1,
    }
}

/// A supervisor's write with RFLAGS.AC set.
fn store(gva: u64, bytes: &[u8]) -> Op {
    let bytes: ArrayVec<u8, 8> = bytes.iter().copied().collect();
    Op::Store { cpu: 0, gva: Gva::new(gva), user: false, ac: true, bytes }
}

fn execute(instruction: Privileged) -> Op {
    Op::Execute { cpu: 0, instruction }
}

#[track_caller]
fn passes(config: &Config, setup: u64, ops: &[Op]) {
    // The hardware's choices matter as much as the steps.
    for seed in 0..64 {
        let program = Program { setup, seed, ops: ops.to_vec() };
        for setup in [setup, setup | 1] {
            let program = Program { setup, ..program.clone() };
            run_program(&program, config)
                .unwrap_or_else(|divergence| panic!("{divergence}\n{program}"));
        }
    }
}

#[test]
fn a_fault_drops_what_an_unsync_table_kept() {
    // The frame 0x12, a page directory, is given up and then made its own page table, with NX. The
    // fetch must fault, and after the fault nothing of the old large page may serve.
    let ops = [
        store(0xffff_8000_0001_9ff9, &[0x67, 0x50, 1, 0, 0, 0, 0, 0]),
        Op::Host(HostEvent::Release(Gfn::new(0x12))),
        store(0xffff_8000_0001_2000, &[0x27, 0x20, 1, 0, 0, 0, 0, 0x80]),
        load(0xffff_8000_0001_b008, AccessKind::Fetch, true),
        store(0xffff_8000_0001_7008, &[0x67]),
    ];
    passes(&config(), 0, &ops);
}

#[test]
fn a_link_to_the_identity_page_outlives_the_reason_for_the_split() {
    let ops = [
        Op::Host(HostEvent::WriteProtect(Gfn::new(0x410))),
        load(0xffff_ff80_0020_1000, AccessKind::Read, true),
        store(0xffff_8000_0041_0800, &[0x67, 0x10, 0x41, 0, 0, 0, 0, 0]),
    ];
    passes(&config(), 0, &ops);
}

#[test]
fn device_memory_is_written_with_wp_clear() {
    // A 2 MiB page over no memory, user-readable only.
    let ops = [
        execute(Privileged::Wp(false)),
        execute(Privileged::Smap(false)),
        Op::Repair { cpu: 0 },
        store(0xffff_8000_0001_5008, &[0xe5, 0, 0x60, 0, 0, 0, 0, 0]),
        store(0x20_0000, &[1]),
        load(0x20_0000, AccessKind::Read, true),
    ];
    passes(&config(), 0, &ops);
}

#[test]
fn a_pcid_gets_another_root_without_a_flush() {
    // The window is large pages, split in the shadow. Under the new root it is gone, but the PCID
    // keeps it; after a fault at one of its pages the others may still serve.
    let ops = [
        load(0x800, AccessKind::Fetch, true),
        store(0xffff_8000_0001_3000, &[0x67, 0x70, 1, 0, 0, 0, 0, 0x80]),
        execute(Privileged::LoadCr3 { root: Gfn::new(0x11), pcid: 0, no_flush: true }),
        store(0xffff_8000_0001_b000, &[0x65, 0x21, 1, 0, 0, 0, 0, 0x80]),
        load(0xffff_8000_0001_a008, AccessKind::Fetch, false),
    ];
    passes(&Config { pcid: true, ..config() }, 0x82ff_ad93_5a87_cc80, &ops);
}

#[test]
fn a_store_into_the_large_page_entry_that_it_goes_through() {
    // It sets A and D in the entry and then changes its address, in a table whose writes are not
    // followed: the old address may serve until the guest flushes. The judge refused that.
    let ops = [store(0xffff_8000_0001_2003, &[0x21]), store(0xffff_8000_0001_7000, &[42, 10])];
    let shadow = Some(ShadowConfig { release: 128, ..ShadowConfig::plain(false, 48) });
    passes(&Config { shadow, ..config() }, 0x4fd_717b_db03_6031, &ops);
}

#[test]
fn a_user_link_to_an_identity_page_goes_when_the_region_may_hold_writes_back() {
    // The filter lets user protection faults through while a large page of user mode, mapped by
    // smaller ones, is linked; then the host write-protects a frame of its region.
    let shadow =
        ShadowConfig { filter: FilterPolicy::Auto, targets: 2, ..ShadowConfig::plain(true, 50) };
    let config = Config { shadow: Some(shadow), ..config() };
    let device_write = Op::DeviceWrite {
        gpa: Gpa::new(0x12000),
        bytes: [0x23, 0, 0x41, 0, 0, 0, 0, 0x80].into_iter().collect(),
    };
    let read = |gva, length| {
        let access = Access { kind: AccessKind::Read, user: true, smap_override: false };
        Op::Load { cpu: 0, gva: Gva::new(gva), access, length }
    };
    let ops = [
        device_write,
        store(0xffff_8000_0001_4008, &[0x47, 1, 1, 0]),
        read(0xffff_8000_0041_0ff8, 2),
        read(0xffff_ff80_0020_0008, 8),
        Op::Repair { cpu: 0 },
        read(0xffff_8000_0001_b008, 1),
        Op::Host(HostEvent::WriteProtect(Gfn::new(0x411))),
    ];
    passes(&config, 0x49eb_51ab_2ada_50da, &ops);
}

#[test]
fn what_an_unsync_table_kept_serves_no_address_that_it_never_served() {
    // The guest makes a page table that maps itself its own page directory entry, by a store that
    // the hypervisor does not emulate. The old entry of the unsync frame then stands below a new
    // reference.
    let shadow = ShadowConfig { release: 255, ..ShadowConfig::plain(true, 64) };
    let config = Config { shadow: Some(shadow), ..config() };
    let read = |gva, length| {
        let access = Access { kind: AccessKind::Read, user: true, smap_override: false };
        Op::Load { cpu: 0, gva: Gva::new(gva), access, length }
    };
    let bytes = [0x67, 0x10, 0x21, 0, 0, 0, 0, 0].into_iter().collect();
    let ops = [
        read(0xffff_8000_0001_4011, 8),
        Op::Store { cpu: 0, gva: Gva::new(0x20_1000), user: true, ac: false, bytes },
        read(0xffff_ff80_0000_1000, 1),
        read(0xffa, 2),
    ];
    passes(&config, 0xfa0e_99b2_84b4_97e5, &ops);
}

#[test]
fn a_lazy_fill_leaves_what_is_in_use() {
    // The two pages of one access are mapped by a table that is unsync, which is brought up to date
    // at each fault: what the first fault had installed was gone after the second, for ever.
    let shadow = ShadowConfig {
        release: 128,
        filter: FilterPolicy::Auto,
        detach: 255,
        targets: 2,
        ..ShadowConfig::plain(false, 96)
    };
    let temper = Temper { cling: 32, fill: 64, forget: 64, mark: 32, keep: 0, ahead: 3 };
    let config = Config { cpus: 2, temper, shadow: Some(shadow), ..config() };
    let access = |cpu, gva, kind, user, length| {
        let access = Access { kind, user, smap_override: !user };
        Op::Load { cpu, gva: Gva::new(gva), access, length }
    };
    let ops = [
        store(0xffff_8000_0001_7000, &[0x67]),
        store(0xffff_8000_0001_3000, &[0x67, 0x30, 1, 0, 0, 0, 0, 0]),
        access(1, 0x1000, AccessKind::Fetch, true, 2),
        access(1, 0xffff_8000_0001_1fff, AccessKind::Read, false, 2),
    ];
    let program =
        Program { setup: 0x79c9_9789_69ef_e1f8, seed: 0x41a3_7d0c_751f_234e, ops: ops.to_vec() };
    run_program(&program, &config).unwrap_or_else(|divergence| panic!("{divergence}\n{program}"));
    passes(&config, 0x79c9_9789_69ef_e1f8, &ops);
}

fn sweep(cpu: usize, gva: u64, kind: AccessKind, user: bool, count: usize) -> Op {
    Op::Sweep {
        cpu,
        gva: Gva::new(gva),
        access: Access { kind, user, smap_override: !user },
        count,
    }
}

fn enter(cpu: usize, format: Format, root: u64) -> Op {
    Op::Execute { cpu, instruction: Privileged::Enter { format, root: Gfn::new(root) } }
}

#[test]
fn a_fault_in_one_half_of_a_directorys_entry_drops_the_other() {
    // An entry of a page directory of 32-bit paging covers 4 MiB, and has two shadows. A fault at
    // any of its addresses drops what the CPU has cached of it.
    let legacy = Format::Legacy32 { pse: true };
    let load = Privileged::LoadCr3 { root: Gfn::new(0x16), pcid: 2, no_flush: false };
    let ops = [
        enter(0, legacy, 0x10),
        enter(1, legacy, 0x411),
        Op::Execute { cpu: 3, instruction: load },
        sweep(2, 0x800, AccessKind::Write, true, 4),
        sweep(3, 0x2800, AccessKind::Write, true, 3),
        Op::Repair { cpu: 0 },
        sweep(3, 0x20_0800, AccessKind::Write, false, 5),
        sweep(3, 0x1800, AccessKind::Fetch, true, 6),
    ];
    let shadow = ShadowConfig { unsync: 64, ..ShadowConfig::plain(true, 146) };
    let config = Config { cpus: 3, shadow: Some(shadow), ..config() };
    passes(&config, 0x8bba_0441_f8aa_0248, &ops);
}

#[test]
fn a_write_that_makes_a_table_unsync_goes_where_its_walk_has_set_d() {
    let entry = 0x8000_0000_0001_b027u64.to_le_bytes();
    let stores = |gva, entry, count| Op::Stores { cpu: 3, gva: Gva::new(gva), entry, count };
    let read = |gva, user, length| Op::Load {
        cpu: 1,
        gva: Gva::new(gva),
        access: Access { kind: AccessKind::Read, user, smap_override: !user },
        length,
    };
    let bytes = 0x8000_0000_0021_1141u64.to_le_bytes().into();
    let ops = [
        enter(2, Format::Pae, 0x411),
        store(0xffff_8000_0001_9008, &entry),
        read(0x4000_1800, false, 4),
        stores(0xffff_8000_0001_6000, 0x1_8005, 7),
        read(0xfff, true, 2),
        stores(0xffff_8000_0001_5000, 0x1_9007, 7),
        Op::Store { cpu: 2, gva: Gva::new(0x1000), user: true, ac: true, bytes },
    ];
    let plain = ShadowConfig::plain(false, 48);
    let shadow = ShadowConfig { detach: 64, unsync: 255, targets: 4, ..plain };
    let config = Config { shadow: Some(shadow), ..config() };
    passes(&config, 0x3217_15c4_dbc4_6b5b, &ops);
}

#[test]
fn what_a_fault_drops_may_be_cached_again_before_another_cpu_stores() {
    // The fetch faults under SMEP by the old entry as by the new one, which another CPU stores
    // while the hypervisor works. The fault may have come first; then the old entry still serves.
    let edit = |cpu, entry: u64| Op::Store {
        cpu,
        gva: Gva::new(0xffff_8000_0001_6008),
        user: false,
        ac: true,
        bytes: entry.to_le_bytes().into(),
    };
    let load = |gva, kind, user, smap_override| Op::Load {
        cpu: 1,
        gva: Gva::new(gva),
        access: Access { kind, user, smap_override },
        length: 1,
    };
    let read = |gva| load(gva, AccessKind::Read, false, false);
    let release = Op::Host(HostEvent::Release(Gfn::new(0x16)));
    let flush = Privileged::Invlpg(Gva::new(0xffff_8000_0001_1000));
    let ops = [
        edit(0, 0x1_2063),
        release.clone(),
        load(0x20_1000, AccessKind::Fetch, true, false),
        edit(1, 0x41_0027),
        read(0x1000),
        read(0x1000),
        load(0x1000, AccessKind::Read, true, false),
        read(0x20_1000),
        edit(1, 0x21_0027),
        read(0x1000),
        load(0x1000, AccessKind::Read, false, true),
        release,
        read(0x20_1000),
        edit(1, 0x41_0027),
        load(0x1000, AccessKind::Fetch, false, false),
        load(0x1000, AccessKind::Read, true, false),
        Op::Execute { cpu: 2, instruction: flush },
        edit(3, 0x3da0_0000_0041_1c1f),
    ];
    let plain = ShadowConfig::plain(false, 304);
    let shadow = ShadowConfig { release: 128, detach: 64, unsync: 255, targets: 4, ..plain };
    let shadow = ShadowConfig { filter: FilterPolicy::User, cr3_loads_exit: true, ..shadow };
    let shadow = ShadowConfig { host_maxphyaddr: 52, ..shadow };
    let config = Config { cpus: 3, shadow: Some(shadow), full_audit: 16, races: 255, ..config() };
    passes(&config, 0xe55c_73e1_5a33_bb66, &ops);
}
