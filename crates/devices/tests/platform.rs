//! The platform as a guest and its hypervisor see it: devices, interrupt controllers and time
//! together.

use umbra_devices::{
    IOAPIC_GPA, LAPIC_DEFAULT_GPA, Mark, Platform, PlatformConfig, PlatformEvent, RamLayout,
};
use umbra_telemetry::GuestExit;

const TSC_HZ: u64 = 1_000_000_000;
const MS: u64 = TSC_HZ / 1000;

const CONFIG: PlatformConfig = PlatformConfig {
    ram: RamLayout { below_4g: 256 << 20, above_4g: 0 },
    tsc_hz: TSC_HZ,
    wall_clock_unix_seconds: 1_795_132_798,
    physical_address_bits: 40,
    tsc_deadline: true,
};

const EOI: u64 = LAPIC_DEFAULT_GPA + 0xb0;

fn outb(platform: &mut Platform, now: u64, port: u16, value: u8) {
    assert_eq!(platform.port_write(now, port, 1, value.into()), None, "port {port:#x}");
}

/// Programs the PICs as Linux does, vectors from 0x30, all masked but those in `unmasked`.
fn program_pics(platform: &mut Platform, unmasked: u16) {
    for (port, base, icw3, mask) in
        [(0x20, 0x30, 4, !unmasked as u8), (0xa0, 0x38, 2, (!unmasked >> 8) as u8)]
    {
        outb(platform, 0, port, 0x11);
        for value in [base, icw3, 1, mask] {
            outb(platform, 0, port + 1, value);
        }
    }
}

fn program_ioapic(platform: &mut Platform, pin: u64, low: u64) {
    assert_eq!(platform.mmio_write(0, IOAPIC_GPA, 4, 0x10 + 2 * pin), None);
    assert_eq!(platform.mmio_write(0, IOAPIC_GPA + 0x10, 4, low), None);
}

/// Sets the PIT's channel 0 to periods of 1193 ticks, a little less than 1 ms.
fn program_pit(platform: &mut Platform, now: u64) {
    outb(platform, now, 0x43, 0x34);
    outb(platform, now, 0x40, 0xa9);
    outb(platform, now, 0x40, 0x04);
}

#[test]
fn the_timer_comes_through_the_virtual_wire() {
    let mut platform = Platform::new(&CONFIG);
    assert_eq!(platform.next_deadline(), None);
    program_pics(&mut platform, 1 << 0);
    program_pit(&mut platform, 0);
    for tick in 1..5 {
        let deadline = platform.next_deadline().expect("a running timer");
        assert_eq!(deadline, (tick * 1193 * TSC_HZ).div_ceil(1_193_182));
        platform.advance(deadline - 1);
        assert!(!platform.pending_interrupt());
        platform.advance(deadline);
        assert!(platform.pending_interrupt());
        assert_eq!(platform.acknowledge(), Some(0x30));
        assert_eq!(platform.acknowledge(), None);
        outb(&mut platform, deadline, 0x20, 0x20);
    }
}

#[test]
fn the_timer_comes_through_pin_2_of_the_ioapic() {
    let mut platform = Platform::new(&CONFIG);
    program_ioapic(&mut platform, 2, 0x41);
    program_pit(&mut platform, 0);
    for late in [0, 10 * MS] {
        let deadline = platform.next_deadline().expect("a running timer") + late;
        platform.advance(deadline);
        assert_eq!((platform.acknowledge(), platform.acknowledge()), (Some(0x41), None));
        assert_eq!(platform.mmio_write(deadline, EOI, 4, 0), None);
        assert!(!platform.pending_interrupt());
    }
}

#[test]
fn a_tiny_period_is_served_every_10_us() {
    let mut platform = Platform::new(&CONFIG);
    let mut write = |offset, value| platform.mmio_write(5, LAPIC_DEFAULT_GPA + offset, 4, value);
    write(0x3e0, 0b1011);
    write(0x320, 0x200ec);
    write(0x380, 1);
    assert_eq!(platform.next_deadline(), Some(5 + TSC_HZ / 100_000));
    platform.advance(MS);
    assert_eq!((platform.acknowledge(), platform.acknowledge()), (Some(0xec), None));
    assert_eq!(platform.next_deadline(), Some(MS + TSC_HZ / 100_000));
}

