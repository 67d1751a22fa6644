//! The whole platform: decodes ports, device memory and MSRs, and keeps the devices' timers.

use alloc::vec::Vec;
use core::fmt;

use umbra_telemetry::GuestExit;

use crate::clock::Clock;
use crate::config::PlatformConfig;
use crate::exception::GeneralProtection;
use crate::exit_ports::ExitPorts;
use crate::fw_cfg::FwCfg;
use crate::interrupts::{Interrupts, Irq};
use crate::ioapic::IOAPIC_GPA;
use crate::lapic::Ipi;
use crate::mark::{Mark, Marks};
use crate::output::Output;
use crate::pci::ConfigMechanism1;
use crate::pit::Pit;
use crate::pm::PowerManagement;
use crate::rtc::Rtc;
use crate::uart::Uart;
use crate::vga::{TextScreen, Vga};

/// Something the guest asked for that only the embedder can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// The guest marked the start or the end of a phase.
    Mark(Mark),
    /// The guest asked for its end.
    End(GuestExit),
}

/// The platform of one guest.
///
/// `now` is the time in ticks of [`PlatformConfig::tsc_hz`]: the guest's time-stamp counter as long
/// as the guest does not write it ([`set_tsc_offset`](Platform::set_tsc_offset)). It must not go
/// back; an earlier time than one already seen counts as that one. Every call that takes `now` runs
/// the timers up to it first.
///
/// One round of the embedder's loop: emulate what the exit was for; feed
/// [`console_input`](Platform::console_input); [`advance`](Platform::advance); deliver an NMI
/// ([`take_nmi`](Platform::take_nmi)) or, if the guest can take interrupts and
/// [`pending_interrupt`](Platform::pending_interrupt), the vector of
/// [`acknowledge`](Platform::acknowledge); enter the guest, and be back by
/// [`next_deadline`](Platform::next_deadline).
///
/// At the start the devices are as PC firmware leaves them: the PICs at vectors 0x08 and 0x70 with
/// everything masked, and the PIT's channel 0 at 18.2 Hz. The local APIC is enabled in virtual-wire
/// mode, and ACPI mode is on.
///
/// The local APIC's timer counts at `tsc_hz` divided by its divide configuration. CPUID should show
/// the APIC (leaf 1, EDX bit 9, while [`lapic_page`](Platform::lapic_page) is some) and must hide
/// x2APIC (ECX bit 21).
pub struct Platform {
    clock: Clock,
    /// The latest time seen.
    now: u64,
    interrupts: Interrupts,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    pm: PowerManagement,
    pci: ConfigMechanism1,
    vga: Vga,
    fw_cfg: FwCfg,
    exit_ports: ExitPorts,
    marks: Marks,
    /// System control port A, port 0x92.
    control_a: u8,
    /// The reset control register, port 0xcf9.
    reset_control: u8,
    debug_output: Output,
    next_deadline: Option<u64>,
    /// Whether an interrupt waits, as the controllers stand.
    interrupt_pending: bool,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform")
            .field("now", &self.now)
            .field("next_deadline", &self.next_deadline)
            .field("interrupt_pending", &self.interrupt_pending)
            .finish_non_exhaustive()
    }
}

/// Bit 0 of port 0x92: INIT to the CPU. Bit 1 is the A20 gate, which has no effect here.
const CONTROL_A_FAST_RESET: u8 = 1 << 0;
const CONTROL_A_A20: u8 = 1 << 1;
/// Bit 2 of port 0xcf9 starts a reset; bit 1 says how hard.
const RESET_CONTROL_RESET: u8 = 1 << 2;
/// The keyboard controller's command that pulses its output 0, the CPU's reset line.
const KEYBOARD_PULSE_RESET: u8 = 0xfe;
/// What the debug console reads as, which is how a guest finds it.
const DEBUG_CONSOLE_PRESENT: u8 = 0xe9;

