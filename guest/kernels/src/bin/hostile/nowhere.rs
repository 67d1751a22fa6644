//! Tables of ones, tables where no memory is, tables in devices.

use guest_kernels::check;
use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::access::{access, run};
use guest_kernels::kit::oracle::{Judge, NOWHERE};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::{apic, cpu, snippets};
use guest_kernels::say;
use umbra_paging::{Access, AccessKind, Gva, Level, bits};

use crate::setting::Setting;

const KINDS: [AccessKind; 3] = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch];

/// Reads and writes at many places below an entry.
fn around(setting: &mut Setting, judge: &Judge, report: &mut Report, gva: Gva) {
    for _ in 0..30 {
        let random = &mut setting.random;
        let place = Gva::new(gva.raw() + (random.below(1 << 30) & !7));
        let access =
            Access { kind: KINDS[random.index(2)], user: random.one_in(2), smap_override: false };
        judge.flush_and_judge(&setting.pool, report, place, access, 0);
    }
}

/// Tables of all ones at every level.
pub fn all_ones(setting: &mut Setting, space: &Space, report: &mut Report) {
    let judge = setting.judge(space, true, false, false, true);
    let ones = setting.pool.frame();
    ones.fill(u64::MAX);
    for (index, level) in Level::ALL.into_iter().enumerate() {
        let gva = space::slot(10 + index as u64);
        let entry = if level == Level::L4 { u64::MAX } else { ones.address() | TABLE };
        space.map(&mut setting.pool, gva, level, entry);
        around(setting, &judge, report, gva);
    }
    // They become plain tables and ones again while they are linked.
    let page = setting.pool.frame();
    for value in [page.address() | PAGE, u64::MAX, 0, ones.address() | PAGE] {
        ones.fill(value);
        around(setting, &judge, report, space::slot(11));
        around(setting, &judge, report, space::slot(12));
    }
}

/// Tables beyond memory, below the highest address and in the hole below 4 GiB.
pub fn nowhere(setting: &mut Setting, space: &Space, report: &mut Report) {
    let judge = setting.judge(space, true, false, false, true);
    let highest = (1 << setting.cpu.features.maxphyaddr) - 4096;
    let places =
        [NOWHERE, highest, 0xe000_0000, setting.memory_end.next_multiple_of(2 << 20) + (64 << 20)];
    for (n, place) in places.into_iter().enumerate() {
        for (index, level) in [Level::L2, Level::L3, Level::L4].into_iter().enumerate() {
            let gva = space::slot(20 + 4 * n as u64 + index as u64);
            space.map(&mut setting.pool, gva, level, place | TABLE);
            around(setting, &judge, report, gva);
        }
        // As pages: there is nothing to see, but it must not hurt.
        let gva = space::slot(40 + n as u64);
        space.map(&mut setting.pool, gva, Level::L1, place | PAGE);
        cpu::invlpg(gva);
        for kind in &KINDS[..2] {
            let outcome = access(Access { kind: *kind, user: true, smap_override: false }, gva, 7);
            check!(
                report,
                outcome.is_ok(),
                "{kind:?} of a page at {place:#x}, where nothing is: {outcome:x?}"
            );
        }
    }
}

/// The local APIC as a page of all sizes.
pub fn apic_page(setting: &mut Setting, space: &Space, report: &mut Report) {
    setting.judge(space, true, false, false, true);
    let version = apic::read(apic::register::VERSION);
    let (small, large) = (space::slot(50), space::slot(51));
    let pool = &mut setting.pool;
    space.map(pool, small, Level::L1, apic::BASE | PAGE);
    space.map(pool, large, Level::L2, apic::BASE | PAGE | bits::PS);
    for gva in [small, large] {
        for user in [false, true] {
            let mut read = snippets::read_4().in_ring(user);
            read.rdi = gva.raw() + apic::register::VERSION;
            let found = run(&read).map(|end| end.rax as u32);
            check!(
                report,
                found == Ok(version),
                "the APIC's version by {gva:#x} is {found:x?} instead of {version:#x}"
            );
            let mut write = snippets::write_4().in_ring(user);
            (write.rdi, write.rsi) = (gva.raw() + apic::register::TPR, 0x20);
            let outcome = run(&write);
            check!(report, outcome.is_ok(), "a write to the APIC by {gva:#x}: {outcome:x?}");
            let found = apic::read(apic::register::TPR);
            check!(report, found == 0x20, "TPR is {found:#x} after 0x20 was written by {gva:#x}");
            apic::write(apic::register::TPR, 0);
        }
    }
}

/// Devices as tables: what the CPU reads there is not defined (Bochs gives up at 8 bytes from its
/// APIC), only that a guest hurts none but itself.
pub fn device_tables(setting: &mut Setting, space: &Space, report: &mut Report) {
    setting.judge(space, true, false, false, true);
    let version = apic::read(apic::register::VERSION);
    let (mut done, mut faulted) = (0u32, 0u32);
    for (index, level) in [Level::L2, Level::L3, Level::L4].into_iter().enumerate() {
        for (device, place) in [apic::BASE, 0xfec0_0000, 0xd_0000, 0xf_0000].into_iter().enumerate()
        {
            let gva = space::slot(60 + 4 * index as u64 + device as u64);
            space.map(&mut setting.pool, gva, level, place | (TABLE & !bits::W));
            for _ in 0..40 {
                let place = Gva::new(gva.raw() + setting.random.below(1 << 30));
                cpu::invlpg(place);
                match access(
                    Access { user: setting.random.one_in(2), ..Access::user_read() },
                    place,
                    0,
                ) {
                    Ok(_) => done += 1,
                    Err(_) => faulted += 1,
                }
            }
        }
    }
    say!("  tables in devices: {done} reads went through, {faulted} faulted");
    check!(
        report,
        apic::read(apic::register::VERSION) == version,
        "the APIC's version has changed"
    );
}
