//! An NMI a hundred times a second, so that the hypervisor gets a turn whatever the guest does.
//!
//! External interrupts exit whether RFLAGS.IF is set or not (SDM, "External-interrupt exiting").
//! Bochs 2.7 notices them only where IF changes, so a guest that keeps interrupts off and does not
//! exit would never be left: no key, no time-out and no report would reach the hypervisor. NMIs
//! have no such fault, and a local APIC's timer cannot send one. So the 8254 does, through the I/O
//! APIC.

use core::ptr;

use super::phys::DirectMap;
use super::{apic, port};

/// Where PCs have their I/O APIC.
const IO_APIC: u64 = 0xfec0_0000;
const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;
const VERSION: u32 = 1;
/// The redirection entry of pin 0.
const FIRST_PIN: u32 = 0x10;
/// That of pin 2, where PCs have the 8254's channel 0.
const TIMER_PIN: u32 = FIRST_PIN + 2 * 2;
/// Delivery mode NMI, edge-triggered, physical destination, not masked.
const NMI: u32 = 4 << 8;
const MASKED: u32 = 1 << 16;

/// The period in ticks of the 8254: 10 ms. A host command waits no longer, whatever the guest does.
const PERIOD: u16 = 11_932;

const PIT_CHANNEL_0: u16 = 0x40;
const PIT_CONTROL: u16 = 0x43;
/// Channel 0, both bytes, mode 2: a pulse each time the count ends.
const PIT_PERIODIC: u8 = 0x34;

/// Starts it. A machine without an I/O APIC in its usual place goes without.
pub fn start(map: &DirectMap) {
    let registers = map.pointer(IO_APIC);
    let read = |register: u32| {
        // SAFETY: device registers below 4 GiB, which the direct map covers; reads of them have no
        // effect.
        unsafe {
            ptr::write_volatile(registers.wrapping_add(SELECT).cast::<u32>(), register);
            ptr::read_volatile(registers.wrapping_add(WINDOW).cast::<u32>())
        }
    };
    // Where nothing is, a bus reads as ones or zeros.
    if matches!(read(VERSION), 0 | u32::MAX) {
        return;
    }
    let write = |register: u32, value: u32| {
        // SAFETY: as above; all entries are masked but that of pin 2, which sends an NMI: it has a
        // handler.
        unsafe {
            ptr::write_volatile(registers.wrapping_add(SELECT).cast::<u32>(), register);
            ptr::write_volatile(registers.wrapping_add(WINDOW).cast::<u32>(), value);
        }
    };
    // What firmware has left on must not interrupt: there is no handler for it.
    let pins = read(VERSION) >> 16 & 0xff;
    for pin in 0..=pins {
        write(FIRST_PIN + 2 * pin, MASKED);
    }
    write(TIMER_PIN + 1, apic::read(apic::Register::Id) & 0xff00_0000);
    write(TIMER_PIN, NMI);
    port::write_u8(PIT_CONTROL, PIT_PERIODIC);
    let [low, high] = PERIOD.to_le_bytes();
    port::write_u8(PIT_CHANNEL_0, low);
    port::write_u8(PIT_CHANNEL_0, high);
}