impl Platform {
    /// A platform at `now == 0`, as firmware leaves it.
    ///
    /// # Panics
    /// If `config.tsc_hz` is below 1 MHz.
    pub fn new(config: &PlatformConfig) -> Platform {
        let clock = Clock::new(config.tsc_hz);
        let mut platform = Platform {
            clock,
            now: 0,
            interrupts: Interrupts::new(config.physical_address_bits, config.tsc_deadline),
            pit: Pit::new(clock),
            rtc: Rtc::new(clock, config.wall_clock_unix_seconds, &config.ram),
            uart: Uart::default(),
            pm: PowerManagement::new(clock),
            pci: ConfigMechanism1::default(),
            vga: Vga::new(clock),
            fw_cfg: FwCfg::new(&config.ram),
            exit_ports: ExitPorts::default(),
            marks: Marks::default(),
            control_a: CONTROL_A_A20,
            reset_control: 0,
            debug_output: Output::default(),
            next_deadline: None,
            interrupt_pending: false,
        };
        platform.settle();
        platform
    }

    /// IN: what the guest reads from `port`, in the low `size` bytes.
    ///
    /// `size` is 1, 2 or 4; any other reads as 4.
    pub fn port_read(&mut self, now: u64, port: u16, size: u8) -> u32 {
        self.run_to(now);
        let value = match (port, size) {
            (0xcf8, 4) => self.pci.address(),
            (0x600..=0x60b, _) => self.pm.read(self.now, port - 0x600, size),
            (_, 1) => u32::from(self.port_read_byte(port)),
            // The bus splits an access that is wider than the device into bytes.
            _ => (0..4u16).take(usize::from(size)).fold(0, |value, i| {
                value | u32::from(self.port_read_byte(port.wrapping_add(i))) << (8 * i)
            }),
        };
        self.settle();
        value & size_mask(size)
    }

    /// OUT: the guest writes the low `size` bytes of `value` to `port`.
    ///
    /// `size` is 1, 2 or 4; any other writes 4.
    pub fn port_write(
        &mut self,
        now: u64,
        port: u16,
        size: u8,
        value: u32,
    ) -> Option<PlatformEvent> {
        self.run_to(now);
        let value = value & size_mask(size);
        let event = match (port, size) {
            (0xcf8, 4) => {
                self.pci.set_address(value);
                None
            }
            (0x600..=0x60b, _) => self.pm.write(port - 0x600, size, value).map(PlatformEvent::End),
            (0x510, 2) => {
                self.fw_cfg.select(value as u16);
                None
            }
            (0x501 | 0xf4, _) => Some(PlatformEvent::End(GuestExit::ExitPort { port, value })),
            (0x8900, _) => self.exit_ports.shutdown_byte(value as u8).map(PlatformEvent::End),
            (0x5f0, 4) => Some(PlatformEvent::Mark(self.marks.mark(value))),
            (0x5f4, 4) => {
                self.marks.set_operations(value);
                None
            }
            (_, 1) => self.port_write_byte(port, value as u8),
            _ => {
                let bytes = value.to_le_bytes();
                (port..=u16::MAX)
                    .zip(bytes)
                    .take(usize::from(size))
                    .fold(None, |event, (port, byte)| self.port_write_byte(port, byte).or(event))
            }
        };
        self.settle();
        event
    }

    /// Whether accesses to `port` are phase marks, which are not counted as exits.
    pub const fn is_mark_port(port: u16) -> bool {
        matches!(port, 0x5f0 | 0x5f4)
    }

    /// Whether a device answers at `gpa`, at present: the local APIC's page can move. It wins over
    /// memory there.
    pub fn is_mmio(&self, gpa: u64) -> bool {
        let page = gpa & !0xfff;
        page == IOAPIC_GPA || Some(page) == self.lapic_page()
    }

    /// The page in which the local APIC answers, `None` while `IA32_APIC_BASE` disables it.
    ///
    /// It changes in [`msr_write`](Platform::msr_write) only.
    pub fn lapic_page(&self) -> Option<u64> {
        self.interrupts.lapic.page()
    }

