//! Clocks and the interrupts that they send.

use guest_kernels::check;
use guest_kernels::kit::apic::{self, bit, register};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::traps;
use guest_kernels::kit::{cpu, ioapic, pic, pit};

use crate::log;
use crate::setting::Setting;

const VECTOR: u8 = 0x58;
/// Patience, in cycles.
const LONG: u64 = 400_000_000;

fn note_apic(_: &mut Context) {
    log::note(1);
    apic::end_of_interrupt();
}

fn note_pic(_: &mut Context) {
    log::note(1);
    pic::end_of_interrupt();
}

/// The time-stamp counter never goes back, also over exits.
pub fn tsc(_: &mut Setting, report: &mut Report) {
    let mut last = cpu::tsc();
    for round in 0..20_000 {
        if round % 16 == 0 {
            cpu::cpuid(0, 0);
        }
        let now = cpu::tsc();
        check!(report, now > last, "round {round}: {now:#x} after {last:#x}");
        last = now;
    }
}

/// One shot, periodic, masked; the count goes down.
pub fn apic_timer(_: &mut Setting, report: &mut Report) {
    const COUNT: u32 = 50_000;
    traps::handle(VECTOR, note_apic);
    apic::write(register::DIVIDE, bit::DIVIDE_BY_1);

    log::clear();
    apic::write(register::LVT_TIMER, VECTOR.into());
    apic::write(register::INITIAL_COUNT, COUNT);
    let came = cpu::interruptible(LONG, || log::count() > 0);
    check!(report, came, "the one-shot timer did not fire");
    cpu::interruptible(LONG / 1000, || false);
    check!(report, log::count() == 1, "the one-shot timer fired {} times", log::count());
    check!(
        report,
        apic::read(register::CURRENT_COUNT) == 0,
        "the count is {:#x} afterwards",
        apic::read(register::CURRENT_COUNT)
    );

    log::clear();
    apic::write(register::LVT_TIMER, bit::PERIODIC | u32::from(VECTOR));
    apic::write(register::INITIAL_COUNT, COUNT);
    let came = cpu::interruptible(LONG, || log::count() >= 5);
    check!(report, came, "the periodic timer fired {} times", log::count());
    for _ in 0..5 {
        cpu::idle();
    }
    check!(report, log::count() >= 10, "the periodic timer woke HLT {} times", log::count());

    apic::write(register::LVT_TIMER, bit::MASKED | bit::PERIODIC | u32::from(VECTOR));
    cpu::interruptible(LONG / 4000, || false);
    log::clear();
    cpu::interruptible(LONG / 1000, || false);
    check!(report, log::count() == 0, "the masked timer fired {} times", log::count());

    apic::write(register::LVT_TIMER, bit::MASKED);
    apic::write(register::INITIAL_COUNT, u32::MAX);
    let first = apic::read(register::CURRENT_COUNT);
    let mut last = first;
    for _ in 0..1000 {
        let now = apic::read(register::CURRENT_COUNT);
        check!(report, now <= last, "the count went up from {last:#x} to {now:#x}");
        last = now;
    }
    check!(report, last < first, "the count stands at {last:#x}");
    apic::write(register::INITIAL_COUNT, 0);
    traps::unhandle(VECTOR);
}

/// Line 0 by the first 8259 and the APIC's LINT0.
pub fn pit_by_pic(_: &mut Setting, report: &mut Report) {
    traps::handle(pic::VECTORS, note_pic);
    pic::init();
    pit::stop();
    apic::write(register::LVT_LINT0, bit::EXTINT);
    pic::set_masks(0xff, 0xff);
    check!(report, pic::masks() == (0xff, 0xff), "the masks read {:x?}", pic::masks());
    log::clear();
    pit::start_periodic((pit::FREQUENCY / 2000) as u16);
    cpu::interruptible(LONG / 100, || false);
    check!(report, log::count() == 0, "a masked line sent {} interrupts", log::count());
    pic::set_masks(0xfe, 0xff);
    let came = cpu::interruptible(LONG, || log::count() >= 5);
    check!(report, came, "the PIT sent {} interrupts by the PIC", log::count());
    for _ in 0..3 {
        cpu::idle();
    }
    let (first, mut moved) = (pit::count(), false);
    for _ in 0..1000 {
        moved |= pit::count() != first;
    }
    check!(report, moved, "the PIT's count stands at {first:#x}");
    pit::stop();
    pic::set_masks(0xff, 0xff);
    log::clear();
    cpu::interruptible(LONG / 100, || false);
    check!(report, log::count() == 0, "{} interrupts came after the PIT was stopped", log::count());
    // One shot.
    pic::set_masks(0xfe, 0xff);
    cpu::interruptible(LONG / 1000, || false);
    log::clear();
    pit::start_once(500);
    let came = cpu::interruptible(LONG, || log::count() > 0);
    cpu::interruptible(LONG / 100, || false);
    check!(report, came && log::count() == 1, "mode 0 sent {} interrupts", log::count());
    pic::set_masks(0xff, 0xff);
    apic::write(register::LVT_LINT0, bit::MASKED);
    traps::unhandle(pic::VECTORS);
}

/// The same by the I/O APIC.
pub fn pit_by_ioapic(_: &mut Setting, report: &mut Report) {
    traps::handle(VECTOR, note_apic);
    pic::set_masks(0xff, 0xff);
    check!(report, ioapic::pins() >= 24, "the I/O APIC has {} pins", ioapic::pins());
    log::clear();
    pit::start_periodic((pit::FREQUENCY / 2000) as u16);
    ioapic::route(ioapic::PIT_PIN, Some(VECTOR));
    let came = cpu::interruptible(LONG, || log::count() >= 5);
    check!(report, came, "the PIT sent {} interrupts by the I/O APIC", log::count());
    ioapic::route(ioapic::PIT_PIN, None);
    cpu::interruptible(LONG / 1000, || false);
    log::clear();
    cpu::interruptible(LONG / 100, || false);
    check!(report, log::count() == 0, "a masked pin sent {} interrupts", log::count());
    pit::stop();
    traps::unhandle(VECTOR);
}
