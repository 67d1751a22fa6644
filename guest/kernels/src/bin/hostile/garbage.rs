//! Garbage into ports and model-specific registers. Bare hardware defines little of it: the guest
//! goes on, or gets #GP.

use guest_kernels::check;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets::{self, Snippet};
use guest_kernels::kit::space::Space;
use guest_kernels::kit::traps::{self, vector};
use guest_kernels::kit::{apic, console, cpu};
use guest_kernels::random::Random;
use guest_kernels::say;

use crate::setting::Setting;

/// Ports that end or reset the machine on purpose, and those around them that a wide access
/// reaches.
fn ends_the_machine(port: u16) -> bool {
    const ENDS: [u16; 8] = [0xf4, 0x501, 0x600, 0x604, 0x8900, 0xb004, 0xcf9, 0x92];
    // The keyboard controller's command pulses the reset line.
    const KEYBOARD: u16 = 0x64;
    // ACPI's control registers switch power off; phase marks belong to whoever measures.
    const MORE: [u16; 4] = [KEYBOARD, 0x602, 0x5f0, 0x5f4];
    ENDS.into_iter()
        .chain(MORE)
        .any(|end| (port..port.saturating_add(4)).contains(&end) || (end..end + 4).contains(&port))
}

fn value(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.number() & 0xff,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        _ => random.number(),
    }
}

/// Reads and writes of all widths, everywhere but where the machine ends.
pub fn ports(setting: &mut Setting, _: &Space, report: &mut Report) {
    let steps = setting.times(20_000);
    let random = &mut setting.random;
    let widths: [(Snippet, Snippet); 3] = [
        (snippets::in_1(), snippets::out_1()),
        (snippets::in_2(), snippets::out_2()),
        (snippets::in_4(), snippets::out_4()),
    ];
    let buffer = setting.pool.frame();
    for step in 0..steps {
        // Most devices lie low.
        let port = match random.below(3) {
            0 => random.below(0x100),
            1 => random.below(0x1000),
            _ => random.below(0x1_0000),
        } as u16;
        // Text to the console is output, and disturbs reading: a little is enough.
        const CONSOLE: [u16; 2] = [0xe9, 0x3f8];
        let near_console =
            CONSOLE.iter().any(|console| (port..port.saturating_add(4)).contains(console));
        if ends_the_machine(port) || (near_console && step % 64 != 0) {
            continue;
        }
        let (read, write) = widths[random.index(3)];
        let mut context = match random.below(8) {
            0 => snippets::ins().kernel(),
            1 => snippets::outs().kernel(),
            2..=4 => read.kernel(),
            _ => write.kernel(),
        };
        context.rdx = port.into();
        context.rax = value(random);
        context.rcx = random.below(9);
        (context.rdi, context.rsi) = (buffer.address(), buffer.address());
        let trap = traps::run(&context);
        check!(report, trap.is_stop(), "port {port:#x}: {trap:x?}");
    }
    console::init();
    // Ring 3 may not.
    let mut context = snippets::in_1().user();
    context.rdx = 0x80;
    let trap = traps::run(&context);
    check!(report, trap.vector == vector::GP && trap.error_code == 0, "IN in ring 3: {trap:x?}");
}

/// Registers whose every bit this kernel lives by.
fn is_vital(msr: u32) -> bool {
    // x2APIC registers act as the APIC's, so they are not garbage to be spared; the base moves the
    // APIC.
    matches!(msr, apic::BASE_MSR)
}

/// Reads and writes of all registers in the ranges that CPUs and hypervisors use.
pub fn msrs(setting: &mut Setting, _: &Space, report: &mut Report) {
    const RANGES: [(u32, u32); 6] = [
        (0, 0x1100),
        (0x4000_0000, 0x4000_0200),
        (0x4b56_4d00, 0x4b56_4d10),
        (0xc000_0080, 0xc000_0110),
        (0xc001_0000, 0xc001_0200),
        (0xffff_fff0, 0xffff_ffff),
    ];
    let random = &mut setting.random;
    let (mut exist, mut writable) = (0u32, 0u32);
    for (first, end) in RANGES {
        for msr in first..end {
            let mut context = snippets::read_msr().kernel();
            context.rcx = msr.into();
            context.rax = random.number();
            context.rdx = random.number();
            let trap = traps::run(&context);
            check!(report, trap.is_stop() || is_gp(&trap), "RDMSR of {msr:#x}: {trap:x?}");
            let held =
                trap.is_stop().then_some(trap.context.rdx << 32 | trap.context.rax & 0xffff_ffff);
            exist += u32::from(held.is_some());
            if is_vital(msr) {
                continue;
            }
            for attempt in 0..3 {
                let mut context = snippets::write_msr().kernel();
                let garbage = value(random);
                context.rcx = msr.into();
                context.rax = garbage;
                context.rdx = garbage >> 32;
                let trap = traps::run(&context);
                check!(
                    report,
                    trap.is_stop() || is_gp(&trap),
                    "WRMSR of {garbage:#x} to {msr:#x}, attempt {attempt}: {trap:x?}"
                );
                writable += u32::from(trap.is_stop());
            }
            // As it was, where it can be.
            if let Some(held) = held {
                let mut context = snippets::write_msr().kernel();
                (context.rcx, context.rax, context.rdx) = (msr.into(), held, held >> 32);
                let trap = traps::run(&context);
                check!(report, trap.is_stop() || is_gp(&trap), "restoring {msr:#x}: {trap:x?}");
            }
        }
    }
    say!("  {exist} registers exist, {writable} writes were taken");
    apic::init();
    check!(report, cpu::read_msr(cpu::EFER) & 1 << 10 != 0, "long mode is off");
    let mut context = snippets::read_msr().user();
    context.rcx = cpu::EFER.into();
    let trap = traps::run(&context);
    check!(report, is_gp(&trap), "RDMSR in ring 3: {trap:x?}");
}

fn is_gp(trap: &traps::Trap) -> bool {
    trap.vector == vector::GP && trap.error_code == 0
}
