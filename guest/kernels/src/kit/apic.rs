//! The local APIC, through its page of memory (SDM, "Advanced Programmable Interrupt Controller").

use super::cpu;

/// Where it shows at reset.
pub const BASE: u64 = 0xfee0_0000;

/// IA32_APIC_BASE.
pub const BASE_MSR: u32 = 0x1b;
/// IA32_APIC_BASE: the APIC is on.
pub const BASE_ENABLE: u64 = 1 << 11;

/// Offsets of registers.
pub mod register {
    /// Local APIC ID.
    pub const ID: u64 = 0x20;
    /// Version.
    pub const VERSION: u64 = 0x30;
    /// Task priority.
    pub const TPR: u64 = 0x80;
    /// End of interrupt.
    pub const EOI: u64 = 0xb0;
    /// Spurious-interrupt vector, and the software enable.
    pub const SVR: u64 = 0xf0;
    /// First word of the in-service register.
    pub const ISR: u64 = 0x100;
    /// First word of the interrupt request register.
    pub const IRR: u64 = 0x200;
    /// Error status.
    pub const ESR: u64 = 0x280;
    /// Interrupt command, low half.
    pub const ICR: u64 = 0x300;
    /// Interrupt command, high half.
    pub const ICR_HIGH: u64 = 0x310;
    /// LVT timer.
    pub const LVT_TIMER: u64 = 0x320;
    /// LVT LINT0, where the PICs come in.
    pub const LVT_LINT0: u64 = 0x350;
    /// Timer, initial count.
    pub const INITIAL_COUNT: u64 = 0x380;
    /// Timer, current count.
    pub const CURRENT_COUNT: u64 = 0x390;
    /// Timer, divide configuration.
    pub const DIVIDE: u64 = 0x3e0;
}

/// Bits of ICR and LVT entries.
pub mod bit {
    /// ICR delivery mode NMI.
    pub const NMI: u32 = 4 << 8;
    /// ICR delivery mode INIT.
    pub const INIT: u32 = 5 << 8;
    /// ICR delivery mode start-up.
    pub const STARTUP: u32 = 6 << 8;
    /// LVT delivery mode ExtINT.
    pub const EXTINT: u32 = 7 << 8;
    /// ICR: not being sent any more.
    pub const PENDING: u32 = 1 << 12;
    /// ICR: assert.
    pub const ASSERT: u32 = 1 << 14;
    /// LVT: masked.
    pub const MASKED: u32 = 1 << 16;
    /// LVT timer: periodic.
    pub const PERIODIC: u32 = 1 << 17;
    /// ICR: destination is this CPU.
    pub const SELF: u32 = 1 << 18;
    /// SVR: the APIC is on.
    pub const ENABLE: u32 = 1 << 8;
    /// Divide configuration: by one.
    pub const DIVIDE_BY_1: u32 = 0b1011;
}

/// Reads a register.
pub fn read(register: u64) -> u32 {
    // SAFETY: mapped, and device memory of nobody else.
    unsafe { ((BASE + register) as *const u32).read_volatile() }
}

/// Writes a register.
pub fn write(register: u64, value: u32) {
    // SAFETY: as in `read`.
    unsafe { ((BASE + register) as *mut u32).write_volatile(value) };
}

/// Turns it on with spurious vector 0xff and the timer off.
pub fn init() {
    write(register::SVR, bit::ENABLE | 0xff);
    write(register::LVT_TIMER, bit::MASKED);
    write(register::TPR, 0);
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(register::EOI, 0);
}

/// Whether an interrupt is in service.
pub fn in_service(vector: u8) -> bool {
    read(register::ISR + u64::from(vector / 32) * 0x10) >> (vector % 32) & 1 != 0
}

/// Sends an interrupt to this CPU.
pub fn send_self(vector: u8) {
    write(register::ICR, bit::SELF | bit::ASSERT | u32::from(vector));
}

/// Sends an NMI to this CPU, by its ID: the shorthand "self" does not go with NMI (SDM, "Interrupt
/// Command Register").
pub fn send_self_nmi() {
    write(register::ICR_HIGH, read(register::ID));
    write(register::ICR, bit::ASSERT | bit::NMI);
}

/// Sets the local APIC's base register.
pub fn set_base(value: u64) {
    // SAFETY: the register exists wherever there is an APIC; the kit maps all places that tests
    // choose.
    unsafe { cpu::write_msr(BASE_MSR, value) };
}
