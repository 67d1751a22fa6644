//! Interrupts that the CPU sends itself.

use guest_kernels::check;
use guest_kernels::entries::KERNEL_PAGE;
use guest_kernels::kit::apic::{self, bit, register};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::traps::{self, vector};
use guest_kernels::kit::{cpu, descriptors, frames, snippets, space};
use guest_kernels::kit::{ioapic, pit};
use umbra_paging::{Gva, Level, bits};

use crate::log;
use crate::setting::Setting;

/// Patience, in cycles.
const SOON: u64 = 2_000_000;

fn note<const VECTOR: u8>(_: &mut Context) {
    log::note(VECTOR.into());
    apic::end_of_interrupt();
}

/// Self-IPIs: one at a time, in ring 0 and ring 3; held while interrupts are off.
pub fn ipi(_: &mut Setting, report: &mut Report) {
    traps::handle(0x51, note::<0x51>);
    for round in 0..200 {
        log::clear();
        apic::send_self(0x51);
        check!(report, log::count() == 0, "round {round}: an IPI came while interrupts were off");
        let requested = apic::read(register::IRR + 0x20) >> 17 & 1;
        check!(report, requested == 1, "round {round}: IRR does not show the IPI");
        let came = cpu::interruptible(SOON, || log::count() > 0);
        check!(report, came && log::count() == 1, "round {round}: {} IPIs came", log::count());
    }
    // To ring 3: the context goes on.
    log::clear();
    apic::send_self(0x51);
    let trap = traps::run(&snippets::nothing().user().with_flags(cpu::rflags::IF));
    check!(
        report,
        trap.is_stop() && log::count() == 1,
        "an IPI to ring 3: {trap:x?}, {} came",
        log::count()
    );
    // HLT ends.
    log::clear();
    apic::send_self(0x51);
    cpu::idle();
    check!(report, log::count() == 1, "HLT with an IPI pending");
    traps::unhandle(0x51);
    // INIT and start-up to a CPU that is not there.
    for command in [bit::INIT | bit::ASSERT, bit::STARTUP | bit::ASSERT | 8] {
        apic::write(register::ICR_HIGH, 7 << 24);
        apic::write(register::ICR, command);
        check!(
            report,
            apic::read(register::ICR) & bit::PENDING == 0,
            "an IPI to nobody stays pending"
        );
    }
}

/// The order of pending interrupts; TPR holds back; a handler that lets others in.
pub fn priority(_: &mut Setting, report: &mut Report) {
    traps::handle(0x51, note::<0x51>);
    traps::handle(0x61, note::<0x61>);
    traps::handle(0x71, note::<0x71>);
    log::clear();
    for vector in [0x51, 0x71, 0x61] {
        apic::send_self(vector);
    }
    cpu::interruptible(SOON, || log::count() == 3);
    check!(
        report,
        log::values()[..3] == [0x71, 0x61, 0x51],
        "the order was {:x?}",
        &log::values()[..3]
    );

    log::clear();
    apic::write(register::TPR, 0x60);
    for vector in [0x51, 0x71, 0x61] {
        apic::send_self(vector);
    }
    cpu::interruptible(SOON / 10, || false);
    check!(
        report,
        log::values()[..2] == [0x71, 0],
        "under TPR 0x60 came {:x?}",
        &log::values()[..3]
    );
    apic::write(register::TPR, 0);
    cpu::interruptible(SOON, || log::count() == 3);
    check!(
        report,
        log::values()[..3] == [0x71, 0x61, 0x51],
        "after TPR the order was {:x?}",
        &log::values()[..3]
    );
    for vector in [0x51, 0x61, 0x71] {
        traps::unhandle(vector);
    }
}

fn nmi_once(_: &mut Context) {
    log::note(2);
}

/// Sends a second NMI, and notes whether it came before the handler's end.
fn nmi_blocked(_: &mut Context) {
    log::note(0x10);
    if log::count() == 1 {
        apic::send_self_nmi();
        // It cannot come in here.
        for _ in 0..1000 {
            core::hint::spin_loop();
        }
        log::note(0x20);
    }
}

/// As above, but an exception's IRET inside the handler unblocks NMIs.
fn nmi_unblocked(_: &mut Context) {
    log::note(0x10);
    if log::count() == 1 {
        apic::send_self_nmi();
        let trap = traps::run(&snippets::breakpoint().kernel());
        log::note(if trap.vector == vector::BP { 0x20 } else { 0x21 });
    }
}

