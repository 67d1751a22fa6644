//! Instructions that fault half-way: what they did before must stay, and what they did not must not
//! show.

use guest_kernels::check;
use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::cpu;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::traps::{self, vector};
use umbra_paging::{Gva, Level, bits};

use crate::setting::Setting;

/// String instructions that run from a table into a page that is not there, and stores across that
/// border.
pub fn partial(setting: &mut Setting, space: &Space, report: &mut Report) {
    let gva = space::slot(2);
    let border = gva.raw() + 4096;
    let translated = space::slot(3);
    let table = setting.pool.frame();
    let source = setting.pool.frame();
    let data = setting.pool.frame();
    space.map(&mut setting.pool, gva, Level::L1, table.address() | PAGE);
    space.map(&mut setting.pool, translated, Level::L2, table.address() | TABLE);
    space.map(&mut setting.pool, space::slot(4), Level::L1, source.address() | PAGE);
    let last = Gva::new(translated.raw() + 4096 * 511);
    for round in 0..setting.times(200) {
        let judge = setting.judge(space, true, false, false, true);
        let entry = data.address() | PAGE;
        // What lies behind the border.
        let beyond = [0, data.address() | PAGE & !bits::W, data.address() | PAGE & !bits::P]
            [setting.random.index(3)];
        space.map(&mut setting.pool, Gva::new(border), Level::L1, beyond);
        cpu::invlpg(Gva::new(border));
        table.fill(0);
        source.fill(entry);
        let user = setting.random.one_in(2);
        let words = 1 + setting.random.below(20);
        let count = words + 1 + setting.random.below(10);
        let (mut context, copies) = match setting.random.below(2) {
            0 => (snippets::stosq().in_ring(user), false),
            _ => (snippets::movsq().in_ring(user), true),
        };
        context.rdi = border - 8 * words;
        context.rsi = space::slot(4).raw();
        context.rax = entry;
        context.rcx = count;
        let trap = traps::run(&context);
        let error_code = u64::from(beyond & bits::P != 0) | 1 << 1 | u64::from(user) << 2;
        let expected = (vector::PF, error_code, border, border, count - words);
        let found = (trap.vector, trap.error_code, trap.cr2, trap.context.rdi, trap.context.rcx);
        check!(
            report,
            found == expected,
            "round {round}: a string store over the border: {found:x?} instead of {expected:x?}"
        );
        let moved = if copies { 8 * words } else { 0 };
        check!(report, trap.context.rsi == context.rsi + moved, "RSI is {:#x}", trap.context.rsi);
        for index in 0..512 {
            let expected = if index >= 512 - words as usize { entry } else { 0 };
            let found = table.read(index);
            check!(
                report,
                found == expected,
                "entry {index} is {found:#x} instead of {expected:#x} after {words} stores"
            );
        }
        let read = umbra_paging::Access::user_read();
        judge.judge(&setting.pool, report, last, read, 0);

        // One store across the border does nothing at all.
        let mut context = snippets::write().in_ring(user);
        (context.rdi, context.rsi) = (border - 1 - setting.random.below(7), u64::MAX);
        let trap = traps::run(&context);
        let expected = (vector::PF, error_code, border);
        let found = (trap.vector, trap.error_code, trap.cr2);
        check!(
            report,
            found == expected,
            "a store across the border: {found:x?} instead of {expected:x?}"
        );
        check!(
            report,
            table.read(511) == entry,
            "the first half of a refused store is there: {:#x}",
            table.read(511)
        );
    }
}