    /// The value of a load of `size` bytes (1, 2, 4 or 8) at `gpa`, all ones where no device
    /// answers.
    pub fn mmio_read(&mut self, now: u64, gpa: u64, size: u8) -> u64 {
        self.run_to(now);
        let (page, offset) = (gpa & !0xfff, (gpa & 0xfff) as u16);
        let value = if Some(page) == self.lapic_page() {
            self.interrupts.lapic.mmio_read(self.now, offset)
        } else if page == IOAPIC_GPA {
            u64::from(self.interrupts.ioapic.mmio_read(offset))
        } else {
            u64::MAX
        };
        self.settle();
        match size {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// A store of `size` bytes (1, 2, 4 or 8) at `gpa`.
    pub fn mmio_write(
        &mut self,
        now: u64,
        gpa: u64,
        size: u8,
        value: u64,
    ) -> Option<PlatformEvent> {
        self.run_to(now);
        let (page, offset) = (gpa & !0xfff, (gpa & 0xfff) as u16);
        let ipi = if Some(page) == self.lapic_page() {
            self.interrupts.lapic_write(self.now, offset, size, value as u32)
        } else {
            if page == IOAPIC_GPA {
                self.interrupts.ioapic_write(offset, size, value as u32);
            }
            None
        };
        self.settle();
        // INIT takes the bootstrap processor to its reset vector, and no firmware is there.
        ipi.map(|Ipi::InitSelf| PlatformEvent::End(GuestExit::Reset))
    }

    /// RDMSR of one of the platform's MSRs.
    ///
    /// # Errors
    /// The read raises #GP: the MSR is not the platform's, or hidden.
    pub fn msr_read(&mut self, now: u64, msr: u32) -> Result<u64, GeneralProtection> {
        self.run_to(now);
        let value = self.interrupts.lapic.msr_read(msr);
        self.settle();
        value
    }

    /// WRMSR of one of the platform's MSRs. May move [`lapic_page`](Platform::lapic_page).
    ///
    /// # Errors
    /// The write raises #GP: the MSR is not the platform's, or hidden, or a reserved bit of `value`
    /// is set.
    pub fn msr_write(&mut self, now: u64, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        self.run_to(now);
        let written = self.interrupts.lapic.msr_write(self.now, msr, value);
        self.settle();
        written
    }

    /// The guest's time-stamp counter is `now + offset` (modulo 2^64) from here on; the offset is
    /// zero at the start. Only the TSC-deadline timer looks at it.
    pub fn set_tsc_offset(&mut self, now: u64, offset: u64) {
        self.run_to(now);
        self.interrupts.lapic.set_tsc_offset(self.now, offset);
        self.settle();
    }

    /// Runs the timers up to `now`. Timers that came due several times count once.
    pub fn advance(&mut self, now: u64) {
        self.run_to(now);
        self.settle();
    }

    /// The time by which [`advance`](Platform::advance) must be called again, `None` if no timer
    /// can interrupt the guest. Always later than the last `now`; costs nothing.
    ///
    /// A periodic timer is served at most once in 10 µs, however short its period.
    pub fn next_deadline(&self) -> Option<u64> {
        self.next_deadline
    }

    /// Whether the CPU would take an interrupt if RFLAGS.IF and its interruptibility allowed. Costs
    /// nothing.
    pub fn pending_interrupt(&self) -> bool {
        debug_assert_eq!(self.interrupt_pending, self.interrupts.pending());
        self.interrupt_pending
    }

    /// Whether an interrupt or an NMI waits. Costs nothing.
    pub fn has_event(&self) -> bool {
        self.pending_interrupt() || self.nmi_pending()
    }

    /// The CPU takes the interrupt: the vector, or `None` if nothing is pending.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.interrupts.acknowledge();
        self.settle();
        vector
    }

    /// Whether the device on an ISA interrupt line asserts it. For an embedder with interrupt
    /// controllers of its own.
    pub fn line(&self, irq: u8) -> bool {
        self.interrupts.line(irq)
    }

    /// Whether an NMI waits.
    pub fn nmi_pending(&self) -> bool {
        self.interrupts.lapic.nmi_pending()
    }

    /// Whether an NMI can come while the guest does nothing. The line of a device must be an NMI,
    /// and the device must have a running timer or wait for console input.
    pub fn nmi_can_come(&self) -> bool {
        let is_nmi = |irq| self.interrupts.is_nmi(irq);
        (is_nmi(Irq::TIMER) && self.pit.next_interrupt().is_some())
            || (is_nmi(Irq::COM1) && self.uart.listens())
            || (is_nmi(Irq::RTC) && self.rtc.next_interrupt(self.now).is_some())
            || (is_nmi(Irq::SCI) && self.pm.next_interrupt().is_some())
    }

    /// The CPU takes the NMI, if one waits.
    pub fn take_nmi(&mut self) -> bool {
        self.interrupts.lapic.take_nmi()
    }

    /// CR8: the priority class of the local APIC's task-priority register.
    pub fn cr8(&self) -> u64 {
        self.interrupts.lapic.cr8()
    }

    /// MOV to CR8.
    ///
    /// # Errors
    /// Raises #GP: `value` is above 15.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let set = self.interrupts.lapic.set_cr8(value);
        self.interrupt_pending = self.interrupts.pending();
        set
    }

