//! Exceptions and interrupts of the host.
//!
//! The hypervisor runs with interrupts off and lets them in at two places (`cpu::take_interrupts`,
//! `cpu::idle`). Handlers do no more than acknowledge and set a flag.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};

use super::vectors::{PIC_BASE, SPURIOUS, TIMER};
use super::{console, cpu, pic, probe, timer};

global_asm!(include_str!("interrupts.s"), options(att_syntax));

const DEBUG: u64 = 1;
const NMI: u64 = 2;
const INVALID_OPCODE: u64 = 6;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
const MACHINE_CHECK: u64 = 18;

/// Nothing can be trusted after a machine check, whatever was running.
pub const MACHINE_BROKEN: &str = "the machine reports a hardware error (machine check)";

/// The places of RDI and RAX in [`Frame::scratch`].
const RDI: usize = 4;
const RAX: usize = 8;

/// What `interrupts.s` leaves on the stack.
#[repr(C)]
struct Frame {
    /// R11, R10, R9, R8, RDI, RSI, RDX, RCX, RAX.
    scratch: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Debug traps are the guest's, which an emulator has left behind.
static IGNORE_DEBUG_TRAPS: AtomicBool = AtomicBool::new(false);

/// From now on debug traps mean nothing.
pub fn ignore_debug_traps() {
    IGNORE_DEBUG_TRAPS.store(true, Ordering::Relaxed);
}

/// # Safety
/// Only `interrupts.s` calls it, with interrupts off.
#[unsafe(no_mangle)]
unsafe extern "C" fn interrupt_handler(frame: &mut Frame) {
    const CONSOLE: u64 = PIC_BASE as u64 + console::IRQ as u64;
    const PIC_FIRST: u64 = PIC_BASE as u64;
    const PIC_LAST: u64 = PIC_BASE as u64 + 15;
    match frame.vector {
        DEBUG if IGNORE_DEBUG_TRAPS.load(Ordering::Relaxed) => (),
        // The heartbeat: that it came is all that it is for.
        NMI => (),
        CONSOLE => {
            console::interrupt();
            pic::end_of_interrupt();
        }
        PIC_FIRST..=PIC_LAST => pic::spurious((frame.vector - PIC_FIRST) as u8),
        vector if vector == u64::from(TIMER) => timer::interrupt(),
        vector if vector == u64::from(SPURIOUS) => (),
        GENERAL_PROTECTION if let Some(rip) = cpu::msr_fixup(frame.rip) => frame.rip = rip,
        PAGE_FAULT if let Some(rip) = probe::fixup(frame.rip) => {
            frame.rip = rip;
            frame.scratch[RAX] = frame.error_code;
        }
        PAGE_FAULT => panic!(
            "page fault at address {:#x}, error code {:#x}, RIP {:#x}, RSP {:#x}",
            cpu::cr2(),
            frame.error_code,
            frame.rip,
            frame.rsp
        ),
        // RDI: the backends' own UD2 leaves there what the hardware refused.
        INVALID_OPCODE => {
            panic!("undefined instruction at RIP {:#x}, RDI {:#x}", frame.rip, frame.scratch[RDI])
        }
        MACHINE_CHECK => panic!("{MACHINE_BROKEN}"),
        vector => panic!(
            "unexpected vector {vector}, error code {:#x}, RIP {:#x}, RSP {:#x}",
            frame.error_code, frame.rip, frame.rsp
        ),
    }
}
