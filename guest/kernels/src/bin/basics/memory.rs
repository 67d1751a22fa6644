//! Flags, modes and mappings.

use guest_kernels::check;
use guest_kernels::entries::{KERNEL_PAGE, PAGE, TABLE};
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::cpu::{self, rflags};
use guest_kernels::kit::oracle::{Judge, Quirks};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::traps;
use guest_kernels::kit::{snippets, space, unpaged as mode};
use umbra_paging::{Access, AccessKind, Gva, Level, Mode, Paging, bits};

use crate::setting::Setting;

/// RFLAGS after operations on registers, computed here; on a plain page and on a page table, the
/// same.
pub fn flags(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    for round in 0..500 {
        let a =
            [setting.random.number(), setting.random.below(4), u64::MAX - setting.random.below(4)]
                [round % 3];
        let b = [setting.random.number(), setting.random.below(4), 1 << 63][round / 3 % 3];
        let mut start = snippets::flags().kernel();
        (start.rsi, start.rdi) = (a, b);
        let trap = traps::run(&start);
        let found = [trap.context.rax, trap.context.rbx, trap.context.rcx, trap.context.rdx];
        let expected = [
            arithmetic(
                a,
                b,
                a.wrapping_add(b),
                a.checked_add(b).is_none(),
                (a as i64).checked_add(b as i64).is_none(),
            ),
            arithmetic(a, b, a.wrapping_sub(b), a < b, (a as i64).checked_sub(b as i64).is_none()),
            of_result(a & b),
            // OF of a shift by one: the sign before (SDM, "SHR").
            of_result(a >> 1) | a & 1 | a >> 63 << 11,
        ];
        // AF is undefined after AND and shifts.
        let masks =
            [rflags::STATUS, rflags::STATUS, rflags::STATUS & !0x10, rflags::STATUS & !0x10];
        for n in 0..4 {
            let (found, expected) = (found[n] & masks[n], expected[n] & masks[n]);
            check!(
                report,
                found == expected,
                "operation {n} of {a:#x}, {b:#x}: flags {found:#x} instead of {expected:#x}"
            );
        }
        for place in [targets.plain, targets.table] {
            let mut start = snippets::flags_in_memory().kernel();
            (start.rsi, start.rdi, start.rbp) = (a, b, place.raw() + 64);
            let trap = traps::run(&start);
            let there = [trap.context.rax, trap.context.rbx, trap.context.rcx, trap.context.rdx];
            for n in 0..4 {
                let (found, expected) = (there[n] & masks[n], found[n] & masks[n]);
                check!(
                    report,
                    found == expected,
                    "operation {n} at {place:#x} of {a:#x}, {b:#x}: flags {found:#x} instead of {expected:#x}"
                );
            }
            let found = [trap.context.r8, trap.context.r9, trap.context.r10, trap.context.r11];
            let expected = [a.wrapping_add(b), a.wrapping_sub(b), a & b, a >> 1];
            check!(report, found == expected, "at {place:#x}: {found:x?} instead of {expected:x?}");
        }
    }
}

fn of_result(result: u64) -> u64 {
    let parity = u64::from((result as u8).count_ones().is_multiple_of(2));
    parity << 2 | u64::from(result == 0) << 6 | (result >> 63) << 7
}

fn arithmetic(a: u64, b: u64, result: u64, carry: bool, overflow: bool) -> u64 {
    of_result(result) | u64::from(carry) | (a ^ b ^ result) & 0x10 | u64::from(overflow) << 11
}

/// One address mapped to other frames, thousands of times; one frame mapped at other addresses.
pub fn remap(setting: &mut Setting, report: &mut Report) {
    const ROUNDS: u64 = 4000;
    let frames = setting.pool.frames(16, 4096);
    for index in 0..16 {
        frames.after(index).write(0, index);
    }
    let gva = space::slot(30);
    let table = setting.space.table(&mut setting.pool, gva, Level::L1);
    for round in 0..ROUNDS {
        let index = round % 16;
        table.write(0, frames.after(index).address() | PAGE);
        cpu::invlpg(gva);
        let found = access::read(gva);
        check!(report, found == Ok(index), "round {round}: {found:x?} instead of {index}");
    }
    for round in 0..ROUNDS {
        // Not present, flushed, then present without a flush.
        let (page, index) = (round % 512, round % 16);
        let gva = Gva::new(gva.raw() + 4096 * page);
        table.write(page as usize, 0);
        cpu::invlpg(gva);
        let found = access::read(gva);
        check!(
            report,
            found == Err(Fault::page(0, gva.raw())),
            "round {round}: {found:x?} of a page that is gone"
        );
        table.write(page as usize, frames.after(index).address() | KERNEL_PAGE & !bits::A);
        let found = access::read(gva);
        check!(
            report,
            found == Ok(index),
            "round {round}: {found:x?} instead of {index} without a flush"
        );
    }
    // A reload of CR3 does as well as INVLPG.
    for round in 0..ROUNDS / 4 {
        let index = round * 7 % 16;
        table.write(5, frames.after(index).address() | PAGE);
        cpu::reload_cr3();
        let found = access::read(Gva::new(gva.raw() + 5 * 4096));
        check!(
            report,
            found == Ok(index),
            "round {round}: {found:x?} instead of {index} after MOV to CR3"
        );
    }
}

