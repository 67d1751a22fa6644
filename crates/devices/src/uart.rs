//! A 16550A UART whose line takes bytes at once.
//!
//! National Semiconductor PC16550D data sheet, 8 "Registers". Timing is not modelled: a byte
//! written is transmitted before the next instruction, and the receiver's character time-out has
//! always passed.

use alloc::collections::VecDeque;

use crate::output::Output;

const FIFO_DEPTH: usize = 16;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_IMPLEMENTED: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIME_OUT: u8 = 0x0c;
const IIR_FIFOS_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR_LATCH: u8 = 1 << 7;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_IMPLEMENTED: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Carrier, data set ready, clear to send: someone listens at the other end.
const MSR_CONNECTED: u8 = 0xb0;

#[derive(Default)]
pub(crate) struct Uart {
    /// What was transmitted.
    pub(crate) output: Output,
    received: VecDeque<u8>,
    overrun: bool,
    /// The transmitter became empty, and the guest has not been told.
    transmitter_empty_pending: bool,
    /// The delta bits of the modem status register.
    modem_deltas: u8,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
}

impl Uart {
    /// Takes bytes from the line, as many as there is room for.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.receive_room());
        self.received.extend(&bytes[..taken]);
        taken
    }

    /// How many bytes from the line would not be lost.
    pub(crate) fn receive_room(&self) -> usize {
        // In loopback the receiver is cut off from the line.
        if self.modem_control & MCR_LOOP != 0 {
            0
        } else {
            self.depth().saturating_sub(self.received.len())
        }
    }

    /// Whether a byte from the line would interrupt.
    pub(crate) fn listens(&self) -> bool {
        self.modem_control & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
            && self.interrupt_enable & IER_RECEIVED != 0
    }

    /// The level of the interrupt line. On a PC OUT2 gates it.
    pub(crate) fn interrupt(&self) -> bool {
        let gated = self.modem_control & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        gated && self.interrupt_cause() != IIR_NONE
    }

    pub(crate) fn read(&mut self, register: u16) -> u8 {
        match register {
            0 | 1 if self.line_control & LCR_DIVISOR_LATCH != 0 => {
                self.divisor[usize::from(register)]
            }
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let cause = self.interrupt_cause();
                if cause == IIR_TRANSMITTER_EMPTY {
                    self.transmitter_empty_pending = false;
                }
                cause | if self.fifos_enabled() { IIR_FIFOS_ENABLED } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                let mut status = LSR_TRANSMITTER_EMPTY;
                if !self.received.is_empty() {
                    status |= LSR_DATA_READY;
                }
                if core::mem::take(&mut self.overrun) {
                    status |= LSR_OVERRUN;
                }
                status
            }
            6 => self.modem_lines() | core::mem::take(&mut self.modem_deltas),
            7 => self.scratch,
            _ => u8::MAX,
        }
    }

    pub(crate) fn write(&mut self, register: u16, value: u8) {
        match register {
            0 | 1 if self.line_control & LCR_DIVISOR_LATCH != 0 => {
                self.divisor[usize::from(register)] = value
            }
            0 => {
                if self.modem_control & MCR_LOOP == 0 {
                    self.output.push(value);
                } else if self.received.len() < self.depth() {
                    self.received.push_back(value);
                } else {
                    self.overrun = true;
                }
                self.transmitter_empty_pending = true;
            }
            1 => {
                // Enabling the interrupt while the transmitter is empty raises it: drivers start
                // sending so.
                if value & !self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_empty_pending = true;
                }
                self.interrupt_enable = value & IER_IMPLEMENTED;
            }
            2 => {
                // Switching the FIFOs on or off empties them.
                if (value ^ self.fifo_control) & FCR_ENABLE != 0 || value & FCR_CLEAR_RECEIVER != 0
                {
                    self.received.clear();
                }
                // The other bits are only taken together with the enable bit.
                self.fifo_control = if value & FCR_ENABLE != 0 { value } else { 0 };
            }
            3 => self.line_control = value,
            4 => {
                let before = self.modem_lines();
                self.modem_control = value & MCR_IMPLEMENTED;
                let after = self.modem_lines();
                // The ring indicator's delta (bit 2) only shows its trailing edge.
                let changed = (before ^ after) >> 4;
                let ring_ended = before & !after & 0x40 != 0;
                self.modem_deltas |= (changed & 0x0b) | if ring_ended { 0x04 } else { 0 };
            }
            7 => self.scratch = value,
            // The line and modem status registers are for reading.
            _ => {}
        }
    }

    /// The modem status lines: in loopback DTR, RTS, OUT1 and OUT2 come back as DSR, CTS, RI and
    /// DCD.
    fn modem_lines(&self) -> u8 {
        if self.modem_control & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        let control = self.modem_control;
        (control & 0x01) << 5 | (control & 0x02) << 3 | (control & 0x0c) << 4
    }

    fn fifos_enabled(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.fifos_enabled() { FIFO_DEPTH } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        match self.fifo_control >> 6 {
            _ if !self.fifos_enabled() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// The interrupt identification of the cause with the highest priority.
    fn interrupt_cause(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        if enabled(IER_LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && self.received.len() >= self.trigger_level() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && !self.received.is_empty() {
            IIR_TIME_OUT
        } else if enabled(IER_TRANSMITTER_EMPTY) && self.transmitter_empty_pending {
            IIR_TRANSMITTER_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.modem_deltas != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u16 = 0;
    const IER: u16 = 1;
    const IIR: u16 = 2;
    const FCR: u16 = 2;
    const LCR: u16 = 3;
    const MCR: u16 = 4;
    const LSR: u16 = 5;
    const MSR: u16 = 6;
    const SCR: u16 = 7;

    /// What Linux's 8250 driver does to tell the chips apart (`autoconfig` in 8250_port.c).
    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::default();
        uart.write(IER, 0);
        assert_eq!(uart.read(IER) & 0x0f, 0);
        uart.write(IER, 0x0f);
        assert_eq!(uart.read(IER) & 0x0f, 0x0f);
        uart.write(IER, 0);
        uart.write(MCR, MCR_LOOP | 0x0a);
        assert_eq!(uart.read(MSR) & 0xf0, 0x90);
        uart.write(MCR, 0);
        uart.write(LCR, 0xbf);
        uart.write(FCR, 0);
        uart.write(LCR, 0);
        uart.write(FCR, FCR_ENABLE);
        assert_eq!(uart.read(IIR) >> 6, 3);
        // No sleep, extended or 64-byte FIFO features of later chips.
        uart.write(FCR, 0x21);
        assert_eq!(uart.read(IIR) >> 5, 6);
        uart.write(SCR, 0xa5);
        assert_eq!(uart.read(SCR), 0xa5);
    }

    #[test]
    fn divisor_latch_hides_data_and_enable() {
        let mut uart = Uart::default();
        uart.write(LCR, LCR_DIVISOR_LATCH | 3);
        uart.write(DATA, 0x01);
        uart.write(IER, 0x02);
        assert_eq!((uart.read(DATA), uart.read(IER)), (0x01, 0x02));
        uart.write(LCR, 3);
        assert_eq!(uart.read(IER), 0);
        assert!(uart.output.take().is_empty());
    }

    #[test]
    fn transmitter_interrupt_comes_on_enable_and_after_each_byte() {
        let mut uart = Uart::default();
        uart.write(MCR, MCR_OUT2);
        assert!(!uart.interrupt());
        uart.write(IER, IER_TRANSMITTER_EMPTY);
        assert!(uart.interrupt());
        assert_eq!(uart.read(IIR), IIR_TRANSMITTER_EMPTY);
        assert!(!uart.interrupt());
        assert_eq!(uart.read(IIR), IIR_NONE);
        uart.write(DATA, b'u');
        assert!(uart.interrupt());
        uart.write(IER, 0);
        assert!(!uart.interrupt());
        assert_eq!(uart.output.take(), b"u");
    }

    #[test]
    fn received_bytes_interrupt_by_trigger_level_or_time_out() {
        let mut uart = Uart::default();
        uart.write(MCR, MCR_OUT2);
        uart.write(FCR, FCR_ENABLE | 1 << 6);
        uart.write(IER, IER_RECEIVED);
        assert_eq!(uart.receive(b"abc"), 3);
        assert_eq!(uart.read(IIR) & 0x0f, IIR_TIME_OUT);
        assert_eq!(uart.receive(b"d"), 1);
        assert_eq!(uart.read(IIR) & 0x0f, IIR_RECEIVED);
        assert!(uart.interrupt());
        assert_eq!(uart.receive(&[b'x'; 40]), 12);
        assert_eq!(uart.receive_room(), 0);
        for _ in 0..16 {
            assert!(uart.interrupt());
            assert_ne!(uart.read(LSR) & LSR_DATA_READY, 0);
            uart.read(DATA);
        }
        assert!(!uart.interrupt());
        assert_eq!(uart.read(LSR), LSR_TRANSMITTER_EMPTY);
    }

    #[test]
    fn without_fifo_there_is_room_for_one() {
        let mut uart = Uart::default();
        assert_eq!(uart.receive(b"ab"), 1);
        assert_eq!(uart.receive(b"b"), 0);
        assert_eq!(uart.read(DATA), b'a');
        assert_eq!(uart.receive(b"b"), 1);
    }

    #[test]
    fn loopback_keeps_bytes_and_interrupts_inside() {
        let mut uart = Uart::default();
        uart.write(MCR, MCR_OUT2 | MCR_LOOP);
        uart.write(IER, IER_RECEIVED | IER_LINE_STATUS);
        uart.write(DATA, 0xae);
        assert_eq!(uart.receive(b"z"), 0);
        assert!(!uart.interrupt());
        uart.write(DATA, 0xaf);
        assert_eq!(uart.read(IIR), IIR_LINE_STATUS);
        assert_ne!(uart.read(LSR) & LSR_OVERRUN, 0);
        assert_eq!(uart.read(DATA), 0xae);
        assert!(uart.output.take().is_empty());
        uart.write(MCR, MCR_OUT2);
        assert_eq!(uart.read(MSR) & 0xf0, MSR_CONNECTED);
        assert_eq!(uart.read(MSR), MSR_CONNECTED);
    }
}