    /// Puts bytes into the UART's receiver and says how many it took: what does not fit must be
    /// offered again later.
    pub fn console_input(&mut self, bytes: &[u8]) -> usize {
        let taken = self.uart.receive(bytes);
        self.settle();
        taken
    }

    /// How many bytes [`console_input`](Platform::console_input) would take.
    pub fn console_input_room(&self) -> usize {
        self.uart.receive_room()
    }

    /// The x87 FPU reports an unmasked exception by its error output, as it does while CR0.NE is
    /// clear. The guest clears that by a write to port 0xf0.
    pub fn report_fpu_error(&mut self) {
        self.interrupts.set(Irq::FPU, true);
        self.settle();
    }

    /// Whether console or debug output should be taken now: a line is complete, or much has come
    /// together.
    pub fn output_due(&self) -> bool {
        self.uart.output.due() || self.debug_output.due()
    }

    /// The text that the VGA shows, out of the memory at 0xb8000; `None` while it shows graphics.
    pub fn text_screen(&self) -> Option<TextScreen> {
        self.vga.text_screen()
    }

    /// Whether there is console or debug output at all.
    pub fn has_output(&self) -> bool {
        !self.uart.output.is_empty() || !self.debug_output.is_empty()
    }

    /// Takes what the guest wrote to COM1 since the last call. At most 64 KiB are kept, more is
    /// lost.
    pub fn take_console_output(&mut self) -> Vec<u8> {
        self.uart.output.take()
    }

    /// Takes what the guest wrote to port 0xe9 since the last call. At most 64 KiB are kept, more
    /// is lost.
    pub fn take_debug_output(&mut self) -> Vec<u8> {
        self.debug_output.take()
    }