/// NMIs, and that they are blocked until IRET (SDM, "Handling Multiple NMIs").
pub fn nmi(_: &mut Setting, report: &mut Report) {
    traps::handle(vector::NMI, nmi_once);
    for user in [false, true] {
        log::clear();
        apic::send_self_nmi();
        let trap = traps::run(&snippets::nothing().in_ring(user));
        check!(
            report,
            trap.is_stop() && log::count() == 1,
            "user {user}: {} NMIs, {trap:x?}",
            log::count()
        );
    }
    descriptors::use_ist(vector::NMI, 0);
    for (name, handler, order) in [
        ("a second NMI waits for IRET", nmi_blocked as traps::Handler, [0x10, 0x20, 0x10]),
        ("any IRET unblocks NMIs", nmi_unblocked, [0x10, 0x10, 0x20]),
    ] {
        traps::handle(vector::NMI, handler);
        log::clear();
        apic::send_self_nmi();
        let trap = traps::run(&snippets::nothing().kernel());
        let found = &log::values()[..3];
        check!(
            report,
            trap.is_stop() && log::count() == 3 && found == order,
            "{name}: {found:x?} instead of {order:x?}"
        );
    }
    descriptors::use_ist(vector::NMI, 1);
    traps::unhandle(vector::NMI);
}

/// The page table that maps [`FRAME_PAGES`].
static FRAME_TABLE: frames::Shared = frames::Shared::none();
/// Two pages with the frames of NMIs: RIP, CS and RFLAGS in the first, RSP and SS in the second.
const FRAME_PAGES: Gva = space::slot(23);
/// An interrupt stack that nobody else uses.
const FRAME_STACK: u8 = 4;

/// Sends a second NMI, and sees to it that its own IRET must set an accessed bit.
fn nmi_before_a_walk(context: &mut Context) {
    log::note(context.rip);
    if log::count() == 1 {
        apic::send_self_nmi();
        let second = FRAME_PAGES.raw() + 4096;
        let table = FRAME_TABLE.get();
        table.write(1, table.read(1) & !bits::A);
        cpu::invlpg(Gva::new(second));
    }
}

/// An IRET that a hypervisor must look at has not unblocked NMIs yet: the second one interrupts
/// what the first did (SDM, "Handling Multiple NMIs", and "Information for VM Exits Due to Vectored
/// Events": NMI unblocking due to IRET). The delivery of the first exits, too.
pub fn nmi_frame(setting: &mut Setting, report: &mut Report) {
    let frames = setting.pool.frames(2, 4096);
    for index in 0..2 {
        let gva = Gva::new(FRAME_PAGES.raw() + index * 4096);
        let entry = frames.after(index).address() | KERNEL_PAGE & !(bits::A | bits::D);
        FRAME_TABLE.set(setting.space.map(&mut setting.pool, gva, Level::L1, entry));
    }
    descriptors::set_ist(FRAME_STACK, Some(FRAME_PAGES.raw() + 4096 + 16));
    descriptors::use_ist(vector::NMI, FRAME_STACK);
    traps::handle(vector::NMI, nmi_before_a_walk);
    for _ in 0..3 {
        log::clear();
        apic::send_self_nmi();
        let [first, second] = [0, 1].map(|index| log::values()[index]);
        check!(
            report,
            log::count() == 2 && first == second,
            "{} NMIs, at {first:#x} and {second:#x}",
            log::count()
        );
    }
    traps::unhandle(vector::NMI);
    descriptors::use_ist(vector::NMI, 1);
    descriptors::set_ist(FRAME_STACK, None);
}

/// Masks the timer's pin: one NMI is enough.
fn nmi_from_pit(_: &mut Context) {
    ioapic::route(ioapic::PIT_PIN, None);
    log::note(2);
}

/// An NMI of a timer ends HLT with interrupts off (SDM, "HLT").
pub fn nmi_halt(_: &mut Setting, report: &mut Report) {
    traps::handle(vector::NMI, nmi_from_pit);
    for _ in 0..3 {
        log::clear();
        pit::start_periodic((pit::FREQUENCY / 1000) as u16);
        ioapic::route_nmi(ioapic::PIT_PIN);
        let trap = traps::run(&snippets::halt().kernel());
        check!(report, trap.is_stop() && log::count() == 1, "{} NMIs, {trap:x?}", log::count());
    }
    pit::stop();
    traps::unhandle(vector::NMI);
}
