//! The virtual PC that a guest of one vCPU finds around its CPU and memory.
//!
//! [`Platform`] is a pure state machine: the embedder hands it port, MMIO and MSR accesses together
//! with the time, asks it for interrupts, and copies what it prints. It never sees guest memory,
//! keeps no clock of its own and does nothing by itself.
//!
//! What is there:
//!
//! | device | where |
//! |---|---|
//! | two 8259A interrupt controllers with ELCR | ports 0x20, 0xa0, 0x4d0 |
//! | 8254 timer, speaker gate | ports 0x40-0x43, 0x61; IRQ 0 (GSI 2) |
//! | 16550A UART | port 0x3f8, IRQ 4 |
//! | MC146818 clock and CMOS memory | ports 0x70, 0x71; IRQ 8 |
//! | latch of the x87 FPU's error | ports 0xf0, 0xf1; IRQ 13 |
//! | local APIC (xAPIC) | 0xfee00000, relocatable; `IA32_APIC_BASE`, `IA32_TSC_DEADLINE` |
//! | I/O APIC of 24 pins | 0xfec00000 |
//! | ACPI fixed hardware: PM1a, PM timer, SCI on IRQ 9 | ports 0x600-0x60b |
//! | PCI configuration mechanism 1, a host bridge alone on the bus | ports 0xcf8, 0xcfc |
//! | registers of a VGA in text mode | ports 0x3c0-0x3df; its memory is the embedder's |
//! | reset | ports 0x64 (command 0xfe), 0x92, 0xcf9 |
//! | QEMU's `fw_cfg`: signature, memory size, CPU count | ports 0x510, 0x511 |
//! | debug console | port 0xe9 |
//! | exit ports | 0x8900 (the text `Shutdown`), 0x501, 0xf4 |
//! | phase marks | ports 0x5f0, 0x5f4 |
//!
//! Every other port and address reads all ones and ignores writes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod acpi;
mod clock;
mod config;
mod exception;
mod exit_ports;
mod fw_cfg;
mod interrupts;
mod ioapic;
mod lapic;
mod mark;
mod output;
mod pci;
mod pic;
mod pit;
mod platform;
mod pm;
mod rtc;
mod uart;
mod vga;

pub use acpi::{ACPI_TABLES_GPA, acpi_tables};
pub use config::{PlatformConfig, RamLayout};
pub use exception::GeneralProtection;
pub use ioapic::IOAPIC_GPA;
pub use lapic::LAPIC_DEFAULT_GPA;
pub use mark::Mark;
pub use platform::{Platform, PlatformEvent};
pub use vga::TextScreen;