    fn port_read_byte(&mut self, port: u16) -> u8 {
        let now = self.now;
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.interrupts.pic.read(port >= 0xa0, port & 1),
            0x4d0 | 0x4d1 => self.interrupts.pic.level_triggered(port == 0x4d1),
            0x40..=0x43 => self.pit.read(now, port - 0x40),
            0x61 => self.pit.read_speaker_port(now),
            // No keyboard controller to speak of: both buffers are always empty, so that a loop
            // that waits to send the reset command ends.
            0x60 | 0x64 => 0,
            0x71 => {
                let value = self.rtc.read(now);
                self.carry_clock();
                value
            }
            0x92 => self.control_a,
            0xe9 => DEBUG_CONSOLE_PRESENT,
            0x3c0..=0x3df => self.vga.read(now, port),
            0x3f8..=0x3ff => self.uart.read(port - 0x3f8),
            0x511 => self.fw_cfg.read(),
            0xcf9 => self.reset_control,
            0xcfc..=0xcff => self.pci.read(port - 0xcfc),
            _ => u8::MAX,
        }
    }

    fn port_write_byte(&mut self, port: u16, value: u8) -> Option<PlatformEvent> {
        let now = self.now;
        let mut reset = false;
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.interrupts.pic.write(port >= 0xa0, port & 1, value),
            0x4d0 | 0x4d1 => self.interrupts.pic.set_level_triggered(port == 0x4d1, value),
            0x40..=0x43 => self.pit.write(now, port - 0x40, value),
            0x61 => self.pit.write_speaker_port(now, value),
            0x64 => reset = value == KEYBOARD_PULSE_RESET,
            0x70 => self.rtc.select(value),
            0x71 => {
                self.rtc.write(now, value);
                self.carry_clock();
            }
            0x92 => {
                reset = value & !self.control_a & CONTROL_A_FAST_RESET != 0;
                self.control_a = value & (CONTROL_A_FAST_RESET | CONTROL_A_A20);
            }
            0xe9 => self.debug_output.push(value),
            0xf0 | 0xf1 => self.interrupts.set(Irq::FPU, false),
            0x3c0..=0x3df => self.vga.write(port, value),
            0x3f8..=0x3ff => self.uart.write(port - 0x3f8, value),
            0xcf9 => {
                reset = value & RESET_CONTROL_RESET != 0;
                self.reset_control = value & !RESET_CONTROL_RESET;
            }
            _ => {}
        }
        reset.then_some(PlatformEvent::End(GuestExit::Reset))
    }

    /// Lets every timer fire that is due at `now`. The interrupt controllers must see that before
    /// an access can take it back.
    fn run_to(&mut self, now: u64) {
        self.now = self.now.max(now);
        if self.pit.take_interrupt_edge(self.now) {
            self.interrupts.pulse(Irq::TIMER);
        }
        self.interrupts.lapic.run_timer(self.now);
        if self.rtc.may_interrupt() {
            self.rtc.run_to(self.now);
            self.carry_clock();
        }
        self.pm.run_to(self.now);
        self.carry_outputs();
    }

    /// Carries the clock's output to them. It changes with the time if the clock may interrupt, and
    /// with the clock's registers.
    fn carry_clock(&mut self) {
        self.interrupts.set(Irq::RTC, self.rtc.interrupt());
    }

    /// Carries the other devices' outputs to the interrupt controllers.
    fn carry_outputs(&mut self) {
        self.interrupts.set(Irq::TIMER, self.pit.timer_output(self.now));
        self.interrupts.set(Irq::COM1, self.uart.interrupt());
        self.interrupts.set(Irq::SCI, self.pm.sci());
        self.interrupts.update();
    }

    /// Carries on what an access has changed, and finds the next deadline.
    fn settle(&mut self) {
        self.carry_outputs();
        self.interrupt_pending = self.interrupts.pending();
        let pit =
            if self.interrupts.listens(Irq::TIMER) { self.pit.next_interrupt() } else { None };
        let not_before = self.now.saturating_add(self.clock.tsc_ticks_in_10_us());
        let sources = [
            pit.map(|(at, periodic)| if periodic { at.max(not_before) } else { at }),
            self.interrupts
                .lapic
                .next_timer()
                .map(|(at, periodic)| if periodic { at.max(not_before) } else { at }),
            self.pm.next_interrupt(),
        ];
        let mut next = sources.into_iter().flatten().min();
        // Hardly any guest lets the clock interrupt.
        if self.rtc.may_interrupt() && self.interrupts.listens(Irq::RTC) {
            next = next.into_iter().chain(self.rtc.next_interrupt(self.now)).min();
        }
        self.next_deadline = next.map(|at| at.max(self.now.saturating_add(1)));
    }
}

/// The bits of a port access of `size` bytes.
fn size_mask(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}