#[test]
fn console_input_interrupts_as_com1() {
    let mut platform = Platform::new(&CONFIG);
    program_ioapic(&mut platform, 4, 0x44);
    outb(&mut platform, 0, 0x3fc, 0x08);
    outb(&mut platform, 0, 0x3f9, 0x01);
    assert!(!platform.pending_interrupt());
    assert_eq!((platform.console_input_room(), platform.console_input(b"ls")), (1, 1));
    assert_eq!(platform.acknowledge(), Some(0x44));
    assert_eq!(platform.port_read(0, 0x3f8, 1), u32::from(b'l'));
}

#[test]
fn console_and_debug_output_are_apart() {
    let mut platform = Platform::new(&CONFIG);
    outb(&mut platform, 0, 0x3f8, b'u');
    outb(&mut platform, 0, 0xe9, b'm');
    assert!(!platform.output_due());
    outb(&mut platform, 0, 0xe9, b'\n');
    assert!(platform.output_due());
    assert_eq!(
        (platform.take_console_output(), platform.take_debug_output()),
        (b"u".to_vec(), b"m\n".to_vec())
    );
    assert!(!platform.output_due());
    assert_eq!(platform.port_read(0, 0xe9, 1), 0xe9);
}

#[test]
fn the_pm_timer_interrupts_by_level() {
    let mut platform = Platform::new(&CONFIG);
    program_ioapic(&mut platform, 9, 0x8049);
    platform.port_write(0, 0x602, 2, 1);
    let deadline = platform.next_deadline().expect("the PM timer");
    assert_eq!(deadline, ((1 << 23) * TSC_HZ).div_ceil(3_579_545));
    platform.advance(deadline);
    assert_eq!(platform.acknowledge(), Some(0x49));
    platform.mmio_write(deadline, EOI, 4, 0);
    assert_eq!(platform.acknowledge(), Some(0x49), "the status bit is still set");
    platform.port_write(deadline, 0x600, 2, 1);
    platform.mmio_write(deadline, EOI, 4, 0);
    assert!(!platform.pending_interrupt());
}

#[test]
fn every_way_to_end() {
    use GuestExit::{AcpiOff, ExitPort, Reset, Shutdown};
    let end = |port, size, value| match Platform::new(&CONFIG).port_write(0, port, size, value) {
        Some(PlatformEvent::End(exit)) => Some(exit),
        Some(event) => panic!("{event:?}"),
        None => None,
    };
    assert_eq!(end(0x604, 2, 0x2000), Some(AcpiOff));
    assert_eq!(end(0x501, 1, 0xff00), Some(ExitPort { port: 0x501, value: 0 }));
    assert_eq!(end(0xf4, 4, 0x1_0010), Some(ExitPort { port: 0xf4, value: 0x1_0010 }));
    assert_eq!(end(0x64, 1, 0xfe), Some(Reset));
    assert_eq!(end(0x64, 1, 0xd1), None);
    assert_eq!(end(0x92, 1, 0x03), Some(Reset));
    assert_eq!(end(0x92, 1, 0x02), None);
    assert_eq!(end(0xcf9, 1, 0x06), Some(Reset));
    assert_eq!(end(0xcf9, 1, 0x02), None);
    assert_eq!(end(0x8900, 1, b'S'.into()), None);
    let mut platform = Platform::new(&CONFIG);
    let events: Vec<_> =
        b"Shutdown".iter().filter_map(|&b| platform.port_write(0, 0x8900, 1, b.into())).collect();
    assert_eq!(events, [PlatformEvent::End(Shutdown)]);
    let init = platform.mmio_write(0, LAPIC_DEFAULT_GPA + 0x300, 4, 0x4500);
    assert_eq!(init, Some(PlatformEvent::End(Reset)));
}

#[test]
fn marks_are_32_bit_writes() {
    let mut platform = Platform::new(&CONFIG);
    let mut out = |port, size, value| platform.port_write(0, port, size, value);
    assert_eq!(out(0x5f0, 4, 0xb007), Some(PlatformEvent::Mark(Mark::BootEnd)));
    assert_eq!(out(0x5f0, 4, 7), Some(PlatformEvent::Mark(Mark::Start { id: 3 })));
    assert_eq!(out(0x5f4, 4, 1024), None);
    assert_eq!(out(0x5f0, 2, 6), None);
    assert_eq!(out(0x5f0, 4, 6), Some(PlatformEvent::Mark(Mark::End { id: 3, ops: 1024 })));
    assert!(
        [0x5f0, 0x5f4].into_iter().all(Platform::is_mark_port) && !Platform::is_mark_port(0x5f1)
    );
}

