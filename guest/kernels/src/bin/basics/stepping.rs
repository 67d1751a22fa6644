//! Single steps and interrupt shadows, over instructions that a hypervisor may emulate.

use guest_kernels::check;
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, rflags};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets::{self, Snippet};
use guest_kernels::kit::traps::{self, vector};
use guest_kernels::kit::{access, apic, descriptors};

use crate::log;
use crate::setting::Setting;

/// DR6: single step.
const BS: u64 = 1 << 14;

fn note_step(context: &mut Context) {
    log::note(context.rip << 1 | u64::from(cpu::dr6() & BS != 0));
    cpu::clear_dr6();
}

/// The addresses behind the steps of a snippet, relative to its start.
fn steps(snippet: Snippet, user: bool, target: u64, rcx: u64) -> (usize, [u64; 64], Context) {
    log::clear();
    let mut context = snippet.in_ring(user).with_flags(rflags::TF);
    (context.rdi, context.rsi, context.rcx) = (target, 0, rcx);
    if snippet == snippets::steps_mov_ss() {
        context.rsi = if user { descriptors::selector::USER_DATA } else { descriptors::selector::DATA };
    }
    let start = context.rip;
    let trap = traps::run(&context);
    let values = log::values().map(|value| match value {
        0 => 0,
        noted if noted & 1 == 1 => (noted >> 1) - start,
        // A step without DR6.BS.
        _ => u64::MAX,
    });
    (log::count(), values, trap.context)
}

/// #DB after every instruction: the same on a plain page, a page table and a device.
pub fn step(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let tpr = targets.device.raw() + apic::register::TPR;
    traps::handle(vector::DB, note_step);
    cpu::clear_dr6();
    for user in [false, true] {
        // MOV SS and the instruction behind it are one step; each repetition of a string instruction is one.
        for (name, snippet, rcx, expected) in [
            ("store, load, add", snippets::steps(), 0, &[3, 6, 10, 11][..]),
            ("rep stosq", snippets::steps_string(), 3, &[0, 0, 3, 4, 5]),
            ("mov ss", snippets::steps_mov_ss(), 0, &[5, 6, 7]),
        ] {
            for place in [targets.plain.raw() + 128, targets.table.raw() + 128] {
                let (count, values, end) = steps(snippet, user, place, rcx);
                let found = &values[..count.min(64)];
                check!(
                    report,
                    found == expected,
                    "{name} at {place:#x}, user {user}: steps {found:?} instead of {expected:?}, the end {end:x?}"
                );
            }
        }
        let (count, values, _) = steps(snippets::steps_device(), user, tpr, 0);
        let found = &values[..count.min(64)];
        check!(report, found == [2, 4, 5, 6], "a device, user {user}: steps {found:?}");
    }
    traps::unhandle(vector::DB);
    apic::write(apic::register::TPR, 0);
}

const VECTOR: u8 = 0x62;

fn note_interrupt(context: &mut Context) {
    log::note(context.rip);
    apic::end_of_interrupt();
}

/// A pending interrupt comes after the instruction behind STI, whatever that instruction does.
///
/// The plain page is touched before: Bochs 2.7 does not save blocking by STI when a page fault in that instruction exits
/// from a guest, so a hypervisor in it cannot know.
pub fn shadow(setting: &mut Setting, report: &mut Report) {
    let targets = setting.targets();
    let esr = targets.device.raw() + apic::register::ESR;
    traps::handle(VECTOR, note_interrupt);
    let touched = access::write(targets.plain, 0);
    check!(report, touched.is_ok(), "a store to the plain page: {touched:x?}");
    for place in [targets.plain.raw() + 128, targets.table.raw() + 128, esr] {
        log::clear();
        apic::send_self(VECTOR);
        let mut context = snippets::sti_store().kernel();
        (context.rdi, context.rsi) = (place, 0);
        let start = context.rip;
        let trap = traps::run(&context);
        let (count, first) = (log::count(), log::values()[0].wrapping_sub(start));
        check!(
            report,
            trap.is_stop() && (count, first) == (1, 3),
            "a store to {place:#x} behind STI: {count} interrupts, the first at +{first}, {trap:x?}"
        );
    }
    traps::unhandle(VECTOR);
}
