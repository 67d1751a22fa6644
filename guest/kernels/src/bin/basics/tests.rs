//! The tests, and their order.

use guest_kernels::kit::boot::Boot;
use guest_kernels::kit::cpu::{self, Cpu};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::{apic, pic};
use guest_kernels::random::Random;
use guest_kernels::say;

use crate::setting::Setting;
use crate::{
    breakpoints, compatibility, control, delivery, exceptions, fpu, interrupts, invalidation,
    memory, operands, platform, registers, stepping, tasks, timers,
};

type Test = fn(&mut Setting, &mut Report);

const TESTS: &[(&str, Test)] = &[
    ("exceptions", exceptions::exceptions),
    ("stack-fault", exceptions::stack_fault),
    ("double-fault", exceptions::double_fault),
    ("segments", exceptions::segments),
    ("ist", exceptions::ist),
    ("delivery-stack", delivery::stack),
    ("delivery-idt", delivery::idt),
    ("delivery-user-stack", delivery::user_stack),
    ("int1", exceptions::int1),
    ("vector-operands", operands::vector),
    ("vector-beside-code", operands::beside_code),
    ("vector-table", operands::table),
    ("vector-write-protected", operands::write_protected),
    ("vector-faults", operands::faults),
    ("alignment", operands::alignment),
    ("vector-steps", operands::steps),
    ("hole-code", operands::hole_code),
    ("last-instruction", operands::last_instruction),
    ("flags", memory::flags),
    ("compatibility", compatibility::kernel),
    ("compatibility-user", compatibility::user),
    ("remap", memory::remap),
    ("switches", memory::switches),
    ("unpaged", memory::unpaged),
    ("tasks", tasks::switches),
    ("page-0", memory::page_0),
    ("cr0", control::cr0),
    ("cr3", control::cr3),
    ("cr4", control::cr4),
    ("efer", control::efer),
    ("invpcid", invalidation::invpcid),
    ("msr-addresses", registers::addresses),
    ("msr-values", registers::values),
    ("msr-missing", registers::missing),
    ("step", stepping::step),
    ("step-ports", stepping::ports),
    ("step-halt", stepping::halt),
    ("shadow", stepping::shadow),
    ("data-breakpoints", breakpoints::data),
    ("vector-breakpoints", breakpoints::vectors),
    ("string-breakpoints", breakpoints::strings),
    ("held-breakpoints", breakpoints::held),
    ("fault-breakpoints", breakpoints::faults),
    ("instruction-breakpoints", breakpoints::instructions),
    ("port-breakpoints", breakpoints::ports),
    ("ipi", interrupts::ipi),
    ("priority", interrupts::priority),
    ("nmi", interrupts::nmi),
    ("nmi-frame", interrupts::nmi_frame),
    ("nmi-halt", interrupts::nmi_halt),
    ("tsc", timers::tsc),
    ("apic-timer", timers::apic_timer),
    ("pit-pic", timers::pit_by_pic),
    ("pit-ioapic", timers::pit_by_ioapic),
    ("fw-cfg", platform::fw_cfg),
    ("modules", platform::modules),
    ("pci", platform::pci),
    ("vga", platform::vga),
    ("rtc", platform::rtc),
    ("fpu-error", fpu::error),
    ("apic-base", platform::apic_base),
    ("apic-moved", platform::apic_moved),
];

/// The kernel.
pub fn main(mut boot: Boot) -> u8 {
    let cpu = Cpu::detect();
    cpu::enable_sse();
    cpu::set_paging_bits(true, false, false, false);
    let space = Space::new(&mut boot.pool);
    say!("basics: {cpu:?}, memory ends at {:#x}, {} modules", boot.memory_end, boot.modules);
    let mut setting = Setting {
        pool: boot.pool,
        cpu,
        space,
        memory_end: boot.memory_end,
        modules: boot.modules,
        random: Random::new(1),
        options: boot.options,
    };
    pic::init();
    apic::init();
    let mut report = Report::default();
    for (name, test) in TESTS {
        let mark = setting.pool.mark();
        setting.space = Space::new(&mut setting.pool);
        setting.space.activate();
        report.test(&boot.options, name, |report| test(&mut setting, report));
        cpu::set_paging_bits(true, false, false, false);
        space::leave();
        cpu::flush_all();
        setting.pool.release(mark);
    }
    report.finish("basics")
}