/// Linux's `pci_check_type1` and `pci_sanity_check`: the mechanism, then a host bridge.
#[test]
fn the_pci_bus_has_a_host_bridge() {
    let mut platform = Platform::new(&CONFIG);
    outb(&mut platform, 0, 0xcfb, 0x01);
    platform.port_write(0, 0xcf8, 4, 0x8000_0008);
    assert_eq!(platform.port_read(0, 0xcf8, 4), 0x8000_0008);
    for (port, size, value) in [
        (0xcfe, 2, 0x0600),
        (0xcff, 1, 0x06),
        (0xcfc, 4, 0x0600_0000),
        // Beyond the register, nobody answers.
        (0xcff, 2, 0xff06),
        (0xcfa, 4, 0x0000_ffff),
        // The address register takes and shows all of its bytes only.
        (0xcf8, 1, 0xff),
        (0xcf8, 2, 0x00ff),
    ] {
        assert_eq!(platform.port_read(0, port, size), value, "{port:#x} {size}");
    }
    platform.port_write(0, 0xcf8, 2, 0x0000);
    platform.port_write(0, 0xcfc, 4, 0x1234_5678);
    assert_eq!(platform.port_read(0, 0xcfc, 4), 0x0600_0000, "the bridge is read-only");
    platform.port_write(0, 0xcf8, 4, 0x8000_0800);
    assert_eq!(
        [1, 2, 4].map(|size| platform.port_read(0, 0xcfc, size)),
        [0xff, 0xffff, 0xffff_ffff]
    );
}

#[test]
fn wide_accesses_reach_byte_devices_in_pieces() {
    let mut platform = Platform::new(&CONFIG);
    platform.port_write(0, 0x20, 2, 0x5511);
    assert_eq!(platform.port_read(0, 0x4d0, 2), 0x0200);
    platform.port_write(0, 0x4d0, 2, 0x0c20);
    assert_eq!(platform.port_read(0, 0x4d0, 2), 0x0c20);
    assert_eq!(platform.port_read(0, 0xffff, 4), u32::from(u8::MAX) * 0x0101_0101);
    platform.port_write(0, 0x510, 2, 0);
    assert_eq!([0; 4].map(|_| platform.port_read(0, 0x511, 1) as u8), *b"QEMU");
}

#[test]
fn the_lapic_page_follows_apic_base() {
    let mut platform = Platform::new(&CONFIG);
    assert!(platform.is_mmio(LAPIC_DEFAULT_GPA + 0xfff) && platform.is_mmio(IOAPIC_GPA));
    assert_eq!(platform.mmio_read(0, LAPIC_DEFAULT_GPA + 0x30, 4), 0x5_0014);
    platform.msr_write(0, 0x1b, 0x1234_5900).expect("a legal base");
    assert_eq!(platform.lapic_page(), Some(0x1234_5000));
    assert_eq!(platform.mmio_read(0, LAPIC_DEFAULT_GPA + 0x30, 4), 0xffff_ffff);
    assert_eq!(platform.mmio_read(0, 0x1234_5030, 4), 0x5_0014);
    platform.msr_write(0, 0x1b, 0x1234_5100).expect("a disabled APIC");
    assert_eq!(platform.lapic_page(), None);
    assert!(!platform.is_mmio(0x1234_5030));
}

#[test]
fn a_disabled_lapic_leaves_the_pics_to_the_cpu() {
    let mut platform = Platform::new(&CONFIG);
    program_pics(&mut platform, 1 << 0);
    program_pit(&mut platform, 0);
    platform.msr_write(0, 0x1b, 0xfee0_0100).expect("a disabled APIC");
    platform.advance(platform.next_deadline().expect("the PIT"));
    assert_eq!(platform.acknowledge(), Some(0x30));
}

