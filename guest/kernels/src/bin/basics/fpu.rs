//! Errors of the x87 FPU: #MF, or an interrupt as in a PC/AT.

use guest_kernels::check;
use guest_kernels::kit::access;
use guest_kernels::kit::apic::{self, bit, register};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, rflags};
use guest_kernels::kit::pic;
use guest_kernels::kit::port;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets;
use guest_kernels::kit::traps;

use crate::log;
use crate::setting::Setting;

const FPU_LINE: u8 = 13;
const VECTOR: u8 = pic::VECTORS + FPU_LINE;
/// A write clears the line.
const CLEAR: u16 = 0xf0;
/// The control word of FNINIT with division by zero unmasked.
const UNMASKED: u64 = 0x37b;
/// Status word: division by zero.
const ZE: u64 = 1 << 2;
const MF: u8 = 16;

fn note(_: &mut Context) {
    port::write_u8(CLEAR, 0);
    log::note(cpu::take_fpu_status().into());
    pic::end_of_slave_interrupt();
}

/// With CR0.NE an error is #MF at the next instruction that waits for the FPU. Without it, line 13
/// rises, and the program goes on once the handler has cleared the error (SDM vol. 1, "MS-DOS
/// Compatibility Sub-mode").
pub fn error(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let written = access::write(targets.plain, UNMASKED);
    check!(report, written.is_ok(), "the control word: {written:x?}");
    let start = || {
        let mut context = snippets::divide_by_zero().kernel().with_flags(rflags::IF);
        context.rdi = targets.plain.raw();
        traps::run(&context)
    };
    traps::handle(VECTOR, note);
    apic::write(register::LVT_LINT0, bit::EXTINT);
    pic::set_masks(!(1 << 2), !(1 << (FPU_LINE - 8)));
    log::clear();
    let trap = start();
    let status = u64::from(cpu::take_fpu_status());
    check!(
        report,
        trap.vector == MF && status & ZE != 0,
        "with CR0.NE: {trap:x?}, status {status:#x}"
    );
    check!(report, log::count() == 0, "with CR0.NE, {} interrupts came", log::count());
    cpu::set_numeric_error(false);
    for round in 0..3 {
        log::clear();
        let trap = start();
        let (count, status) = (log::count(), log::values()[0]);
        check!(
            report,
            trap.is_stop() && count == 1 && status & ZE != 0,
            "without CR0.NE, round {round}: {trap:x?}, {count} interrupts, status {status:#x}"
        );
    }
    cpu::set_numeric_error(true);
    pic::set_masks(0xff, 0xff);
    apic::write(register::LVT_LINT0, bit::MASKED);
    traps::unhandle(VECTOR);
}