/// CR0.WP, CR4.SMEP and SMAP change under mappings that stay, without any flush; EFER.NXE with one.
pub fn switches(setting: &mut Setting, report: &mut Report) {
    let gva = space::slot(31);
    let frame = setting.pool.frame();
    // mov $0x31, %eax; int $0x80
    frame.write_bytes(0, &[0xb8, 0x31, 0, 0, 0, 0xcd, 0x80]);
    let kinds = [PAGE, PAGE & !bits::W, KERNEL_PAGE, KERNEL_PAGE & !bits::W, PAGE | bits::NX];
    for (index, flags) in kinds.into_iter().enumerate() {
        let gva = Gva::new(gva.raw() + 4096 * index as u64);
        setting.space.map(&mut setting.pool, gva, Level::L1, frame.address() | flags);
    }
    let quirks = Quirks::probe(&mut setting.pool, &setting.space, &setting.cpu);
    let cpu = setting.cpu;
    for _ in 0..1000 {
        let [wp, smep, smap, nxe] = core::array::from_fn(|_| setting.random.one_in(2));
        let (smep, smap, nxe) = (smep && cpu.smep, smap && cpu.smap, nxe && cpu.nx);
        let nxe_changes = nxe != (cpu::read_msr(cpu::EFER) >> 11 & 1 != 0);
        cpu::set_paging_bits(wp, smep, smap, nxe);
        if nxe_changes {
            cpu::flush_all();
        }
        let root = setting.space.root().gfn();
        let paging = Paging { mode: Mode::Long4, root, wp, smep, smap, pge: true, nxe };
        let judge = Judge { paging, features: cpu.features, quirks };
        for _ in 0..8 {
            let random = &mut setting.random;
            let page = Gva::new(gva.raw() + 4096 * random.below(5));
            let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][random.index(3)];
            let access = Access { kind, user: random.one_in(2), smap_override: random.one_in(2) };
            if kind == AccessKind::Fetch {
                let expected = match judge.walk(&setting.pool, page, access) {
                    Ok(_) => Ok(0x31),
                    Err(fault) => Err(quirks.report(fault)),
                };
                let found = access::access(access, page, 0);
                check!(
                    report,
                    found == expected,
                    "{access:?} at {page:#x} under {paging:?}: {found:x?} instead of {expected:x?}"
                );
            } else {
                judge.judge(
                    &setting.pool,
                    report,
                    Gva::new(page.raw() + 64),
                    access,
                    random.number(),
                );
            }
        }
    }
}

/// Paging off and on, again and again, with writes to tables while it is off.
pub fn unpaged(setting: &mut Setting, report: &mut Report) {
    let gva = space::slot(32);
    let frames = setting.pool.frames(8, 4096);
    for index in 0..8 {
        frames.after(index).write(0, 100 + index);
    }
    let table = setting.space.map(&mut setting.pool, gva, Level::L1, frames.address() | PAGE);
    for round in 0..200u64 {
        let index = round % 8;
        let before = table.read(0) as u32;
        let entry = frames.after(index).address() | PAGE;
        let old = mode::exchange(table, 0, entry as u32);
        check!(
            report,
            old == before,
            "round {round}: the entry was {old:#x} instead of {before:#x}"
        );
        // Turning paging off flushed everything.
        let found = access::read(gva);
        check!(
            report,
            found == Ok(100 + index),
            "round {round}: {found:x?} instead of {}",
            100 + index
        );
        let data = frames.after(7);
        let old = mode::exchange(data, 1, round as u32);
        check!(
            report,
            u64::from(old) == round.saturating_sub(1),
            "round {round}: a plain word was {old:#x}"
        );
        if round % 3 == 0 {
            // A table becomes a page of itself and back.
            table.write(1, table.address() | TABLE | bits::D);
            let page = Gva::new(gva.raw() + 4096);
            cpu::invlpg(page);
            let found = access::read(page);
            check!(
                report,
                found == Ok(table.read(0)),
                "round {round}: the table as a page: {found:x?}"
            );
        }
    }
}

/// Page 0 is memory.
pub fn page_0(_: &mut Setting, report: &mut Report) {
    for address in [0, 8, 0x400, 0xff8] {
        let gva = Gva::new(address);
        let old = access::read(gva);
        let Ok(value) = old else {
            check!(report, false, "a read of {address:#x}: {old:x?}");
            continue;
        };
        let written = access::write(gva, !value);
        let found = access::read(gva);
        check!(
            report,
            written.is_ok() && found == Ok(!value),
            "{address:#x}: {written:x?}, then {found:x?}"
        );
        let restored = access::write(gva, value);
        check!(report, restored.is_ok(), "{address:#x}: {restored:x?}");
    }
}