/// HLT with interrupts off is left by an NMI only: whether one can come without the guest's doing.
#[test]
fn nmis_that_can_come() {
    const NMI: u64 = 4 << 8;
    const MASKED: u64 = 1 << 16;
    let mut platform = Platform::new(&CONFIG);
    // The timer runs from the start, as an interrupt that nobody hears.
    assert!(!platform.nmi_can_come());
    program_ioapic(&mut platform, 2, 0x30);
    assert!(!platform.nmi_can_come(), "an interrupt is none");
    program_ioapic(&mut platform, 2, NMI | MASKED);
    assert!(!platform.nmi_can_come());
    program_ioapic(&mut platform, 2, NMI);
    assert!(platform.nmi_can_come());
    let deadline = platform.next_deadline().expect("the timer is heard");
    platform.advance(deadline);
    assert!(platform.take_nmi());
    // A timer in mode 0 fires once.
    outb(&mut platform, deadline, 0x43, 0x30);
    outb(&mut platform, deadline, 0x40, 0xff);
    outb(&mut platform, deadline, 0x40, 0x00);
    assert!(platform.nmi_can_come());
    platform.advance(deadline + MS);
    assert!(platform.take_nmi() && !platform.nmi_can_come());
    // The console, if it may interrupt.
    program_ioapic(&mut platform, 4, NMI);
    assert!(!platform.nmi_can_come());
    outb(&mut platform, deadline + MS, 0x3fc, 1 << 3);
    outb(&mut platform, deadline + MS, 0x3f9, 1 << 0);
    assert!(platform.nmi_can_come());
    platform.console_input(b"x");
    assert!(platform.take_nmi());
    // The clock's alarm and its like.
    program_ioapic(&mut platform, 4, MASKED);
    program_ioapic(&mut platform, 8, NMI);
    assert!(!platform.nmi_can_come());
    for (register, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
        outb(&mut platform, deadline + MS, 0x70, register);
        outb(&mut platform, deadline + MS, 0x71, value);
    }
    // Its line falls when register C is read.
    outb(&mut platform, deadline + MS, 0x70, 0x0c);
    platform.port_read(deadline + MS, 0x71, 1);
    assert!(platform.nmi_can_come());
}

/// LINT0 can carry what the 8259s send as an NMI.
#[test]
fn nmis_by_lint0() {
    let mut platform = Platform::new(&CONFIG);
    program_pics(&mut platform, 1 << 0);
    assert!(!platform.nmi_can_come(), "LINT0 is in virtual-wire mode");
    assert_eq!(platform.mmio_write(0, LAPIC_DEFAULT_GPA + 0x350, 4, 4 << 8), None);
    assert!(platform.nmi_can_come());
    program_pics(&mut platform, 0);
    assert!(!platform.nmi_can_come(), "the line is masked");
}

/// A small kernel's tick: 1024 Hz on IRQ 8, level until register C is read.
#[test]
fn the_clock_interrupts() {
    let mut platform = Platform::new(&CONFIG);
    program_pics(&mut platform, 1 << 2 | 1 << 8);
    for (register, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
        outb(&mut platform, 0, 0x70, register);
        outb(&mut platform, 0, 0x71, value);
    }
    for tick in 1..=3 {
        let due = platform.next_deadline().expect("the clock");
        assert_eq!(due, (tick * TSC_HZ).div_ceil(1024));
        platform.advance(due);
        assert_eq!(platform.acknowledge(), Some(0x38));
        outb(&mut platform, due, 0xa0, 0x20);
        outb(&mut platform, due, 0x20, 0x20);
        assert!(!platform.pending_interrupt());
        outb(&mut platform, due, 0x70, 0x0c);
        assert_eq!(platform.port_read(due, 0x71, 1), 0xc0);
    }
}

/// As on a PC/AT: the FPU's error stays on IRQ 13 until the guest clears its latch.
#[test]
fn the_fpu_interrupts() {
    let mut platform = Platform::new(&CONFIG);
    program_pics(&mut platform, 1 << 2 | 1 << 13);
    for clear in [0xf0, 0xf1] {
        platform.report_fpu_error();
        assert!(platform.line(13));
        assert_eq!(platform.acknowledge(), Some(0x3d));
        outb(&mut platform, 0, clear, 0);
        assert!(!platform.line(13));
        outb(&mut platform, 0, 0xa0, 0x20);
        outb(&mut platform, 0, 0x20, 0x20);
        assert!(!platform.pending_interrupt());
    }
}
