//! The tests, and their order.

use guest_kernels::kit::boot::Boot;
use guest_kernels::kit::cpu::{self, Cpu};
use guest_kernels::kit::oracle::Quirks;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::{apic, pic};
use guest_kernels::options::{BadValue, Options};
use guest_kernels::random::Random;
use guest_kernels::say;

use crate::setting::Setting;
use crate::{
    delivery, descriptor_tables, extensions, garbage, nowhere, partial, roots, selfmap, stores,
    switches, tangle,
};

type Test = fn(&mut Setting, &Space, &mut Report);

/// The last ones leave the devices in disorder.
const TESTS: &[(&str, Test)] = &[
    ("stores", stores::stores),
    ("crossing", stores::crossing),
    ("partial", partial::partial),
    ("tangle", tangle::tangle),
    ("recursive", selfmap::recursive),
    ("own-code", selfmap::own_code),
    ("own-stack", selfmap::own_stack),
    ("delivery", delivery::delivery),
    ("idt-table", delivery::idt_in_a_table),
    ("gdt-table", descriptor_tables::gdt_in_a_table),
    ("descriptors-stack", descriptor_tables::mapped_by_the_stack),
    ("roots", roots::roots),
    ("switches", switches::switches),
    ("switch-freed", switches::freed),
    ("switch-flushes", switches::flushes),
    ("all-ones", nowhere::all_ones),
    ("nowhere", nowhere::nowhere),
    ("apic-page", nowhere::apic_page),
    ("device-tables", nowhere::device_tables),
    ("extension-instructions", extensions::instructions),
    ("extension-registers", extensions::registers),
    ("paging-off", extensions::paging_off),
    ("msrs", garbage::msrs),
    ("ports", garbage::ports),
];

fn settings(options: &Options<'static>) -> Result<(u64, u64), BadValue<'static>> {
    Ok((options.number("seed")?.unwrap_or(1), options.number("rounds")?.unwrap_or(1)))
}

/// The kernel.
pub fn main(mut boot: Boot) -> u8 {
    let options = boot.options;
    let (seed, rounds) = match settings(&options) {
        Ok(settings) => settings,
        Err(BadValue { name, value }) => {
            say!("hostile: {name}={value} is not a number");
            return 2;
        }
    };
    let cpu = Cpu::detect();
    let space = Space::new(&mut boot.pool);
    space.activate();
    cpu::enable_sse();
    cpu::set_paging_bits(true, false, false, false);
    let quirks = Quirks::probe(&mut boot.pool, &space, &cpu);
    say!("hostile: seed {seed} rounds {rounds} {cpu:?} {quirks:?}");
    let memory_end = boot.memory_end;
    let share = if options.has("quick") { 4 } else { 1 };
    let mut setting = Setting::new(boot.pool, cpu, quirks, memory_end, Random::new(seed))
        .repeating(rounds, share);
    pic::init();
    apic::init();
    let mut report = Report::default();
    for (name, test) in TESTS {
        if !options.lists("hostile", name) {
            continue;
        }
        let mark = setting.pool.mark();
        setting.random = Random::new(seed);
        let space = Space::new(&mut setting.pool);
        space.activate();
        report.test(&options, name, |report| test(&mut setting, &space, report));
        cpu::set_paging_bits(true, false, false, false);
        space::leave();
        cpu::flush_all();
        setting.pool.release(mark);
    }
    report.finish("hostile")
}
