//! Compatibility mode: 32-bit code under the tables of long mode, in ring 0 and in ring 3.

use guest_kernels::check;
use guest_kernels::entries::{KERNEL_PAGE, PAGE, TABLE};
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu;
use guest_kernels::kit::descriptors::selector;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::traps::{self, vector};
use guest_kernels::kit::{snippets, space};
use umbra_paging::{Gva, Level, bits};

use crate::setting::Setting;

const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const FETCH: u64 = 1 << 4;

/// Ring 0: there and back, with a load and a store there: to a plain page, and to a table.
pub fn kernel(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    for frame in [targets.plain_frame, targets.table_frame] {
        for round in 0..50u64 {
            frame.write(3, 0xaaaa_0000 + round);
            let mut start = snippets::far_compatibility().kernel();
            // Only the low 32 bits of an address count there.
            (start.rdi, start.rsi) = (1 << 40 | (frame.address() + 24), round);
            let trap = traps::run(&start);
            let found = (trap.is_stop(), trap.context.rax, trap.context.rcx, frame.read(3));
            let expected = (true, 1, 0xaaaa_0000 + round, round);
            check!(
                report,
                found == expected,
                "32-bit code: {found:x?} instead of {expected:x?}, {trap:x?}"
            );
        }
    }
}

fn run(mut context: Context, rdi: u64, rsi: u64) -> Result<u64, Fault> {
    (context.rdi, context.rsi) = (rdi, rsi);
    access::run(&context).map(|end| end.rax)
}

/// Ring 3: faults with their error codes and addresses, tables written by 32-bit code, addresses
/// that wrap.
pub fn user(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    setting.space.open_low(&mut setting.pool);
    cpu::flush_all();
    let nxe = setting.cpu.nx;
    cpu::set_paging_bits(true, false, false, nxe);
    let page = Gva::new(space::LOW.raw() + (512 << 20));
    let (data, table) = (targets.plain_frame, targets.table_frame);
    // mov $0x77, %eax; int $0x80
    data.write_bytes(0, &[0xb8, 0x77, 0, 0, 0, 0xcd, 0x80]);
    let nx = if nxe { FETCH | USER | 1 } else { 0 };
    // An entry, and the error codes of a read, a write and a fetch; 0 for none.
    for (entry, codes) in [
        (PAGE, [0, 0, 0]),
        (0, [USER, USER | WRITE, USER | if nxe { FETCH } else { 0 }]),
        (PAGE & !bits::W, [0, USER | WRITE | 1, 0]),
        (KERNEL_PAGE, [USER | 1, USER | WRITE | 1, USER | 1 | if nxe { FETCH } else { 0 }]),
        (if nxe { PAGE | bits::NX } else { PAGE }, [0, 0, nx]),
        (PAGE & !(bits::A | bits::D), [0, 0, 0]),
    ] {
        for (kind, error_code) in codes.into_iter().enumerate() {
            let raw = if entry & bits::P == 0 { 0 } else { data.address() | entry };
            setting.space.map(&mut setting.pool, page, Level::L1, raw);
            cpu::invlpg(page);
            data.write(2, 0x1122_3344);
            let (snippet, offset, done) = match kind {
                0 => (snippets::read_32(), 16, 0x1122_3344),
                1 => (snippets::write_32(), 16, 0),
                _ => (snippets::jump_32(), 0, 0x77),
            };
            let expected = if error_code == 0 {
                Ok(done)
            } else {
                Err(Fault::page(error_code, page.raw() + offset))
            };
            // The upper half of a register is not part of an address.
            let found = run(snippet.user_32(), 0xabcd << 32 | (page.raw() + offset), 0x5566_7788);
            check!(
                report,
                found == expected,
                "access {kind} through {raw:#x} in 32-bit code: {found:x?} instead of {expected:x?}"
            );
            let word = data.read(2);
            let written = if kind == 1 && error_code == 0 { 0x5566_7788 } else { 0x1122_3344 };
            check!(report, word == written, "the page holds {word:#x} instead of {written:#x}");
        }
    }

    // A table in use, written by a store, a push and a string store.
    let entries = Gva::new(page.raw() + 4096);
    setting.space.map(&mut setting.pool, entries, Level::L1, table.address() | PAGE);
    let translated = Gva::new(page.raw() + (2 << 20));
    setting.space.map(&mut setting.pool, translated, Level::L2, table.address() | TABLE);
    cpu::flush_all();
    let entry = data.address() | PAGE;
    for round in 0..60u64 {
        let index = round as usize % 20;
        table.write(index, 0);
        let shown = Gva::new(translated.raw() + 4096 * index as u64);
        cpu::invlpg(shown);
        let gone = run(snippets::read_32().user_32(), shown.raw(), 0);
        check!(report, gone == Err(Fault::page(USER, shown.raw())), "no page: {gone:x?}");
        data.write(0, round);
        let at = entries.raw() + 8 * index as u64;
        let (stored, kept) = match round % 3 {
            0 => (run(snippets::write_32().user_32(), at, entry), 0),
            1 => (run(snippets::push_32().user_32(), at + 4, entry), at),
            _ => {
                let mut context = snippets::stosl_32().user_32();
                (context.rax, context.rcx) = (entry, 1);
                (run(context, at, 0), entry)
            }
        };
        check!(report, stored == Ok(kept), "a table written by 32-bit code: {stored:x?}");
        check!(report, table.read(index) == entry, "the entry is {:#x}", table.read(index));
        let found = run(snippets::read_32().user_32(), shown.raw(), 0);
        check!(
            report,
            found == Ok(round),
            "the page that appeared: {found:x?} instead of {round:#x}"
        );
    }

    // An address that wraps to the first page, which is not for ring 3.
    for base in [0xffff_fff0u64, 0xffff_fff8, 0xffff_fffc] {
        let found = run(snippets::read_beyond_32().user_32(), base, 0);
        let expected = Err(Fault::page(USER | 1, (base + 16) & 0xffff_ffff));
        check!(
            report,
            found == expected,
            "EDI {base:#x} + 16: {found:x?} instead of {expected:x?}"
        );
    }
    // What arrives of the 32-bit code: its selectors, and registers of 32 bits.
    let trap = traps::run(&snippets::push_32().user_32());
    let expected = (vector::PF, USER | WRITE | 1, 0xffff_fffc, selector::USER_CODE_32);
    let found = (trap.vector, trap.error_code, trap.cr2, trap.context.cs);
    check!(
        report,
        found == expected,
        "a push below address 0: {found:x?} instead of {expected:x?}"
    );
    cpu::set_paging_bits(true, false, false, false);
}
