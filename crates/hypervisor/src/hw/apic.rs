//! The physical local APIC, in xAPIC mode.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::cpu;
use super::phys::DirectMap;
use super::vectors::SPURIOUS;

const IA32_APIC_BASE: u32 = 0x1b;
const ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// A register that this hypervisor uses (SDM, "Local APIC Register Address Map").
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Register {
    /// The APIC's number, in the upper byte.
    Id = 0x20,
    /// Task priority.
    TaskPriority = 0x80,
    /// End of interrupt.
    EndOfInterrupt = 0xb0,
    /// Spurious-interrupt vector, and the APIC's enable bit.
    Spurious = 0xf0,
    /// Timer: vector, mask, mode.
    LvtTimer = 0x320,
    /// Pin LINT0, the PICs.
    LvtLint0 = 0x350,
    /// Pin LINT1, NMI.
    LvtLint1 = 0x360,
    /// Timer: starts with the write.
    InitialCount = 0x380,
    /// Timer: counts down to zero.
    CurrentCount = 0x390,
    /// Timer: divisor of its clock.
    Divide = 0x3e0,
}

static REGISTERS: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Enables the APIC so that it passes the PICs' interrupts.
///
/// # Errors
/// A sentence, if the firmware left it off or in x2APIC mode.
pub fn init(map: &DirectMap) -> Result<(), &'static str> {
    let base = cpu::read_msr(IA32_APIC_BASE);
    if base & (ENABLE | X2APIC) != ENABLE {
        return Err(
            "the firmware left the local APIC off or in x2APIC mode; choose another machine model",
        );
    }
    REGISTERS.store(map.pointer(base & ADDRESS), Ordering::Relaxed);
    write(Register::TaskPriority, 0);
    write(Register::LvtLint0, DELIVERY_EXTINT);
    write(Register::LvtLint1, DELIVERY_NMI);
    write(Register::Spurious, SOFTWARE_ENABLE | u32::from(SPURIOUS));
    Ok(())
}

fn pointer(register: Register) -> *mut u32 {
    let base = REGISTERS.load(Ordering::Relaxed);
    assert!(!base.is_null(), "the local APIC is set up before its first use");
    base.wrapping_add(register as usize).cast()
}

/// Reads a register.
pub fn read(register: Register) -> u32 {
    // SAFETY: `init` found the registers there, and the direct map covers them.
    unsafe { pointer(register).read_volatile() }
}

/// Writes a register.
pub fn write(register: Register, value: u32) {
    // SAFETY: as in `read`; no register can make the APIC touch memory.
    unsafe { pointer(register).write_volatile(value) }
}
